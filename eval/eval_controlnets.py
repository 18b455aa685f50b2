"""Score the diffusion method as the paper does: photographs whose foreground is generated anew.

    python eval/eval_controlnets.py --data PATH/TO/PHOTOGRAPHS --split test --base outputs/base/model \
        --high outputs/high/model --low outputs/low/model --output outputs/eval/both
    python eval/eval_controlnets.py … --high_scale 0.7 --low_scale 0.7 --output outputs/eval/sweep/0.7
    python eval/eval_controlnets.py … --perturb --output outputs/eval/perturbed

Each photograph, squashed to the working size, is composite and ground truth at once; without `--high` and
`--low` this is inpainting by text alone. With `--perturb` the composite's foreground has other colours and
light than the photograph, and the rows of the protocol `composite` score it as it is. OUTPUT gets `rows.csv`
with the protocols `raw` (what the autoencoder decoded), `pasted` and `legacy_uint8` for make_tables.py, and
the pictures in `raw`, `pasted`, `real` and `masks` for eval_fid.py. The same command, run again after the
process was killed, goes on where it stopped.
"""

import argparse
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from harmony_diffusion.data.decoding import read_pair
from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.photographs import parse_filters
from harmony_diffusion.diffusion_training.data import DiffusionData, open_data
from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.metrics.diffusion_variants import variant_scores
from harmony_diffusion.metrics.functional import fmse, fpsnr, mse, psnr
from harmony_diffusion.metrics.rows import ResumableRows, format_row, mean_rows
from harmony_diffusion.output_files import write_atomically
from harmony_diffusion.pipelines.assembly import assemble_pipeline
from harmony_diffusion.validation import Triple

FOLDERS = ("raw", "pasted", "real", "masks")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="photographs with masks")
    add("--split", default="test")
    add("--filter", nargs="*", default=[], metavar="COLUMN=VALUE", help="photographs to take")
    add("--captions", type=Path)
    add("--caption_column")
    add("--limit", type=int, help="score the first so many only")
    add("--perturb", action="store_true", help="give the foreground other colours and light")
    add("--base", help="inpainting model (default: Stable Diffusion 2)")
    add("--high", type=Path, help="ControlNet for edges")
    add("--low", type=Path, help="ControlNet for colours")
    add("--high_scale", type=float, default=1.0)
    add("--low_scale", type=float, default=1.0)
    add("--steps", type=int, default=20)
    add("--guidance_scale", type=float, default=7.5)
    add("--init", choices=("noise", "composite"), default="noise")
    add("--strength", type=float, default=1.0)
    add("--size", type=int, default=512, help="working size")
    add("--seed", type=int, default=0)
    add("--batch_size", type=int, default=8)
    add("--device", default="cpu")
    add("--output", type=Path, required=True)
    return parser.parse_args()


def read_squashed(data: DiffusionData, index: int, size: int, seed: int) -> Triple:
    """Read a photograph at the working size, and perturb its foreground if asked."""
    photograph = data.samples.photographs[index]
    picture, mask = read_pair(photograph.picture, photograph.mask, resize_mask=photograph.resize_mask)
    real, plane = (
        torch.from_numpy(cv2.resize(array, (size, size), interpolation=cv2.INTER_AREA)).reshape(
            size, size, -1
        )
        for array in (picture, mask)
    )
    items = {"real": real.permute(2, 0, 1)[None], "mask": plane.permute(2, 0, 1)[None]}
    # Of the name, so that an image is the same whichever others are scored.
    key = sample_key(seed, 0, zlib.crc32(photograph.name.encode()))
    return data.images(items | {"key": torch.tensor([key])}, torch.device("cpu"))


def record_decoded(pipe: Any) -> list[Tensor]:
    """Return a list that receives all that a pipeline decodes, `(N, 3, H, W)` in [0, 1]."""
    decoded: list[Tensor] = []
    decode = pipe.decode

    def recorded(latents: Tensor) -> Any:
        images, flags = decode(latents)
        decoded.append(images.cpu())
        return images, flags

    pipe.decode = recorded
    return decoded


