"""Choose foregrounds among the masks of Open Images and list what must be downloaded for them.

    python train/prepare_open_images.py --data OPEN_IMAGES --split train --shards 0 1
    python train/prepare_open_images.py --data OPEN_IMAGES --split test --ids ids.txt
    python train/prepare_open_images.py --data OPEN_IMAGES --split test --single --count 2000

OPEN_IMAGES is a folder for the published dataset; it may be empty at first. Run the command, download the
files that it lists, and run it again: it continues where it stopped. It downloads nothing without
`--download`. It writes:

1. `urls-SPLIT.txt`: addresses of missing tables and mask archives, for `wget -c -i` or `aria2c -c -i`.
2. `measures-SPLIT.jsonl`: measurements of the masks; a run that is started again reuses them.
3. `manifest-SPLIT.csv`: the chosen masks with their licences, a `--data` for every script and for
   `harmony data check`. `manifest-SPLIT.json` holds the settings and counts the masks that were left out.
4. `photographs-SPLIT.txt`: missing photographs, in the format of the official `downloader.py`.

The SD2 paper trains on 12.5 % of the training images, which are shards 0 and 1 of 16. Its 2,000 test images
are those of `harmony data select`: any image with exactly one instance. `--ids` takes exactly the masks of
that list, without any limit. `--single --count` makes another set, the filtered single-object images, which
also passes the limits on quality, size and shape; scores on the two are not comparable.
"""

import argparse
import csv
import hashlib
import http.client
import io
import json
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from harmony_diffusion.data.instances import Limits, Measure, in_random_order, measure_file
from harmony_diffusion.data.open_images import MaskFiles, find_photograph
from harmony_diffusion.data.open_images_tables import (
    CLASSES,
    FLAGS,
    LICENCE_COLUMNS,
    MASK_COLUMNS,
    PHOTOGRAPHS_URL,
    FlaggedBoxes,
    box_of,
    boxes_tables,
    masks_table,
    published_urls,
    read_class_names,
    read_image_records,
    read_table,
)
from harmony_diffusion.data.record_files import append_records, read_ids, read_records
from harmony_diffusion.errors import DecodeError, HarmonyError, InputError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.images.sources import Source

COLUMNS = (
    "Split", "ImageID", "MaskPath", "LabelName", "Label", "BoxID", "PredictedIoU", "Area", "Sides",
    "LargestPart", *LICENCE_COLUMNS,
)  # fmt: skip
CHUNK = 256  # masks measured between two writes

Row = dict[str, str]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, limits = parser.add_argument, Limits()
    add("--data", type=Path, required=True, help="folder of the dataset")
    add("--split", default="train", choices=("train", "validation", "test"))
    add("--shards", type=int, nargs="+", default=list(range(16)), help="shards from 0 to 15 (default: all)")
    add("--single", action="store_true", help="only images with exactly one segmented object")
    add("--ids", type=Path, help="take exactly the masks in this list by `harmony data select`")
    add("--count", type=int, help="number of images to choose, the same for the same seed")
    add("--seed", type=int, default=0)
    add(
        "--least_iou",
        type=float,
        default=0.7,
        help="least predicted quality of a mask, if known (default: 0.7)",
    )
    add("--least_area", type=float, default=limits.least_area, help="share of the frame (default: 0.01)")
    add("--most_area", type=float, default=limits.most_area, help="share of the frame (default: 0.6)")
    add("--most_sides", type=int, default=limits.most_sides, help="sides of the frame touched (default: 2)")
    add(
        "--least_largest_part", type=float, default=limits.least_largest_part,
        help="share of a mask in its largest connected part (default: 0.8)",
    )  # fmt: skip
    add("--keep", nargs="+", default=[], choices=FLAGS, help="keep boxes with these flags")
    add("--workers", type=int, default=4, help="processes that measure masks; 0 = no extra process")
    add("--download", action="store_true", help="download the photographs that are missing")
    add("--mirror", default=PHOTOGRAPHS_URL, help="address of the photographs (default: %(default)s)")
    args = parser.parse_args()
    if not all(0 <= shard < 16 for shard in args.shards):
        parser.error("--shards: numbers from 0 to 15")
    if args.ids and (args.single or args.count is not None):
        parser.error("--ids is a selection; leave out --single and --count")
    if args.count is not None and args.count < 1:
        parser.error("--count: at least 1")
    return args


def main() -> None:
    args = parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    list_missing_files(args)
    rejected: Counter[str] = Counter()
    candidates = read_candidates(args, rejected)
    chosen = choose(args, candidates, rejected)
    write_manifest(args, chosen, rejected)
    missing = list_missing_photographs(args, chosen)
    if args.download and missing:
        download(args, missing)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), overwrite=True)


