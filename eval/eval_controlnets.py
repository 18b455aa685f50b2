"""Score the diffusion method as in the paper: regenerate the foreground of photographs.

    python eval/eval_controlnets.py --data PATH/TO/PHOTOGRAPHS --split test --base outputs/base/model \
        --high outputs/high/model --low outputs/low/model --extractor inception.safetensors \
        --output outputs/both
    python eval/eval_controlnets.py … --model sd-inpainting --base FOLDER_OR_ID --output outputs/sd
    python eval/eval_controlnets.py … --model paint-by-example --base FOLDER_OR_ID --output outputs/pbe
    python eval/eval_controlnets.py … --control-scale 0.1:1.0:0.1 --output outputs/sweep
    python eval/eval_controlnets.py … --scale-grid 0.1:1.0:0.1 --output outputs/grid
    python eval/eval_controlnets.py … --perturb --detail preserve --output outputs/perturbed
    python eval/eval_controlnets.py … --perturb --model identity --output outputs/composites

Each photograph is resized to a square of the working size and is both composite and ground truth. Without
`--high` and `--low` the method is inpainting with text only. The baselines are diffusers' own pipelines. The
example image of Paint by Example is the foreground of the photograph, cut out. `--perturb` changes colours
and light of the foreground in the composite; `--model identity` then scores the composites themselves.

The script prints FID, KID, PSNR and MSE of the raw decode and of the pasted result, over whole images and
over foregrounds; the mean colour error of the foreground, fΔab (CIE a*b*); and the agreement of edges: the
F-score of the edges inside the foreground of the result against those of the control image for edges, with a
tolerance of one pixel. FID and KID use the feature network in `--extractor`, see eval_fid.py.

`--control-scale` scores both ControlNets at each of these scales and prints Table 2 of the paper.
`--scale-grid` scores every pair of scales (figure 6 of the paper) and writes `grid.md`, `grid.csv` and the
heat map `grid.png`. `--shrink-foreground 4` shows the ControlNets a foreground that was enlarged four times
(figure 7: a ControlNet trained with `--sigma 0` sees the raw image).

The script writes to OUTPUT (OUTPUT/SCALE in a sweep, OUTPUT/HIGH_LOW in a grid): `rows.csv` with the
protocols `raw` (decoded by the autoencoder), `pasted` and `legacy_uint8`; the distances; and the pictures in
`raw`, `pasted`, `real` and `masks`. make_tables.py compares several OUTPUTs. If the process was killed, the
same command resumes.
"""

import argparse
import io
import sys
import warnings
import zlib
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm.auto import tqdm

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.photographs import parse_filters
from harmony_diffusion.diffusion.control_images import keep_inside
from harmony_diffusion.diffusion.control_settings import ControlSettings, load_control_settings
from harmony_diffusion.errors import HarmonyError, InputError, InputNote
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.images.quick_decoding import read_pair
from harmony_diffusion.metrics.edges import edge_agreement
from harmony_diffusion.metrics.fid import load_extractor
from harmony_diffusion.metrics.rows import EXTRA_COLUMNS, ResumableRows, format_row
from harmony_diffusion.metrics.score_rows import read_rows
from harmony_diffusion.pipelines.assembly import assemble_pipeline
from harmony_diffusion.pipelines.baselines import BASELINES, InpaintingBaseline
from harmony_diffusion.process import keep_freed_memory
from harmony_diffusion.reports.diffusion_tables import (
    PASTED,
    RAW,
    Distances,
    parse_scales,
    read_distances,
    read_sweep,
    scale_name,
    sweep_markdown,
    variants_markdown,
)
from harmony_diffusion.reports.diffusion_variants import variant_scores
from harmony_diffusion.reports.fid_folders import variant_distances, write_distance
from harmony_diffusion.reports.scale_grid import cell_name, draw_grid, grid_csv, grid_markdown, read_grid
from harmony_diffusion.reports.tables import make_tables
from harmony_diffusion.training.diffusion_data import DiffusionData, open_data
from harmony_diffusion.training.validation import Triple

