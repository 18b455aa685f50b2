"""What a batch must not replace: its inputs, and files in the folder of the results that it did not make."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harmony_diffusion.batch.inputs import Inputs
from harmony_diffusion.batch.journal import is_whole
from harmony_diffusion.batch.plan import Plan, digest, place_of
from harmony_diffusion.errors import OutputError
from harmony_diffusion.images.output_files import reason_of
from harmony_diffusion.json_text import parse_json
from harmony_diffusion.paths import resolved

LISTS = ("manifest.jsonl", "errors.jsonl")  # written beside the results
_STATE = ".harmony"
_SHOWN = 5


def check_kept(inputs: Inputs, plan: Plan, out: Path, places: Iterable[int], *, overwrite: bool) -> None:
    """Check, before anything is written, that no result replaces a file which is to be kept.

    Args:
        inputs: Where the rows come from.
        plan: The new plan; that of the last run is still in its place.
        out: Folder of the results.
        places: `place_of` each file of each row.
        overwrite: Whether files that no batch made may be replaced. Inputs never are.

    Raises:
        OutputError: A result would replace an input, or a file that no batch made.
    """
    there = {place for _, place in _existing(plan, out)}
    there.update(place_of(os.stat(path)) for name in LISTS if os.path.exists(path := out / name))
    if there:
        taken = {place for place in places if place in there}
        if inputs.source.is_file():
            taken |= {place_of(os.stat(inputs.source))} & there
        if taken:
            _refuse_inputs(plan, out, taken)
        if not overwrite:
            _check_unknown(plan, out)
    if resolved(out / _STATE) in resolved(inputs.source).parents:
        raise OutputError(inputs.source, "lies in the folder of the job's state", "Copy it elsewhere.")


def _existing(plan: Plan, out: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the entries whose output is there already, and which file it is."""
    for line in plan.lines():
        entry = parse_json(line)
        try:
            found = os.stat(f"{out}/{entry['output']}")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise OutputError(entry["output"], *reason_of(error)) from None
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(entry["output"], "is there already, and no regular file", "Move it away.")
        yield entry, place_of(found)


def _refuse_inputs(plan: Plan, out: Path, taken: set[int]) -> None:
    names = [entry["output"] for entry, place in _existing(plan, out) if place in taken]
    names += [name for name in LISTS if os.path.exists(out / name) and place_of(os.stat(out / name)) in taken]
    raise OutputError(
        out, f"{_listed(names)} would be replaced, and is read as an input", "Choose another folder."
    )


def _check_unknown(plan: Plan, out: Path) -> None:
    """Refuse outputs that are there, but that no earlier run wrote.

    A run that was killed between a file and its line in the journal made the file: the last plan has it, and
    the journal says nothing. What the journal lists as failed was not written.
    """
    failed, known = _of_status(out, "failed"), _planned(out)
    strange = {
        entry["id"]: entry["output"]
        for entry, _ in _existing(plan, out)
        if entry["id"] in failed or digest(entry["output"].encode("utf-8", "surrogatepass")) not in known
    }
    if strange:
        known = _planned(out)  # another process may have begun meanwhile
        done = _of_status(out, "done", {*strange})
        names = [
            output
            for name, output in strange.items()
            if name not in done
            and (name in failed or digest(output.encode("utf-8", "surrogatepass")) not in known)
        ]
        if names:
            raise OutputError(
                out,
                f"{_listed(names)} exists already, and no batch made it",
                "Move it away, choose another folder, or allow it with --overwrite.",
            )


def _planned(out: Path) -> set[int]:
    """Return a digest of each output of the last plan."""
    found = set()
    try:
        with (out / _STATE / "plan.jsonl").open("rb") as file:
            for line in file:
                try:
                    found.add(digest(parse_json(line)["output"].encode("utf-8", "surrogatepass")))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # damaged: what it named counts as unknown
    except OSError:
        pass
    return found


def _of_status(out: Path, status: str, wanted: set[str] | None = None) -> set[str]:
    """Return the ids that a journal gives a status; only the wanted ones."""
    found = set()
    for path in (out / _STATE / "journal").glob("*.jsonl"):
        try:
            with path.open("rb") as file:
                for line in file:
                    try:
                        record = parse_json(line)
                        name = record["id"]
                        if (
                            is_whole(record)
                            and record["status"] == status
                            and (wanted is None or name in wanted)
                        ):
                            found.add(name)
                    except (ValueError, KeyError, TypeError):
                        continue
        except OSError:
            continue
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