def list_missing_files(args: argparse.Namespace) -> None:
    """Write the addresses of missing files, and stop if one of them is required."""
    urls = published_urls(args.split, args.shards)
    there = {path.name for path in args.data.iterdir()}
    boxes = boxes_tables(args.split)
    if there & set(boxes) or set(args.keep) == set(FLAGS):
        urls.pop(boxes[0])
    for shard in set(args.shards):
        if there & {f"{args.split}-masks", f"{args.split}-masks-{shard:x}"}:
            urls.pop(f"{args.split}-masks-{shard:x}.zip")
    missing = {name: url for name, url in urls.items() if name not in there}
    listing = args.data / f"urls-{args.split}.txt"
    write_text(listing, "".join(f"{url}\n" for url in missing.values()))
    if set(missing) - {CLASSES}:
        raise InputError(
            args.data,
            f"lacks {', '.join(missing)}",
            f"Download the addresses in {listing} into it, and run this again",
        )


def read_candidates(args: argparse.Namespace, rejected: Counter[str]) -> dict[str, list[Row]]:
    """Read the rows of the masks that pass the checks of the tables, by image."""
    table = masks_table(args.data, args.split)
    digits = {f"{shard:x}" for shard in args.shards}
    # Reading twice avoids millions of rows in memory.
    per_image = Counter(
        row["ImageID"] for row in read_table(table, MASK_COLUMNS) if row["ImageID"][:1] in digits
    )
    records = read_image_records(args.data, args.split, per_image)
    flags = FlaggedBoxes(args.data, args.split, per_image, [flag for flag in FLAGS if flag not in args.keep])
    candidates: dict[str, list[Row]] = {}
    wanted = set(read_ids(args.ids)) if args.ids else None
    for row in read_table(table, MASK_COLUMNS):
        image = row["ImageID"]
        if image not in per_image or (wanted is not None and Path(row["MaskPath"]).stem not in wanted):
            continue
        if wanted is not None:
            candidates.setdefault(image, []).append({**row, **records.get(image, {})})
            continue
        record, box = records.get(image, {}), box_of(row)
        fault = flags.find(image, row["LabelName"], box)
        if args.single and per_image[image] > 1:
            fault = "several masks"
        elif float(record.get("Rotation") or 0) != 0:
            fault = "rotated"
        elif row.get("PredictedIoU") and float(row["PredictedIoU"]) < args.least_iou:
            fault = "poor mask"
        elif not fault and box.area < args.least_area / 2:
            fault = "small"  # A mask may leave its box, but not by as much again.
        if fault:
            rejected[fault] += 1
        else:
            candidates.setdefault(image, []).append({**row, **record})
    return candidates


def choose(
    args: argparse.Namespace, candidates: dict[str, list[Row]], rejected: Counter[str]
) -> list[tuple[Row, Measure]]:
    """Measure masks, image by image in random order, and return the first ones within the limits."""
    limits = Limits(args.least_area, args.most_area, args.most_sides, args.least_largest_part)
    chosen: list[tuple[Row, Measure]] = []
    images: set[str] = set()
    with tqdm(total=sum(map(len, candidates.values())), desc="masks", unit="mask", disable=None) as bar:
        for row, measure in measured(args, candidates):
            bar.update()
            if args.count is not None and len(images) == args.count and row["ImageID"] not in images:
                break
            if not isinstance(measure, Measure):
                rejected["unreadable" if measure else "missing"] += 1
            elif not args.ids and (fault := limits.fault(measure)):
                rejected[fault] += 1
            else:
                chosen.append((row, measure))
                images.add(row["ImageID"])
    if args.ids and len(chosen) < (count := len(read_ids(args.ids))):
        reason = f"names {count} masks, of which {len(chosen)} are here: {dict(rejected)}"
        raise InputError(args.ids, reason, "Add the missing archives, or select with all shards.")
    if not chosen:
        raise InputError(masks_table(args.data, args.split), f"has no mask that fits: {dict(rejected)}")
    return sorted(chosen, key=lambda pair: (pair[0]["ImageID"], pair[0]["MaskPath"]))


