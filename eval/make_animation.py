"""Turn a clip into a short animated WebP for a page.

    harmony video examples/clip.mp4 examples/clip_mask.mp4 -o outputs/clip.mp4 --side-by-side
    python eval/make_animation.py outputs/clip_before_after.mp4 --quality 50 \
        --output docs/video_before_after.webp

The animation repeats for ever, at the speed of the clip.
"""

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.video.files import read_frames, read_info


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip")
    parser.add_argument("--every", type=int, default=4, help="take every n-th frame (default: 4)")
    parser.add_argument("--width", type=int, default=580, help="of the animation in pixels (default: 580)")
    parser.add_argument("--quality", type=int, default=70, help="of WebP (default: 70)")
    parser.add_argument("--output", type=Path, required=True, help="file to write, replaced if it exists")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        info = read_info(args.clip)
        height = round(args.width * info.size[0] / info.size[1])
        frames = [
            Image.fromarray(frame.thumbnail(height, args.width))
            for index, frame in enumerate(read_frames(info))
            if index % args.every == 0
        ]
        file = io.BytesIO()
        milliseconds = round(1000 * args.every / float(info.rate))
        options = {"duration": milliseconds, "loop": 0, "quality": args.quality, "method": 6}
        frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], **options)
        write_atomically(args.output, file.getvalue(), overwrite=True)
    except (HarmonyError, OSError) as error:
        sys.exit(f"make_animation: {error}")
    print(args.output)


if __name__ == "__main__":
    main()
