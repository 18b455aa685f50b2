"""Make composites with ground truth from clips: the object of one frame on another frame of its clip.

    python eval/make_frame_composites.py CLIPS OUT --pairs 8
    python eval/eval_dataset.py --data OUT --model color_grid --output outputs/frames

CLIPS is HYouTube, or a folder of clips: `CLIP/FRAME.jpg` beside `CLIP/FRAME.png`, its mask (DAVIS 2016). The
object of frame A is cut with an eroded, soft mask and pasted at its own place onto frame B, where the object
of B was filled from around. Both frames have nearly the same light, so this paste is the ground truth. In the
composite, the object is recoloured first: from the colours of another clip's object (HTransfer), by a global
retouch (HRetouch), and by light that varies over it (HLight), as in training. A recolouring is drawn again
until its foreground MSE is 80 to 6000; after 20 draws the composite is left out.

OUT has the layout of iHarmony4. Composites are named `CLIP@A-B_1_1`, with the numbers of the two frames.
Bootstrap intervals resample clips, see `Row.photograph`.
"""

import argparse
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harmony_diffusion.data.clips import ClipSample, list_clips
from harmony_diffusion.data.keyed_random import generator_of, sample_key
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.synthesis.composites import SyntheticComposites, reference_colors
from harmony_diffusion.data.synthesis.placement import IN_PLACE, fill_background
from harmony_diffusion.errors import HarmonyError, InputError, MaskError, OutputError, SizeMismatchError
from harmony_diffusion.images.output_folders import write_folder_atomically
from harmony_diffusion.images.quick_decoding import read_pair
from harmony_diffusion.morphology import dilate, erode
from harmony_diffusion.numbers import check_integer

