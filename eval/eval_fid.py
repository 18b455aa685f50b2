"""Compute FID and KID between a folder of results and a folder of real images, and optionally LPIPS.

    python eval/eval_fid.py outputs/hdnet/harmonized PATH/TO/REAL --extractor inception.safetensors \
        --output outputs/hdnet/fid.json

`--extractor` is a TorchScript module that takes (B, 3, H, W) float32 in [0, 255], such as
inception-2015-12-05.pt of clean-fid (with `--resize clean`), or safetensors weights of
`harmony_diffusion.metrics.inception.FIDInception` with the keys of pytorch-fid. A TorchScript file contains a
program: use only files that you trust. Fewer than 2,048 images require `--force`. The result records the hash
of the extractor file and the resize mode. Values with different extractors or resize modes are not
comparable.

LPIPS pairs the files of the two folders by name. `--masks` crops both pictures to the bounding box of the
mask of the same name, to compare foregrounds. `--against OTHER …` compares the distances of these results
with the distances of other results, with 95 % intervals over random halves of the images.
"""

import argparse
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harmony_diffusion.errors import HarmonyError, InputError, InputNote, SizeMismatchError
from harmony_diffusion.metrics.fid import RESIZE_MODES, compare_features, extract_features, load_extractor
from harmony_diffusion.metrics.lpips import LPIPS
from harmony_diffusion.process import keep_freed_memory
from harmony_diffusion.reports.fid_comparison import compare_sets
from harmony_diffusion.reports.fid_folders import list_pictures, read_pictures, write_distance


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generated", type=Path, help="folder of results, including subfolders")
    parser.add_argument("real", type=Path, help="folder of real images")
    parser.add_argument(
        "--extractor", type=Path, required=True, help="feature network: TorchScript or safetensors"
    )
    parser.add_argument("--resize", choices=tuple(RESIZE_MODES), default="clean")
    parser.add_argument("--size", type=int, default=299, help="input side of the network in pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="seed of the KID subsets")
    parser.add_argument("--masks", type=Path, help="folder of masks; compares foregrounds only")
    parser.add_argument("--force", action="store_true", help="accept fewer than 2,048 images")
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], help="results of other methods on the same images"
    )
    parser.add_argument("--lpips-backbone", type=Path, help="AlexNet's ImageNet weights")
    parser.add_argument("--lpips-heads", type=Path, help="heads of LPIPS 0.1 for AlexNet")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    if bool(args.lpips_backbone) != bool(args.lpips_heads):
        parser.error("--lpips-backbone and --lpips-heads require each other")
    return args


def check_names(listed: list[tuple[Path, list[Path]]]) -> None:
    """Check that all folders contain images with the same names.

    Raises:
        InputError: The names in a folder differ from those in the first folder.
    """
    names = [{path.relative_to(folder).with_suffix("") for path in paths} for folder, paths in listed]
    for (folder, _), found in zip(listed, names, strict=True):
        if found != names[0]:
            name = min(found ^ names[0])
            raise InputError(folder, f"must have the same images as {listed[0][0]}: {name} is only in one")


@torch.no_grad()
def mean_lpips(args: argparse.Namespace, generated: list[Path], real: list[Path]) -> dict[str, float | int]:
    model = LPIPS.from_files(args.lpips_backbone, args.lpips_heads).to(args.device)
    of_real = {path.relative_to(args.real).with_suffix(""): path for path in real}
    names = [path.relative_to(args.generated).with_suffix("") for path in generated]
    if absent := [name for name in names if name not in of_real]:
        raise InputError(args.real, f"has no picture {absent[0]} ({len(absent)} missing), required for LPIPS")
    values = []
    for path, name in zip(generated, names, strict=True):
        first, second = (
            torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(args.device)
            for image in read_pictures((path, of_real[name]))
        )
        if first.shape != second.shape:
            raise SizeMismatchError(path, f"differs in size from {of_real[name]}")
        values.append(model(first, second).item())
    return {"lpips": float(np.mean(values)), "lpips_pairs": len(values)}


def main() -> None:
    keep_freed_memory()
    args = parse_args()
    try:
        folders = [args.generated, args.real, *args.against]
        listed = [(folder, list_pictures(folder)) for folder in folders]
        if args.against:
            check_names(listed)
        network, extractor = load_extractor(args.extractor)
        network.to(args.device)
        options = {"resize": args.resize, "size": args.size}
        run = {"batch_size": args.batch_size, "device": args.device, **options}
        features = [
            extract_features(read_pictures(paths, folder, args.masks), network, **run)
            for folder, paths in listed
        ]
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", InputNote)
            distance = compare_features(
                *features[:2], extractor=extractor, force=args.force, seed=args.seed, **options
            )
        for note in notes:
            print(f"note: {note.message}", file=sys.stderr)
        comparisons = {
            "/".join(folder.parts[-2:]): compare_sets(features[0], other, features[1], seed=args.seed)
            for folder, other in zip(args.against, features[2:], strict=True)
        }
        lpips = mean_lpips(args, listed[0][1], listed[1][1]) if args.lpips_heads else {}
        others: dict[str, Any] = {**lpips}
        if comparisons:
            others["less"] = {name: asdict(comparison) for name, comparison in comparisons.items()}
        if args.output:
            write_distance(args.output, distance, foreground=bool(args.masks), **others)
    except (HarmonyError, OSError) as error:
        sys.exit(f"eval_fid: {error}")
    print(f"FID {distance.fid:.3f}   KID {distance.kid:.6f} ± {distance.kid_deviation:.6f}")
    print(f"{distance.generated:,} generated, {distance.real:,} real; resize {args.resize}; {extractor}")
    for name, comparison in comparisons.items():
        fid, kid = comparison.fid, comparison.kid
        print(
            f"less {name}: FID {fid.mean:+.2f} [{fid.low:+.2f}, {fid.high:+.2f}]   KID x 1000 "
            f"{1000 * kid.mean:+.2f} [{1000 * kid.low:+.2f}, {1000 * kid.high:+.2f}]   over "
            f"{comparison.halves} random halves"
        )
    if lpips:
        print(f"LPIPS {lpips['lpips']:.4f} ({lpips['lpips_pairs']:,} pairs)")


if __name__ == "__main__":
    main()
