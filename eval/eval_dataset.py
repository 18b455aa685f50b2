"""Score a model, a pipeline or a folder of predictions on composites with ground truth.

    python eval/eval_dataset.py --data PATH/TO/IHARMONY4 --model mkl --output outputs/mkl
    python eval/eval_dataset.py --data PATH/TO/IHARMONY4 --predictions PATH --protocol all --output outputs/x
    torchrun --nproc_per_node 2 eval/eval_dataset.py --data PATH --model hdnet/model --output outputs/hdnet
    python eval/eval_dataset.py --data PATH --model paint-by-example --base FOLDER_OR_ID --output outputs/pbe
    python eval/eval_dataset.py --data PATH --model FOLDER --call low_scale=0.7 detail=preserve --output out

Each prediction is scored with every protocol in `--protocol` (`docs/evaluation.md` describes them). The
script writes `OUTPUT/rows.csv` with one row per image and protocol, in the order of the data set. If the
process was killed, the same command resumes and produces the same file, byte for byte.

By default a model harmonizes composites at full resolution, like the pipeline. `--size 256` harmonizes
256x256 copies, as in papers; with it, `--raw` scores the network output before the original background is
restored. SSIM takes longer than all other metrics together and is only computed with `--metrics all` or by
name. `--call` passes arguments to the pipeline. `--mask-offset 2` gives the method masks that are 2 pixels
too large (-2: too small). `--untouched` gives it the real images, so that every change is an error. Both are
scored on the true mask.

`--model sd-inpainting` and `--model paint-by-example` are diffusers' own pipelines with the weights in
`--base`. They generate the foregrounds of square copies (`--size`, default: their training size). The
condition is the prompt of the sample, or for Paint by Example the original foreground, cut out. The original
background is pasted back unless `--raw` is given. `eval_controlnets.py` scores both variants in one run.
"""

import argparse
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from accelerate import PartialState
from PIL import Image

import harmony_diffusion
from harmony_diffusion.data.iharmony4 import SUFFIXES
from harmony_diffusion.data.layouts import list_dataset
from harmony_diffusion.data.record_files import read_ids
from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.errors import HarmonyError, InputError, SizeMismatchError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.images.quick_decoding import read_mask, read_picture
from harmony_diffusion.metrics.protocols import COLOR_METRICS, METRICS, Protocol, find_protocols, score
from harmony_diffusion.metrics.rows import ResumableRows, format_row, mean_rows
from harmony_diffusion.process import keep_freed_memory

_DIGITS = {"ssim": 4, "fssim": 4}
BASELINES = ("sd-inpainting", "paint-by-example")
_OWN_ARGUMENTS = ("self", "composite", "mask", "prompt", "generator", "output_type", "return_dict")
FAST_METRICS = ("mse", "psnr", "fab", "fmse", "fpsnr", "bmse")


class Case(NamedTuple):
    """A decoded sample: pictures `(H, W, 3)` and mask `(H, W)` uint8; no composite if it is not needed."""

    sample: HarmonySample
    real: np.ndarray
    mask: np.ndarray
    composite: np.ndarray | None