def measured(
    args: argparse.Namespace, candidates: dict[str, list[Row]]
) -> Iterator[tuple[Row, Measure | str | None]]:
    """Yield rows with their measurement, or a description of the fault, or None for a missing file."""
    log = args.data / f"measures-{args.split}.jsonl"
    known: dict[str, Measure | str] = {}
    for record in read_records(log) if log.exists() else ():
        known[record["mask"]] = record.get("fault") or Measure(*record["measure"])
    rows = [row for image in in_random_order(candidates, args.seed) for row in candidates[image]]
    files = MaskFiles(args.data, args.split)
    with ProcessPoolExecutor(max(1, args.workers)) as pool:
        for start in range(0, len(rows), CHUNK):
            chunk = [row["MaskPath"] for row in rows[start : start + CHUNK]]
            sources = {name: source for name in chunk if name not in known and (source := found(files, name))}
            run = pool.map if args.workers else map
            results = dict(zip(sources, run(measure_file, sources.values()), strict=True))
            append_records(
                log,
                (
                    {"mask": name, "fault" if isinstance(result, str) else "measure": result}
                    for name, result in results.items()
                ),
            )
            known |= results
            yield from ((row, known.get(row["MaskPath"])) for row in rows[start : start + CHUNK])


def found(files: MaskFiles, name: str) -> Source | None:
    """Return the file of a mask, or None if its archive does not hold it."""
    try:
        return files.find(name)
    except DecodeError:
        raise
    except InputError:
        return None


def write_manifest(
    args: argparse.Namespace, chosen: list[tuple[Row, Measure]], rejected: Counter[str]
) -> None:
    names = read_class_names(args.data)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row, measure in chosen:
        facts = {
            "Split": args.split,
            "Label": names.get(row["LabelName"], ""),
            "Area": f"{measure.area:.4f}",
            "Sides": measure.sides,
            "LargestPart": f"{measure.largest_part:.4f}",
        }
        writer.writerow({**row, **facts})
    path = args.data / f"manifest-{args.split}.csv"
    write_text(path, text.getvalue())
    images = len({row["ImageID"] for row, _ in chosen})
    settings = {
        key: value
        for key, value in vars(args).items()
        if key not in ("data", "workers", "download", "mirror", "ids")
    }
    if args.ids:
        settings["ids"] = hashlib.sha256(args.ids.read_bytes()).hexdigest()
    facts = {
        "settings": settings,
        "masks": len(chosen),
        "images": images,
        "left_out": dict(sorted(rejected.items())),
        "sha256": hashlib.sha256(text.getvalue().encode()).hexdigest(),
    }
    write_text(path.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    print(f"{path}: {len(chosen)} masks of {images} images; left out: {facts['left_out']}")
    if args.count is not None and images < args.count:
        print(f"There are only {images} such images, not {args.count}.")


def list_missing_photographs(args: argparse.Namespace, chosen: list[tuple[Row, Measure]]) -> list[str]:
    missing = []
    for image in sorted({row["ImageID"] for row, _ in chosen}):
        try:
            find_photograph(args.data, args.split, image)
        except InputError:
            missing.append(image)
    path = args.data / f"photographs-{args.split}.txt"
    write_text(path, "".join(f"{args.split}/{image}\n" for image in missing))
    if missing:
        print(f"{path}: {len(missing)} photographs to download into {args.data / args.split}")
    return missing


def download(args: argparse.Namespace, images: list[str]) -> None:
    """Download photographs; list the failures for another run."""
    folder = args.data / args.split
    folder.mkdir(exist_ok=True)

    def fetch(image: str) -> str:
        try:
            write_atomically(folder / f"{image}.jpg", fetched(f"{args.mirror}/{args.split}/{image}.jpg"))
        except (OSError, http.client.HTTPException, HarmonyError) as error:
            return f"{image}: {error}"
        return ""

    with ThreadPoolExecutor(8) as pool:
        outcomes = tqdm(pool.map(fetch, images), total=len(images), desc="photographs", disable=None)
        failures = [outcome for outcome in outcomes if outcome]
    left = {failure.partition(":")[0] for failure in failures}
    listing = args.data / f"photographs-{args.split}.txt"
    write_text(listing, "".join(f"{args.split}/{image}\n" for image in images if image in left))
    if failures:
        shown = "; ".join(failures[:3])
        raise InputError(
            args.mirror,
            f"{len(failures)} of {len(images)} photographs did not come: {shown}",
            "Run this again",
        )


def fetched(url: str) -> bytes:
    """Download a complete JPEG file, in up to three attempts."""
    for pause in (1, 2):
        try:
            return fetched_at_once(url)
        except (OSError, http.client.HTTPException):
            time.sleep(pause)
    return fetched_at_once(url)


def fetched_at_once(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        data = response.read()
    if data[:2] != b"\xff\xd8" or data.rstrip(b"\0")[-2:] != b"\xff\xd9":
        raise OSError("is no whole JPEG file")
    return data


if __name__ == "__main__":
    try:
        main()
    except HarmonyError as error:
        sys.exit(f"prepare_open_images: {error}")