FOLDERS = ("raw", "pasted", "real", "masks")
OURS, IDENTITY = "dual", "identity"
# Arguments that do not change the rows.
NO_SETTINGS = ("output", "device", "control_scale", "scale_grid", "extractor", "extractor_size", "force")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="photographs with masks")
    add("--split", default="test")
    add("--filter", nargs="*", action="extend", default=[], metavar="COLUMN=VALUE", help="select photographs")
    add("--captions", type=Path)
    add("--caption_column")
    add("--limit", type=int, help="score only the first N photographs")
    add("--perturb", action="store_true", help="change colours and light of the foreground")
    add("--ids", type=Path, help="score only the photographs named in this file, one per line")
    add("--model", choices=(OURS, IDENTITY, *BASELINES), default=OURS)
    add("--base", help="weights: folder or Hub id (default: Stable Diffusion 2, or Paint by Example)")
    add("--high", type=Path, help="ControlNet for edges")
    add("--low", type=Path, help="ControlNet for colours")
    add("--edges_like", type=Path, help="ControlNet whose edges results must agree with (default: --high)")
    add("--high_scale", type=float, default=1.0)
    add("--low_scale", type=float, default=1.0)
    add("--control-scale", metavar="START:STOP:STEP", help="scales of both, or values with commas")
    add("--scale-grid", metavar="START:STOP:STEP", help="scales of each apart, or values with commas")
    add(
        "--shrink-foreground",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="shrink the foreground of the composite by FACTOR and enlarge it again (default: 1)",
    )
    add("--steps", type=int, default=20)
    add("--guidance_scale", type=float, help="default: 7.5; Paint by Example: 5")
    add("--init", choices=("noise", "composite"), default="noise")
    add("--strength", type=float, default=1.0)
    add(
        "--detail",
        choices=("generated", "preserve"),
        default="generated",
        help="preserve: transfer only colour and light",
    )
    add("--size", type=int, default=512, help="working size")
    add("--seed", type=int, default=0)
    add("--batch_size", type=int, default=8)
    add("--device", default="cpu")
    add("--extractor", type=Path, help="feature network for FID and KID: TorchScript or safetensors")
    add("--extractor_size", type=int, default=299, help="input side of the feature network in pixels")
    add("--force", action="store_true", help="allow FID with fewer than 2,048 images")
    add("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.model != OURS and (
        args.high or args.low or args.init != "noise" or args.strength != 1 or args.detail != "generated"
    ):
        parser.error(f"--model {args.model} does not support --high, --low, --init, --strength and --detail")
    if args.control_scale and not (args.high or args.low):
        parser.error("--control-scale requires --high or --low")
    if args.scale_grid and not (args.high and args.low):
        parser.error("--scale-grid requires --high and --low")
    if args.control_scale and args.scale_grid:
        parser.error("--control-scale and --scale-grid: give one of them")
    if args.shrink_foreground < 1:
        parser.error("--shrink-foreground must be at least 1")
    return args


def read_squashed(data: DiffusionData, index: int, args: argparse.Namespace) -> Triple:
    """Read a photograph at the working size, and perturb or blur its foreground as the arguments say."""
    size, seed = args.size, args.seed
    photograph = data.samples.photographs[index]
    picture, mask = read_pair(photograph.picture, photograph.mask, resize_mask=photograph.resize_mask)
    real, plane = (
        torch.from_numpy(cv2.resize(array, (size, size), interpolation=cv2.INTER_AREA)).reshape(
            size, size, -1
        )
        for array in (picture, mask)
    )
    items = {"real": real.permute(2, 0, 1)[None], "mask": plane.permute(2, 0, 1)[None]}
    # The key depends on the name, so that the image does not depend on the other images.
    key = sample_key(seed, 0, zlib.crc32(photograph.name.encode()))
    images = data.images(items | {"key": torch.tensor([key])}, torch.device("cpu"))
    return shrink_foreground(images, args.shrink_foreground)


def shrink_foreground(images: Triple, factor: float) -> Triple:
    """Return images whose composite has a foreground of a lower resolution."""
    if factor == 1:
        return images
    size = images.composite.shape[-1]
    small = max(1, round(size / factor))
    coarse = interpolate(images.composite, (small, small), mode="bilinear", antialias=True)
    coarse = interpolate(coarse, (size, size), mode="bilinear").clamp(0, 1)
    return images._replace(composite=images.composite + images.mask * (coarse - images.composite))