Predict = Callable[[Sequence[Case]], list[np.ndarray]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="data set of any layout except tar shards")
    parser.add_argument("--split", choices=("train", "val", "validation", "test"), default="test")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model",
        help="registry name, folder of a saved model or pipeline, sd-inpainting or paint-by-example",
    )
    what.add_argument("--predictions", type=Path, help="folder with NAME.png or SUBSET/NAME.png (or .jpg)")
    parser.add_argument("--base", help="weights of sd-inpainting or paint-by-example: folder or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder for rows.csv")
    parser.add_argument("--protocol", default="default", help="comma-separated names, or all")
    parser.add_argument("--metrics", default=",".join(FAST_METRICS), help="comma-separated names, or all")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch (default: 8)")
    parser.add_argument("--size", type=int, help="harmonize square copies with this side in pixels")
    parser.add_argument(
        "--call", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of the pipeline"
    )
    parser.add_argument(
        "--mask-offset",
        type=int,
        default=0,
        metavar="PIXELS",
        help="dilate (above 0) or erode the given masks",
    )
    parser.add_argument("--untouched", action="store_true", help="give real images instead of composites")
    parser.add_argument("--raw", action="store_true", help="score the network output without blending")
    parser.add_argument("--seed", type=int, default=0, help="seed of pipelines that draw noise")
    parser.add_argument("--limit", type=int, help="score only the first N samples of each subset")
    parser.add_argument("--ids", type=Path, help="score only the names in this file, one per line")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="write DIR/SUBSET/NAME.png")
    parser.add_argument("--timing", action="store_true", help="print the time without imports")
    parser.add_argument("--restart", action="store_true", help="delete the rows of an earlier run")
    args = parser.parse_args()
    baseline = args.model in BASELINES
    if args.base and not baseline:
        parser.error("--base requires --model sd-inpainting or paint-by-example")
    if args.predictions and (args.mask_offset or args.untouched):
        parser.error("--mask-offset and --untouched require --model")
    if args.raw and not args.size and not baseline:
        parser.error("--raw requires --size")
    if args.call and (not args.model or baseline or args.size):
        parser.error("--call requires --model with a registry name or a saved folder, without --size")
    if args.batch_size < 1 or (args.size is not None and args.size < 32):
        parser.error("--batch-size must be at least 1, and --size at least 32")
    return args


def list_samples(args: argparse.Namespace) -> list[HarmonySample]:
    """List the samples to score, subset by subset."""
    # With --ids, missing files of samples that are not listed are ignored.
    listing = list_dataset(args.data, args.split, problems=[] if args.ids else None)
    # A photograph is composite and ground truth: the score measures its reconstruction.
    samples = listing.samples or [
        HarmonySample(p.name, listing.layout, p.picture, p.mask, p.picture) for p in listing.photographs
    ]
    if args.ids:
        wanted = set(read_ids(args.ids))
        samples = [sample for sample in samples if sample.name in wanted]
        if missing := sorted(wanted - {sample.name for sample in samples}):
            raise InputError(args.ids, f"names {len(missing)} missing samples, for example {missing[0]}")
    subsets = dict.fromkeys(sample.subset for sample in samples)
    by_subset = [[sample for sample in samples if sample.subset == subset] for subset in subsets]
    return [sample for part in by_subset for sample in part[: args.limit]]


def decode(sample: HarmonySample, *, composite: bool) -> Case:
    real, mask = read_picture(sample.real), read_mask(sample.mask)
    if mask.shape != real.shape[:2] and sample.composite == sample.real:  # as in Open Images
        height, width = real.shape[:2]
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    picture = None
    if composite:
        picture = real if sample.composite == sample.real else read_picture(sample.composite)
        if picture.shape != real.shape:
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (picture, real)]
            raise SizeMismatchError(sample.composite, f"is {sizes[0]}, its real is {sizes[1]}")
    return Case(sample, real, mask, picture)


