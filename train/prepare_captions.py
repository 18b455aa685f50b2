"""Caption photographs with BLIP, for the prompts of `train_controlnet.py`.

    python train/prepare_captions.py --data OPEN_IMAGES/manifest-train.csv --output OPEN_IMAGES/captions
    torchrun --nproc_per_node 8 train/prepare_captions.py --data … --output …
    python train/prepare_captions.py --data … --region foreground --output OPEN_IMAGES/captions-foreground

Each of N processes writes `captions-I-of-N.jsonl` to OUTPUT, one line for each photograph;
`captions.json` holds the settings. To continue a killed run, start the same command again, with any
number of processes. Photographs with several masks get one caption. `--region foreground` captions every
foreground alone, cut out on the mean colour of the captioner's encoder, as the paper does for its baseline
with text only (figure 4). `--column` copies captions from a
column of the data set instead, for example from `Label` of Open Images.
"""

import argparse
import functools
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from harmony_diffusion.data.captions import (
    DEFAULT_CAPTIONER,
    generate_captions,
    load_captioner,
    picture_key,
    prepare_picture,
    prompts_from_column,
    read_captions,
)
from harmony_diffusion.data.cut_outs import cut_out
from harmony_diffusion.data.layouts import Listing, list_dataset
from harmony_diffusion.data.record_files import append_records
from harmony_diffusion.data.sample import Problem
from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.images.quick_decoding import read_pair, read_picture
from harmony_diffusion.images.sources import Source
from harmony_diffusion.process import keep_freed_memory

logger = logging.getLogger("prepare_captions")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
REGIONS = ("whole", "foreground")
COLUMN_CHUNK = 4096  # captions from a column written at a time

# The key of a photograph, and its pixels or a description of its fault.
Prepared = tuple[str, torch.Tensor | str]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="data set of any layout, or its manifest")
    add("--output", type=Path, required=True, help="folder of the captions")
    add("--split", default="train")
    add("--captioner", default=DEFAULT_CAPTIONER, help="folder or Hub id of a BLIP (default: %(default)s)")
    add("--region", choices=REGIONS, default="whole", help="caption photographs, or their foregrounds alone")
    add("--column", help="take captions from this column instead")
    add("--max_new_tokens", type=int, default=30)
    add("--num_beams", type=int, default=3)
    add("--dtype", choices=DTYPES, default="bf16")
    add("--batch_size", type=int, default=32)
    add("--workers", type=int, default=4, help="loader processes of each captioning process")
    add("--device", help="default: a GPU if there is one")
    add("--part", metavar="I/N", help="caption part I of 0 to N - 1 (default: by the rank of torchrun)")
    add("--skip_bad", action="store_true", help="skip photographs that cannot be used")
    args = parser.parse_args()
    if args.column is not None and args.region != "whole":
        parser.error("--column and --region: give one of them")
    args.part, args.parts = part_of(args.part, parser)
    if args.device is None:
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return args


def part_of(text: str | None, parser: argparse.ArgumentParser) -> tuple[int, int]:
    """Return the part of this process and the number of parts."""
    if text is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        parser.error(f"--part: expected I/N with I from 0 to N - 1, got {text}")
    return int(part), int(parts)


def main() -> None:
    keep_freed_memory()
    args = parse_args()
    problems: list[Problem] | None = [] if args.skip_bad else None
    listing = list_dataset(
        args.data,
        args.split,
        problems=problems,
    )
    for problem in problems or ():
        logger.warning("%s: %s", *problem)
    args.output.mkdir(parents=True, exist_ok=True)
    check_settings(args)
    root = args.data if args.data.is_dir() else args.data.parent
    if args.column is not None:
        caption_from_column(args, listing, root)
    else:
        caption_with_blip(args, listing, root)


def check_settings(args: argparse.Namespace) -> None:
    """Refuse a folder with captions that were made with other settings."""
    if args.column is not None:
        settings: dict[str, object] = {"column": args.column}
    else:
        names = ("captioner", "max_new_tokens", "num_beams", "dtype")
        settings = {"beginning": ""} | {name: getattr(args, name) for name in names}
        if args.region != "whole":
            settings["region"] = args.region
    path = args.output / "captions.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise InputError(args.output, f"holds captions made otherwise ({path.read_text()})", "Choose another")
    write_atomically(path, (json.dumps(settings, indent=2) + "\n").encode(), overwrite=True)


def unfinished(args: argparse.Namespace, keys: list[str]) -> list[str]:
    """Return the sorted keys of this process that have no caption yet."""
    done = read_captions(args.output) if any(args.output.glob("*.jsonl")) else {}
    mine = sorted(key for key in set(keys) if number_of(key) % args.parts == args.part)
    left = [key for key in mine if key not in done]
    print(f"{len(left)} of {len(mine)} photographs to caption (part {args.part} of {args.parts})", flush=True)
    return left