def record_decoded(pipe: Any) -> list[Tensor]:
    """Return a list that receives all images decoded by a pipeline, `(N, 3, H, W)` in [0, 1]."""
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
    """Return the decoded and the pasted images, both `(B, 3, H, W)` in [0, 1]."""
    if pipe is None:
        return images.composite, images.composite
    generators = [torch.Generator().manual_seed(key) for key in keys]
    if isinstance(pipe, InpaintingBaseline):
        options = {"steps": args.steps, "guidance_scale": args.guidance_scale}
        raw = pipe.generate(images.composite, images.mask, prompts, generators, **options)
        return raw, images.mask * raw + (1 - images.mask) * images.composite
    composites = (255 * images.composite).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    masks = (255 * images.mask[:, 0]).round().to(torch.uint8).numpy()
    decoded = record_decoded(pipe)
    try:
        pasted = pipe(
            list(composites),
            list(masks),
            prompts,
            num_inference_steps=args.steps,
            guidance_scale=7.5 if args.guidance_scale is None else args.guidance_scale,
            high_scale=args.high_scale if args.high else 0.0,
            low_scale=args.low_scale if args.low else 0.0,
            init=args.init,
            strength=args.strength,
            detail=args.detail,
            generator=generators,
            context=10.0,  # the whole picture
            output_type="pt",
        ).images
    finally:
        del pipe.decode
    return torch.cat(decoded), pasted


def agreement_of_edges(image: Tensor, composite: Tensor, mask: Tensor, settings: ControlSettings) -> Tensor:
    """Compare the edges of results with those of the composite, inside the foreground, `(B,)`.

    Args:
        image: Results in [0, 1], `(B, 3, H, W)`.
        composite: Source of the control images, in [0, 1], `(B, 3, H, W)`.
        mask: `(B, 1, H, W)`.
        settings: How the control images are drawn. Their outline does not count: the mask gives it to any
            result.
    """
    inside = keep_inside(mask)[:, 0]
    drawn, wanted = (settings.draw(part, mask)[:, 0] for part in (image, composite))
    scores = [
        edge_agreement(*(plane.numpy() for plane in planes))
        for planes in zip(drawn, wanted, inside, strict=True)
    ]
    return torch.tensor(scores, dtype=torch.float64)


def score_batch(pipe: Any, args: argparse.Namespace, data: DiffusionData, indices: range) -> list[list[str]]:
    """Generate, save and score a batch of photographs and return their rows."""
    photographs = [data.samples.photographs[index] for index in indices]
    triples = [read_squashed(data, index, args) for index in indices]
    images = Triple(*(torch.cat(parts) for parts in zip(*triples, strict=True)))
    keys = [sample_key(args.seed, 1, zlib.crc32(photograph.name.encode())) for photograph in photographs]
    raw, pasted = generate(pipe, args, images, [data.prompts[index] for index in indices], keys)
    raw, pasted, real = ((255 * part).round() for part in (raw, pasted, images.real))
    scores = variant_scores(raw, pasted, real, images.mask)
    source = args.edges_like or args.high
    settings = load_control_settings(source) if source else ControlSettings("high")
    for protocol, levels in ((RAW, raw), (PASTED, pasted)):
        edges = agreement_of_edges(levels / 255, images.composite, images.mask, settings)
        scores[protocol]["edges"] = edges
    rows = []
    for place, photograph in enumerate(photographs):
        for folder, part in zip(FOLDERS, (raw, pasted, real, 255 * images.mask), strict=True):
            save_png(args.output / folder / f"{photograph.name}.png", part[place])
        ratio = {"foreground_ratio": images.mask[place].mean().item()}
        for protocol, metrics in scores.items():
            values = {name: value[place].item() for name, value in metrics.items()}
            cells = ratio | values
            rows.append(format_row(photograph.name, photograph.subset, protocol, cells, EXTRA_COLUMNS))
    return rows