def offset_mask(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Dilate a mask by `pixels`, or erode it if negative. A mask that would vanish is not changed."""
    if not pixels:
        return mask
    kernel = np.ones((2 * abs(pixels) + 1,) * 2, np.uint8)
    moved = cv2.dilate(mask, kernel) if pixels > 0 else cv2.erode(mask, kernel)
    return moved if moved.any() else mask


def read_predictions(folder: Path) -> Predict:
    """Return a function that finds predictions by name. The folder is listed once."""
    if not folder.is_dir():
        raise InputError(folder, "does not exist or is not a folder")
    files: dict[str, Path] = {}
    for place, _, names in os.walk(folder):
        prefix = Path(place).relative_to(folder).as_posix()
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                key = stem if prefix == "." else f"{prefix}/{stem}"
                if key in files:
                    raise InputError(folder / key, f"exists twice: {files[key].name} and {name}")
                files[key] = Path(place, name)

    def predict(cases: Sequence[Case]) -> list[np.ndarray]:
        images = []
        for sample, *_ in cases:
            path = files.get(f"{sample.subset}/{sample.name}") or files.get(sample.name)
            if path is None:
                raise InputError(folder / sample.subset / sample.name, "is missing among the predictions")
            images.append(read_picture(path))
        return images

    return predict


def load_predictor(args: argparse.Namespace, device: torch.device) -> Predict:
    if args.predictions:
        return read_predictions(args.predictions)
    # Imported here, because the import takes longer than scoring a thousand predictions.
    from harmony_diffusion.models import load_model
    from harmony_diffusion.pipelines.call_defaults import parse_call
    from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

    if args.model in BASELINES:
        from harmony_diffusion.pipelines.baselines import InpaintingBaseline

        baseline = InpaintingBaseline(args.model, args.base)
        baseline.pipe.to(device)
        return partial(predict_with_baseline, baseline, args.size or baseline.size, args.raw, args.seed)
    if (Path(args.model) / "model_index.json").is_file():
        pipe = load_pipeline(Path(args.model))
    else:
        pipe = HarmonizationPipeline(load_model(args.model))
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if args.size:
        if not isinstance(pipe, HarmonizationPipeline):
            raise InputError("--size", f"is not supported for {type(pipe).__name__}", "Omit --size")
        return partial(predict_copies, pipe.model, device, args.size, args.raw)
    names = [name for name in signature(pipe.__call__).parameters if name not in _OWN_ARGUMENTS]
    options = parse_call(args.call, names)
    if isinstance(pipe, HarmonizationPipeline):
        return partial(predict_with_model, pipe, options)
    return partial(predict_with_pipeline, pipe, options, args.seed)


def load_pipeline(folder: Path) -> Any:
    """Load a saved pipeline: ours with their class, others with `DiffusionPipeline`."""
    from diffusers import DiffusionPipeline

    name = DiffusionPipeline.load_config(folder)["_class_name"]
    name = name[1] if isinstance(name, list) else name
    own = getattr(harmony_diffusion, name) if name in harmony_diffusion.__all__ else DiffusionPipeline
    return own.from_pretrained(folder)


def predict_with_model(pipe: Any, options: dict[str, Any], cases: Sequence[Case]) -> list[np.ndarray]:
    """Harmonize composites at full resolution. The pipeline processes one composite at a time."""
    images = []
    for case in cases:
        try:
            images += pipe(case.composite, case.mask, output_type="array", **options).images
        except InputError as error:
            raise InputError(f"{case.sample.subset}/{case.sample.name}", str(error)) from error
    return images


def predict_with_pipeline(
    pipe: Any, options: dict[str, Any], seed: int, cases: Sequence[Case]
) -> list[np.ndarray]:
    """Harmonize with any pipeline that has the same call as ours."""
    if missing := {"composite", "mask"} - {*signature(pipe.__call__).parameters}:
        reason = f"is not a harmonization pipeline: it has no argument {' and no '.join(sorted(missing))}"
        raise InputError(type(pipe).__name__, reason)
    seeded = "generator" in signature(pipe.__call__).parameters
    images = []
    for sample, _, mask, composite in cases:
        own = options | {"output_type": "pil"} | ({"generator": generator_of(sample, seed)} if seeded else {})
        image = pipe(Image.fromarray(composite), Image.fromarray(mask), sample.prompt, **own).images[0]
        images.append(np.asarray(image.convert("RGB")))
    return images


def generator_of(sample: HarmonySample, seed: int) -> torch.Generator:
    """Return a generator seeded by the name, so that noise does not depend on order or processes."""
    return torch.Generator().manual_seed(seed + zlib.crc32(f"{sample.subset}/{sample.name}".encode()))


def predict_with_baseline(
    baseline: Any, size: int, raw: bool, seed: int, cases: Sequence[Case]
) -> list[np.ndarray]:
    """Generate the foregrounds of square copies, `(size, size, 3)` float32 in [0, 255]."""
    composite, mask = square_copies(cases, size)
    prompts = [case.sample.prompt or "" for case in cases]
    generators = [generator_of(case.sample, seed) for case in cases]
    images = baseline.generate(composite, mask, prompts, generators)
    images = images if raw else mask * images + (1 - mask) * composite
    return list((images * 255).permute(0, 2, 3, 1).numpy())


def square_copies(cases: Sequence[Case], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return composites `(B, 3, size, size)` in [0, 1] and binary masks `(B, 1, size, size)`."""
    composites, masks = [], []
    for case in cases:
        small = Image.fromarray(case.composite).resize((size, size), Image.Resampling.BILINEAR)
        composites.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
        hard = (case.mask > 127).astype(np.float32)
        masks.append(torch.from_numpy(cv2.resize(hard, (size, size), interpolation=cv2.INTER_NEAREST))[None])
    return torch.stack(composites).float() / 255, torch.stack(masks)


@torch.inference_mode()
def predict_copies(
    model: Any, device: torch.device, size: int, raw: bool, cases: Sequence[Case]
) -> list[np.ndarray]:
    """Harmonize a batch of square copies, `(size, size, 3)` float32 in [0, 255], as in papers."""
    composite, mask = (part.to(device) for part in square_copies(cases, size))
    if raw and not model.num_parameters():
        raise InputError("--raw", f"requires a network, got {type(model).__name__}", "Omit --raw")
    harmonized = model.predict(composite, mask).clamp(0, 1) if raw else model(composite, mask)
    return list((harmonized.float() * 255).permute(0, 2, 3, 1).cpu().numpy())


def extra_columns(metrics: Sequence[str]) -> list[str]:
    """Return the metrics that are columns only where they are asked for."""
    return [metric for metric in COLOR_METRICS if metric in metrics]


def score_batch(
    samples: Sequence[HarmonySample],
    predict: Predict,
    protocols: dict[str, Protocol],
    metrics: Sequence[str],
    *,
    needs_composite: bool,
    save_images: Path | None,
    mask_offset: int = 0,
    untouched: bool = False,
) -> list[list[str]]:
    """Return the rows of a batch."""
    cases = [decode(sample, composite=needs_composite) for sample in samples]
    if untouched:
        cases = [case._replace(composite=case.real) for case in cases]
    given = [case._replace(mask=offset_mask(case.mask, mask_offset)) for case in cases]
    rows = []
    for case, harmonized in zip(cases, predict(given), strict=True):
        sample = case.sample
        if save_images:
            save_image(harmonized, save_images / f"./{sample.subset}/{sample.name}.png")
        try:
            scores = score([*protocols.values()], harmonized, case.real, case.mask, case.composite, metrics)
        except InputError as error:
            raise InputError(f"{sample.subset}/{sample.name}", str(error)) from error
        for name, values in zip(protocols, scores, strict=True):
            rows.append(format_row(sample.name, sample.subset, name, values, extra_columns(metrics)))
    return rows


def save_image(image: np.ndarray, path: Path) -> None:
    if ".." in path.parts:
        raise InputError(path, "is outside the folder of --save-images")
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)
    write_atomically(path, lambda file: Image.fromarray(levels).save(file, "PNG"), overwrite=True)