def number_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def output_file(args: argparse.Namespace) -> Path:
    return args.output / f"captions-{args.part}-of-{args.parts}.jsonl"


def caption_from_column(args: argparse.Namespace, listing: Listing, root: Path) -> None:
    if not listing.photographs:
        raise InputError(args.data, f"has the layout {listing.layout}, which has no columns")
    keys = [picture_key(photograph.picture, root) for photograph in listing.photographs]
    # The first mask of a photograph provides its caption.
    captions = dict(
        reversed(list(zip(keys, prompts_from_column(listing.photographs, args.column), strict=True)))
    )
    left = unfinished(args, keys)
    for start in range(0, len(left), COLUMN_CHUNK):
        chunk = left[start : start + COLUMN_CHUNK]
        append_records(output_file(args), ({"image": key, "caption": captions[key]} for key in chunk))


class Subject(NamedTuple):
    """A picture to caption, or the foreground of a picture if there is a mask."""

    picture: Source
    mask: Source | None = None
    resize_mask: bool = False

    def record(self, root: Path) -> dict[str, str]:
        """Return the entries that name it in a file of captions."""
        keys = {"image": picture_key(self.picture, root)}
        return keys if self.mask is None else keys | {"mask": picture_key(self.mask, root)}


def subjects(args: argparse.Namespace, listing: Listing, root: Path) -> dict[str, Subject]:
    """Return what is to be captioned, by the key of its caption."""
    if args.region == "foreground":
        if not listing.photographs:
            raise InputError(
                args.data, "holds composites", "Caption whole pictures: leave out --region foreground"
            )
        chosen = [Subject(one.picture, one.mask, one.resize_mask) for one in listing.photographs]
    else:
        pictures = [photograph.picture for photograph in listing.photographs]
        chosen = [Subject(picture) for picture in pictures + [sample.real for sample in listing.samples]]
    return {picture_key(subject.mask or subject.picture, root): subject for subject in chosen}


def caption_with_blip(args: argparse.Namespace, listing: Listing, root: Path) -> None:
    by_key = subjects(args, listing, root)
    left = unfinished(args, list(by_key))
    if not left:
        return
    processor, model = load_captioner(args.captioner, dtype=DTYPES[args.dtype], device=args.device)
    failed = 0
    with tqdm(total=len(left), unit="image", disable=None) as bar:
        for batch in batches(args, processor, {key: by_key[key] for key in left}):
            good = [(key, values) for key, values in batch if isinstance(values, torch.Tensor)]
            for key, fault in batch:
                if isinstance(fault, str):
                    if not args.skip_bad:
                        raise InputError(key, fault, "Skip such photographs with --skip_bad")
                    failed += 1
                    logger.warning("%s: %s", key, fault)
            if good:
                texts = generate_captions(
                    processor,
                    model,
                    torch.stack([values for _, values in good]),
                    max_new_tokens=args.max_new_tokens,
                    num_beams=args.num_beams,
                )
                records = [
                    by_key[key].record(root) | {"caption": text}
                    for (key, _), text in zip(good, texts, strict=True)
                ]
                append_records(output_file(args), records)
            bar.update(len(batch))
    if failed:
        print(f"{failed} photographs cannot be used and have no caption")


def batches(
    args: argparse.Namespace, processor: Any, pictures: dict[str, Subject]
) -> Iterator[list[Prepared]]:
    items: Any = list(pictures.items())
    prepare = functools.partial(prepare_pictures, processor)
    yield from DataLoader(items, batch_size=args.batch_size, num_workers=args.workers, collate_fn=prepare)


def view_of(subject: Subject, processor: Any) -> Image.Image:
    if subject.mask is None:
        return Image.fromarray(read_picture(subject.picture))
    picture, mask = read_pair(subject.picture, subject.mask, resize_mask=subject.resize_mask)
    return cut_out(picture, mask, processor.image_processor.image_mean)


def prepare_pictures(processor: Any, items: list[tuple[str, Subject]]) -> list[Prepared]:
    prepared: list[Prepared] = []
    for key, subject in items:
        try:
            prepared.append((key, prepare_picture(processor, view_of(subject, processor))))
        except InputError as error:
            prepared.append((key, error.reason))
    return prepared


if __name__ == "__main__":
    logging.basicConfig(format="%(name)s: %(message)s")
    try:
        main()
    except HarmonyError as error:
        sys.exit(f"prepare_captions: {error}")
