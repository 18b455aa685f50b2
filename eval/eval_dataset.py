"""Score a model on a data set in iHarmony4's layout; one row a composite.

    python eval/eval_dataset.py --data PATH/TO/IHARMONY4 --model mkl --output outputs/mkl

Protocol: harmonized at the composite's own size, then result, ground truth and mask are resized to 256x256
(PIL bilinear with antialiasing; the mask stays soft), rounded to uint8; PSNR with peak 255 over the whole
frame, fMSE over the foreground; every image counts once. Writes rows.csv and prints the means.
"""

import argparse
import csv
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harmony_diffusion.data.iharmony4 import read_iharmony4
from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.image_processor import load_mask, load_picture
from harmony_diffusion.metrics.functional import fmse, fpsnr, mse, psnr
from harmony_diffusion.models import load_model
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

SIZE = (256, 256)
COLUMNS = ("name", "subset", "foreground_ratio", "mse", "psnr", "fmse", "fpsnr")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the subsets")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--model", required=True, help="a method without weights by name, or a saved folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for rows.csv")
    parser.add_argument("--limit", type=int, help="score only the first N of each subset")
    return parser.parse_args()


def score(pipe: HarmonizationPipeline, sample: HarmonySample) -> dict[str, str | float]:
    composite = load_picture(sample.composite)
    mask = load_mask(sample.mask, size=composite.size)
    harmonized = pipe(composite, mask).images[0]
    small = [to_tensor(image) for image in (harmonized, load_picture(sample.real).to_pil())]
    weights = np.asarray(Image.fromarray(mask).resize(SIZE, Image.Resampling.BILINEAR)).clip(0, 1)
    foreground = torch.from_numpy(weights.copy())[None, None]
    values = mse(*small), psnr(*small), fmse(*small, foreground), fpsnr(*small, foreground)
    row = {"name": sample.name, "subset": sample.subset, "foreground_ratio": float(mask.mean())}
    return row | {key: value.item() for key, value in zip(COLUMNS[3:], values, strict=True)}


def to_tensor(image: Image.Image) -> torch.Tensor:
    resized = image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float()


def main() -> None:
    args = parse_args()
    pipe = HarmonizationPipeline(load_model(args.model))
    pipe.set_progress_bar_config(disable=True)
    by_subset: dict[str, list[HarmonySample]] = defaultdict(list)
    for sample in read_iharmony4(args.data, args.split):
        by_subset[sample.subset].append(sample)
    rows = [score(pipe, sample) for samples in by_subset.values() for sample in samples[: args.limit]]

    args.output.mkdir(parents=True, exist_ok=True)
    unfinished = args.output / "rows.csv.tmp"
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, args.output / "rows.csv")

    print(f"| {args.model} | images | " + " | ".join(COLUMNS[3:]) + " |\n|---" + "|---:" * 5 + "|")
    for subset in (*by_subset, "all"):
        part = [row for row in rows if subset in (row["subset"], "all")]
        means = (f"{np.nanmean([row[key] for row in part]):.2f}" for key in COLUMNS[3:])
        print(f"| {subset} | {len(part)} | " + " | ".join(means) + " |")


if __name__ == "__main__":
    main()