def save_png(path: Path, levels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = levels.round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    write_atomically(path, lambda file: image.save(file, "PNG"), overwrite=True)


def load_model(args: argparse.Namespace) -> Any:
    if args.model == IDENTITY:
        return None
    if args.model != OURS:
        baseline = InpaintingBaseline(args.model, args.base)
        baseline.pipe.to(args.device)
        return baseline
    pipe = assemble_pipeline(args.base, high=args.high, low=args.low, working_size=args.size)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(args.device)


def evaluate(
    args: argparse.Namespace, data: DiffusionData, find_model: Callable[[], Any]
) -> dict[str, Distances]:
    """Write rows, pictures and distances to the output folder and return the distances by variant."""
    count = len(data.samples)
    units = [range(begin, min(begin + args.batch_size, count)) for begin in range(0, count, args.batch_size)]
    rows = ResumableRows(args.output, len(units), EXTRA_COLUMNS)
    settings = {name: str(value) for name, value in vars(args).items() if name not in NO_SETTINGS}
    rows.prepare(settings | {"samples": count, "columns": " ".join(rows.columns)})
    if pending := rows.pending():
        pipe = find_model()
        for unit in tqdm(pending, desc=args.output.name, unit=" batches", disable=None):
            rows.append(unit, score_batch(pipe, args, data, units[unit]))
    rows.finish()
    if args.extractor:
        network, name = load_extractor(args.extractor)
        options = {"size": args.extractor_size, "force": args.force, "device": args.device}
        distances = variant_distances(args.output, network.to(args.device), name, **options)
        for variant, distance in distances.items():
            path = args.output / f"fid_{variant}.json"
            write_distance(path, distance, foreground=variant.endswith("_foreground"))
    return read_distances(rows.target)


def run(args: argparse.Namespace) -> str:
    """Return the table of variants, or of the sweep."""
    data = open_data(
        args.data,
        args.split,
        args.size,
        filters=parse_filters(args.filter),
        captions=args.captions,
        caption_column=args.caption_column,
        perturb=args.perturb,
        limit=args.limit,
        ids=args.ids,
    )
    if not hasattr(data.samples, "photographs"):
        raise InputError(args.data, "contains composites, expected photographs with masks")
    find_model = cache(partial(load_model, args))
    if args.scale_grid:
        return run_grid(args, data, find_model)
    if not args.control_scale:
        distances = evaluate(args, data, find_model)
        scores = make_tables({args.output.name: read_rows(args.output / "rows.csv")}, resamples=0)
        return variants_markdown(scores, {args.output.name: distances})
    scales = parse_scales(args.control_scale)
    for scale in scales:
        own = {"output": args.output / scale_name(scale), "high_scale": scale, "low_scale": scale}
        evaluate(argparse.Namespace(**(vars(args) | own)), data, find_model)
    text = sweep_markdown(read_sweep(args.output / "{}" / "rows.csv", scales))
    write_atomically(args.output / "sweep.md", text.encode(), overwrite=True)
    return text


def run_grid(args: argparse.Namespace, data: DiffusionData, find_model: Callable[[], Any]) -> str:
    """Score every pair of scales; return the tables of FID and PSNR."""
    scales = parse_scales(args.scale_grid)
    for high, low in product(scales, scales):
        own = {"output": args.output / cell_name(high, low), "high_scale": high, "low_scale": low}
        evaluate(argparse.Namespace(**(vars(args) | own)), data, find_model)
    cells = read_grid(args.output, scales)
    text, picture = grid_markdown(cells), io.BytesIO()
    draw_grid(cells).save(picture, "PNG")
    files = {"grid.md": text.encode(), "grid.csv": grid_csv(cells).encode(), "grid.png": picture.getvalue()}
    for name, content in files.items():
        write_atomically(args.output / name, content, overwrite=True)
    return text


def main() -> None:
    keep_freed_memory()
    args = parse_args()
    try:
        with warnings.catch_warnings():
            # Show each note once, not for every variant and scale.
            warnings.filterwarnings("once", category=InputNote)
            print(run(args), end="")
    except (HarmonyError, OSError) as error:
        sys.exit(f"eval_controlnets: {error}")


if __name__ == "__main__":
    main()