def weights_of(model: str) -> Path:
    """Return the folder of a model's weights: the given folder, or the folder in the package."""
    from harmony_diffusion.models import DEFAULT_MODEL, WEIGHTS

    return Path(model) if Path(model).is_dir() else WEIGHTS / (DEFAULT_MODEL if model == "default" else model)


def settings_of(
    args: argparse.Namespace, samples: Sequence[HarmonySample], protocols: dict[str, Protocol]
) -> dict[str, Any]:
    """Return all settings that the rows depend on."""
    names = "\n".join(f"{sample.subset}/{sample.name}" for sample in samples)
    places = weights_of(args.base or args.model).rglob("*") if args.model else ()
    files = sorted(path for path in places if path.is_file())
    weights = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return {
        "version": harmony_diffusion.__version__,
        "data": str(args.data.resolve()),
        "samples": f"{len(samples)} {sha256(names.encode()).hexdigest()}",
        "model": args.model,
        "weights": sha256("\n".join(weights).encode()).hexdigest(),
        "predictions": args.predictions and str(args.predictions.resolve()),
        "save_images": args.save_images and str(args.save_images.resolve()),
        "protocols": {name: asdict(protocol) for name, protocol in protocols.items()},
        **{
            key: getattr(args, key)
            for key in (
                "base",
                "call",
                "metrics",
                "batch_size",
                "size",
                "raw",
                "seed",
                "mask_offset",
                "untouched",
            )
        },
    }