KINDS = {"HTransfer": "transfer", "HRetouch": "retouch", "HLight": "light"}
FMSE_RANGE, DRAWS = (80, 6000), 20
FILL_MARGIN = 4  # pixels around the object of B that are filled too: its rim and motion blur
LEAST_AREA = 0.01  # smallest share of the frame that the object of A covers


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, metavar="CLIPS")
    parser.add_argument("out", type=Path, metavar="OUT", help="new or empty folder")
    parser.add_argument("--gap", type=int, default=10, help="least distance of the two frames (default: 10)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of frames per clip (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=320, help="longer side in pixels (default: 320)")
    return parser.parse_args()


def read_frame(clip: ClipSample, number: int, size: int) -> tuple[Tensor, Tensor]:
    """Return a frame `(1, 3, H, W)` and its mask `(1, 1, H, W)`, 0 or 255, both uint8, resized to `size`."""
    picture, mask = read_pair(clip.real[number], clip.masks[number])
    scale = min(1.0, size / max(mask.shape))
    shape = [max(1, round(side * scale)) for side in mask.shape[::-1]]
    picture, mask = (cv2.resize(part, shape, interpolation=cv2.INTER_AREA) for part in (picture, mask))
    hard = torch.from_numpy(mask)[None, None] > 127
    return torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous(), hard.byte() * 255


def draw_pairs(
    clip: ClipSample, name: str, args: argparse.Namespace
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield name, frame A, its mask, and frame B without its object, at most `--pairs` times.

    Raises:
        InputError: No pair can be used, or its frames differ in size.
    """
    count, drawn = len(clip.real), 0
    pairs = [(a, b) for a in range(count) for b in range(count) if abs(a - b) >= args.gap]
    generator = generator_of(sample_key(args.seed, 0, zlib.crc32(name.encode())), "pairs")
    for place in generator.permutation(len(pairs)):
        a, b = pairs[place]
        try:
            (frame, mask), (other, hidden) = (read_frame(clip, number, args.size) for number in (a, b))
        except MaskError:  # the object is out of the frame
            continue
        if frame.shape != other.shape:
            raise SizeMismatchError(clip.real[b], f"has another size than {clip.real[a].name}")
        if (soft_mask(mask) > 0.5).float().mean() < LEAST_AREA:
            continue
        filled = fill_background(other.float() / 255, dilate(hidden.float() / 255, FILL_MARGIN))
        yield f"{name}@{a:05d}-{b:05d}", frame, mask, filled
        drawn += 1
        if drawn == args.pairs:
            return
    if not drawn:
        reason = f"holds no usable pair of frames: {count} frames, an object in both, --gap {args.gap}"
        raise InputError(clip.real[0].parent, reason, "Set a smaller --gap, or remove the clip.")


def soft_mask(mask: Tensor) -> Tensor:
    """Erode a mask by a pixel and soften it inside, `(1, 1, H, W)` in multiples of 1/255."""
    blurred = cv2.GaussianBlur(erode(mask.float(), 1)[0, 0].numpy(), (0, 0), 0.8)
    return torch.from_numpy(blurred).round() / 255 * (mask > 0)


def paste(foreground: Tensor, background: Tensor, opacity: Tensor) -> np.ndarray:
    """Paste `(1, 3, H, W)` in [0, 1] and return `(H, W, 3)` uint8."""
    image = torch.lerp(background, foreground, opacity).clamp(0, 1).mul(255).round().byte()
    return image[0].permute(1, 2, 0).contiguous().numpy()


def make_composites(args: argparse.Namespace, clips: dict[str, ClipSample], out: Path) -> None:
    """Write the composites and the lists of their names into a folder."""
    lists: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for part in ("composite_images", "masks", "real_images"):
            (out / kind / part).mkdir(parents=True)
    for clip_name, clip in clips.items():
        others = [other for other in clips.values() if other is not clip]
        files = [pair for other in others for pair in zip(other.real, other.masks, strict=True)]
        references = reference_colors([Photograph(str(p), "", p, m) for p, m in files], 64, skip_bad=True)
        for name, frame, mask, filled in draw_pairs(clip, clip_name, args):
            opacity = soft_mask(mask)
            real, inside = paste(frame.float() / 255, filled, opacity), opacity[0, 0].numpy() > 0.5
            for kind, own in KINDS.items():
                maker = SyntheticComposites(references, {own: 1}, 0, imperfect=False, placements=IN_PLACE)
                for draw in range(DRAWS):
                    key = torch.tensor([sample_key(args.seed, draw, zlib.crc32(name.encode()))])
                    composite = paste(maker(frame, mask, key).composite, filled, opacity)
                    difference = composite[inside].astype(np.float64) - real[inside]
                    if FMSE_RANGE[0] <= np.mean(difference**2) <= FMSE_RANGE[1]:
                        break
                else:
                    continue
                plane = (opacity[0, 0] * 255).round().byte().numpy()
                Image.fromarray(composite).save(out / kind / "composite_images" / f"{name}_1_1.png")
                Image.fromarray(plane).save(out / kind / "masks" / f"{name}_1.png")
                Image.fromarray(real).save(out / kind / "real_images" / f"{name}.png")
                lists[kind].append(f"{name}_1_1.png")
    for kind, names in lists.items():
        (out / kind / f"{kind}_test.txt").write_text("".join(f"{name}\n" for name in names))
    lines = [f"{kind}/composite_images/{name}\n" for kind in sorted(lists) for name in lists[kind]]
    (out / "IHD_test.txt").write_text("".join(lines))
    print(", ".join(f"{kind}: {len(names)}" for kind, names in lists.items()))


def main() -> None:
    args = parse_args()
    cv2.setNumThreads(1)
    try:
        for name, least in (("gap", 1), ("pairs", 1), ("seed", 0), ("size", 64)):
            check_integer(f"--{name}", getattr(args, name), least)
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise OutputError(args.out, "exists and is not an empty folder", "Choose another name.")
        if not args.clips.is_dir():
            raise InputError(args.clips, "is not a folder")
        # `list_clips` lists a folder of real clips once for each of its own transforms.
        clips = {clip.real[0].parent.name: clip for clip in list_clips(args.clips)}
        if len(clips) < 2:
            reason = "holds one clip, but HTransfer needs the object of another"
            raise InputError(args.clips, reason, "Add a clip.")
        write_folder_atomically(args.out, partial(make_composites, args, clips))
    except (HarmonyError, OSError) as error:
        sys.exit(f"make_frame_composites: {error}")


if __name__ == "__main__":
    main()