def generate(
    pipe: Any, args: argparse.Namespace, images: Triple, prompts: list[str], keys: list[int]
) -> tuple[Tensor, Tensor]:
    """Return what was decoded and what was pasted, `(B, 3, H, W)` in [0, 1]."""
    composites = (255 * images.composite).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    masks = (255 * images.mask[:, 0]).round().to(torch.uint8).numpy()
    decoded = record_decoded(pipe)
    try:
        pasted = pipe(
            list(composites),
            list(masks),
            prompts,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            high_scale=args.high_scale if args.high else 0.0,
            low_scale=args.low_scale if args.low else 0.0,
            init=args.init,
            strength=args.strength,
            generator=[torch.Generator().manual_seed(key) for key in keys],
            context=10.0,  # the whole picture
            output_type="pt",
        ).images
    finally:
        del pipe.decode
    return torch.cat(decoded), pasted


def score_batch(pipe: Any, args: argparse.Namespace, data: DiffusionData, indices: range) -> list[list[str]]:
    """Generate, save and score some photographs; return their rows."""
    photographs = [data.samples.photographs[index] for index in indices]
    triples = [read_squashed(data, index, args.size, args.seed) for index in indices]
    images = Triple(*(torch.cat(parts) for parts in zip(*triples, strict=True)))
    keys = [sample_key(args.seed, 1, zlib.crc32(photograph.name.encode())) for photograph in photographs]
    raw, pasted = generate(pipe, args, images, [data.prompts[index] for index in indices], keys)
    raw, pasted, real, composite = (
        (255 * part).round() for part in (raw, pasted, images.real, images.composite)
    )
    scores = variant_scores(raw, pasted, real, images.mask)
    if args.perturb:
        metrics = {"mse": mse(composite, real), "psnr": psnr(composite, real)}
        metrics |= {"fmse": fmse(composite, real, images.mask), "fpsnr": fpsnr(composite, real, images.mask)}
        scores["composite"] = metrics
    rows = []
    for place, photograph in enumerate(photographs):
        for folder, part in zip(FOLDERS, (raw, pasted, real, 255 * images.mask), strict=True):
            save_png(args.output / folder / f"{photograph.name}.png", part[place])
        ratio = {"foreground_ratio": images.mask[place].mean().item()}
        for protocol, metrics in scores.items():
            values = {name: value[place].item() for name, value in metrics.items()}
            rows.append(format_row(photograph.name, photograph.subset, protocol, ratio | values))
    return rows


def save_png(path: Path, levels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = levels.round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    write_atomically(path, lambda file: image.save(file, "PNG"), overwrite=True)


def run(args: argparse.Namespace) -> None:
    data = open_data(
        args.data,
        args.split,
        args.size,
        filters=parse_filters(args.filter),
        captions=args.captions,
        caption_column=args.caption_column,
        perturb=args.perturb,
        limit=args.limit,
    )
    if not hasattr(data.samples, "photographs"):
        raise InputError(args.data, "holds composites; this protocol needs photographs with masks")
    count = len(data.samples)
    units = [range(begin, min(begin + args.batch_size, count)) for begin in range(0, count, args.batch_size)]
    rows = ResumableRows(args.output, len(units))
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("output", "device")}
    rows.prepare(settings | {"samples": count})
    if pending := rows.pending():
        pipe = assemble_pipeline(args.base, high=args.high, low=args.low, working_size=args.size)
        pipe.to(args.device).set_progress_bar_config(disable=True)
        for unit in tqdm(pending, desc=args.output.name, unit=" batches", disable=None):
            rows.append(unit, score_batch(pipe, args, data, units[unit]))
    for (protocol, subset), mean in mean_rows(rows.finish()).items():
        if subset == "all":
            told = ", ".join(f"{name} {mean[name]:.2f}" for name in ("psnr", "mse", "fmse") if name in mean)
            print(f"{protocol}: {mean['images']:.0f} images, {told}")


def main() -> None:
    try:
        run(parse_args())
    except (HarmonyError, OSError) as error:
        sys.exit(f"eval_controlnets: {error}")


if __name__ == "__main__":
    main()