def find_metrics(names: str) -> tuple[str, ...]:
    known = (*METRICS, *COLOR_METRICS)
    wanted = known if names == "all" else tuple(name.strip() for name in names.split(","))
    if unknown := sorted(set(wanted) - set(known)):
        raise InputError("--metrics", f"expected {', '.join(known)} or all, got {unknown[0]!r}")
    return wanted


def print_means(title: str, rows: Path, metrics: Sequence[str]) -> None:
    means = mean_rows(rows)
    print(f"| {title} | subset | images | " + " | ".join(metrics) + " |")
    print("|---|---" + "|---:" * (1 + len(metrics)) + "|")
    for protocol in dict.fromkeys(key[0] for key in means):
        # "all" is the mean over images, not over subsets.
        lines = sorted((key for key in means if key[0] == protocol), key=lambda key: key[1] == "all")
        for key in lines:
            found = (f"{means[key].get(metric, math.nan):.{_DIGITS.get(metric, 2)}f}" for metric in metrics)
            print(f"| {protocol} | {key[1]} | {means[key]['images']:.0f} | " + " | ".join(found) + " |")
    for (protocol, subset), mean in means.items():
        if subset == "all" and mean["empty"]:
            count = f"{mean['empty']:.0f} images have no foreground"
            print(f"{protocol}: {count} and thus no fmse, fpsnr and fssim")


def print_timing(seconds: float, busy: float) -> None:
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"scored in {seconds:.3f} s, {busy:.3f} s of CPU, peak {peak:.1f} MiB", file=sys.stderr)


def run(args: argparse.Namespace) -> None:
    protocols, metrics = find_protocols(args.protocol), find_metrics(args.metrics)
    samples = list_samples(args)
    batches = [samples[i : i + args.batch_size] for i in range(0, len(samples), args.batch_size)]
    state = PartialState(cpu=not torch.cuda.is_available())
    rows = ResumableRows(args.output, len(batches), extra_columns(metrics))
    # Load before writing, because loading may fail. Skip loading if no batch is left.
    predict = load_predictor(args, state.device) if args.restart or rows.pending() else None
    if state.is_main_process:
        rows.prepare(settings_of(args, samples, protocols), restart=args.restart)
    state.wait_for_everyone()
    pending = rows.pending()
    state.wait_for_everyone()  # all processes must read the same list before anyone appends
    if len(pending) < len(batches) and state.is_main_process:
        print(f"{len(batches) - len(pending)} of {len(batches)} batches are already done", file=sys.stderr)

    mine = pending[state.process_index :: state.num_processes]
    start, busy = time.perf_counter(), time.process_time()
    pastes = any(protocol.background == "composite" for protocol in protocols.values())
    for unit in mine:
        # Predictions are read one by one to stay in the cache; only models gain from batches.
        step = 1 if args.predictions else args.batch_size
        found: list[list[str]] = []
        for first in range(0, len(batches[unit]), step):
            found += score_batch(
                batches[unit][first : first + step],
                predict,
                protocols,
                metrics,
                needs_composite=args.predictions is None or pastes,
                save_images=args.save_images,
                mask_offset=args.mask_offset,
                untouched=args.untouched,
            )
        rows.append(unit, found)
    state.wait_for_everyone()
    if state.is_main_process:
        rows.finish()
    if args.timing:
        print_timing(time.perf_counter() - start, time.process_time() - busy)
    if state.is_main_process:
        print_means(args.model or args.predictions.name, rows.target, metrics)


def main() -> int:
    keep_freed_memory()
    # One thread per process, so that processes on the same cores do not wait for each other.
    cv2.setNumThreads(1)
    try:
        run(parse_args())
    except HarmonyError as error:
        print(f"eval_dataset: {error}", file=sys.stderr)
        return 2
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
