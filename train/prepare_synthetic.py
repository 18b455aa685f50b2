"""Write synthetic composites of photographs to disk, in iHarmony4's layout.

    python train/prepare_synthetic.py --data PHOTOGRAPHS --output OUT --split train --epochs 1 --size 256

PHOTOGRAPHS is a data set of photographs with masks: a folder with index.csv, or Open Images. The files
equal the composites of a training with the same seed, epochs and size, pixel by pixel. OUT receives
KIND/{composite_images,masks,real_images}, KIND/KIND_SPLIT.txt, IHD_SPLIT.txt, and sources_SPLIT.csv,
which names the photograph of every real image, with the columns (licence, author, …) of the data set.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image

from harmony_diffusion.data.layouts import list_dataset
from harmony_diffusion.data.photographs import Photograph, subset_weights
from harmony_diffusion.data.synthesis.composites import (
    KINDS,
    SyntheticBatch,
    SyntheticComposites,
    reference_colors,
)
from harmony_diffusion.data.training_set import PhotographSet
from harmony_diffusion.errors import HarmonyError, InputError, OutputError
from harmony_diffusion.process import keep_freed_memory


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="photographs with masks")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--split", default="train", help="part of the photographs (default: train)")
    parser.add_argument("--size", type=int, default=256, help="side of the square composites (default: 256)")
    parser.add_argument("--epochs", type=int, default=1, help="composites of each photograph (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def to_image(tensor: torch.Tensor) -> Image.Image:
    pixels = (tensor * 255).round().byte().cpu()
    return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())


def write_batch(output: Path, names: list[str], batch: SyntheticBatch, lists: dict[str, list[str]]) -> None:
    for row, name in enumerate(names):
        kind = KINDS[int(batch.kind[row])]
        files = {
            "composite_images": (f"{name}_1_1.png", batch.composite[row]),
            "masks": (f"{name}_1.png", batch.mask[row]),
            "real_images": (f"{name}.png", batch.real[row]),
        }
        for folder, (file, tensor) in files.items():
            (output / kind / folder).mkdir(parents=True, exist_ok=True)
            to_image(tensor).save(output / kind / folder / file)
        lists[kind].append(f"{name}_1_1.png")


def write_lists(output: Path, split: str, lists: dict[str, list[str]]) -> None:
    merged = []
    for kind, names in sorted(lists.items()):
        (output / kind / f"{kind}_{split}.txt").write_text("\n".join(names) + "\n")
        merged += [f"{kind}/composite_images/{name}" for name in names]
    (output / f"IHD_{split}.txt").write_text("\n".join(merged) + "\n")


def write_sources(output: Path, split: str, used: dict[str, Photograph]) -> None:
    columns = sorted({column for photograph in used.values() for column in photograph.record})
    with (output / f"sources_{split}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["real", "photograph", "subset", *columns])
        for name, photograph in used.items():
            record = [photograph.record.get(column, "") for column in columns]
            writer.writerow([name, photograph.name, photograph.subset, *record])


def main() -> None:
    keep_freed_memory()
    args = parse_args()
    if (args.output / f"IHD_{args.split}.txt").exists():
        raise OutputError(
            args.output, f"holds composites of the split {args.split} already", "Choose another folder."
        )
    listing = list_dataset(args.data, args.split)
    photographs = listing.photographs
    if not photographs:
        raise InputError(args.data, f"has the layout {listing.layout}, which holds no photographs")
    weights = subset_weights([photograph.subset for photograph in photographs])
    training_set = PhotographSet(photographs, args.size, weights)
    synthesize = SyntheticComposites(reference_colors(photographs)).to(args.device)
    places = [(epoch, index) for epoch in range(args.epochs) for index in range(len(training_set))]
    lists: dict[str, list[str]] = defaultdict(list)
    used: dict[str, Photograph] = {}
    for start in range(0, len(places), args.batch_size):
        chosen = places[start : start + args.batch_size]
        items = [training_set.sample_at(args.seed, epoch, index) for epoch, index in chosen]
        real, mask, keys = (torch.stack([item[name] for item in items]) for name in ("real", "mask", "key"))
        names = [f"{args.split}{epoch}-{index:07d}" for epoch, index in chosen]
        used |= {name: photographs[int(item["source"])] for name, item in zip(names, items, strict=True)}
        write_batch(args.output, names, synthesize(real.to(args.device), mask.to(args.device), keys), lists)
    write_lists(args.output, args.split, lists)
    write_sources(args.output, args.split, used)
    print(f"{len(places)} composites in {args.output}")


if __name__ == "__main__":
    try:
        main()
    except HarmonyError as error:
        sys.exit(f"prepare_synthetic: {error}")
