"""Rank methods by pairwise votes: Bradley-Terry scores with intervals.

    python eval/rank_votes.py votes.csv --output outputs/votes

`votes.csv` has the columns first, second and winner (one of the two names, or `tie`). A column voter is
recommended: if every vote names its voter, the intervals account for correlated votes of one voter. The
script prints a Markdown table. With `--output` it also writes votes.md, votes.csv and votes.json.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.reports.votes import Rank, rank_votes, read_votes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("votes", type=Path)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--output", type=Path, help="folder for the tables")
    return parser.parse_args()


def to_markdown(ranks: Sequence[Rank], confidence: float) -> str:
    lines = [
        f"| method | B-T score | {100 * confidence:g} % interval | wins | votes |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.method} | {r.score:.3f} | [{r.low:.3f}, {r.high:.3f}] | {r.wins:g} | {r.votes} |"
        for r in ranks
    ]
    return "\n".join(lines) + "\n"


def to_csv(ranks: Sequence[Rank]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(asdict(ranks[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {
            key: f"{value:.6f}" if key in ("score", "low", "high") else value
            for key, value in asdict(rank).items()
        }
        for rank in ranks
    )
    return buffer.getvalue()


def main() -> None:
    args = parse_args()
    try:
        votes = read_votes(args.votes)
        ranks = rank_votes(votes, confidence=args.confidence)
        voters = {vote.voter for vote in votes if vote.voter}
        content = {"schema": 1, "votes": len(votes), "voters": len(voters), "confidence": args.confidence}
        content["ranks"] = [asdict(rank) for rank in ranks]
        table = to_markdown(ranks, args.confidence)
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            texts = {"md": table, "csv": to_csv(ranks), "json": json.dumps(content, indent=1) + "\n"}
            for suffix, text in texts.items():
                write_atomically(args.output / f"votes.{suffix}", text.encode(), overwrite=True)
    except (HarmonyError, OSError) as error:
        sys.exit(f"rank_votes: {error}")
    print(table, end="")
    known = f"{len(voters)} voters" if voters else "voters not named"
    print(f"\n{len(votes)} votes, {known}.")


if __name__ == "__main__":
    main()
