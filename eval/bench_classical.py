"""Compare the methods without weights with scikit-image, OpenCV and color-matcher, on one thread.

    taskset -c 0 python eval/bench_classical.py --output docs/speed/classical.json
    taskset -c 0 python eval/bench_classical.py --before ../checkout-of-an-older-commit

A picture of 1024x768 in 8 bits with a soft foreground of 20 % goes from array to array. Ours is
`harmonize_picture`. A peer gets the foreground and background pixels as arrays of the kind that it wants
(color-matcher: floats), and its result is written back into the picture; `cv2.seamlessClone` gets the whole
picture. Peers that are not installed are left out. With `--before`, the same call of an older checkout takes
its turn as well, in a process of its own, and its result is compared with ours.

All take turns. Ratios are medians over the rounds, of processor time; the wall stands beside it. As in all
programs of this project freed memory is kept for the next picture (`HARMONY_KEEP_MEMORY=0` switches this off,
for peers too); the older checkout runs as it was.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import cv2
import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PEERS = {
    "reinhard": "color_matcher",
    "mkl": "color_matcher",
    "histogram_matching": "skimage",
    "idt": None,
    "poisson": "cv2",
}
# At most these shares of the peer's time, and of the time before.
BARS = {"reinhard": 1.3, "mkl": 1.3, "histogram_matching": 2.0, "poisson": 2.5}
BARS_BEFORE = {"idt": 0.25}
FOREGROUND_RATIO = 0.2
Scene = tuple[np.ndarray, np.ndarray]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 768), metavar=("W", "H"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="checkout of an older commit")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_scene(width: int, height: int) -> Scene:
    """Return the demo picture with grain and a warm ellipse, `(H, W, 3)` uint8, and its soft mask."""
    with Image.open(EXAMPLES / "composite.jpg") as file:
        image = np.asarray(file.convert("RGB").resize((width, height)), np.float32)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mask = cv2.GaussianBlur((y * y + x * x < FOREGROUND_RATIO * 4 / np.pi).astype(np.float32), (0, 0), 1)
    mask[mask < 0.01], mask[mask > 0.99] = 0, 1
    warm = image * np.float32([1.15, 0.95, 0.8]) + np.float32([10, 0, -5])
    image = image + mask[..., None] * (warm - image)
    image += np.random.default_rng(0).normal(0, 2, image.shape)
    return np.rint(image).clip(0, 255).astype(np.uint8), mask


def our_method(name: str, scene: Scene) -> Callable[[], np.ndarray]:
    """Return the call of ours; the modules exist in older checkouts too."""
    import torch

    from harmony_diffusion.highres.harmonize import harmonize_picture
    from harmony_diffusion.images.picture import Picture
    from harmony_diffusion.models import create_model

    torch.set_num_threads(1)
    model = create_model(name).eval()
    image, mask = scene
    return lambda: harmonize_picture(model, Picture(image), mask)[0].pixels


def peer_method(name: str, scene: Scene) -> Callable[[], np.ndarray]:
    """Return the call of the library that does the same."""
    image, mask = scene
    if name == "poisson":
        destination = image[::-1].copy()  # the photograph that the foreground is cloned into

        def clone() -> np.ndarray:
            region = (mask > 0).astype(np.uint8) * 255
            left, top, width, height = cv2.boundingRect(region)
            center = (left + width // 2, top + height // 2)
            return cv2.seamlessClone(image, destination, region, center, cv2.NORMAL_CLONE)

        return clone

    if name == "histogram_matching":
        from skimage.exposure import match_histograms

        def change(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
            return match_histograms(foreground, background, channel_axis=-1)

    else:
        from color_matcher import ColorMatcher

        def change(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
            colors = (foreground / 255.0, background / 255.0)
            moved = ColorMatcher().transfer(src=colors[0], ref=colors[1], method=name)
            return np.rint(moved.clip(0, 1) * 255).astype(np.uint8)

    def transfer() -> np.ndarray:
        inside = mask > 0
        result = image.copy()
        result[inside] = change(image[inside][None], image[~inside][None])[0]
        return result

    return transfer


def serve(results: Path, size: tuple[int, int]) -> None:
    """Run ours for each name on standard input; answer with both times, and save the result once."""
    methods: dict[str, Callable[[], np.ndarray]] = {}
    scene = make_scene(*size)
    for line in sys.stdin:
        name = line.strip()
        if name not in methods:
            methods[name] = our_method(name, scene)
            np.save(results / f"{name}.npy", methods[name]())
        cpu, wall = time.process_time(), time.perf_counter()
        methods[name]()
        print(time.process_time() - cpu, time.perf_counter() - wall, flush=True)


class OlderCheckout:
    """The same methods of another checkout, in a process of their own."""

    def __init__(self, folder: Path, results: Path, size: tuple[int, int]) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--serve", str(results)]
        environment = os.environ | {"PYTHONPATH": str(folder.resolve())}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*command, "--size", *map(str, size)], env=environment, **pipes)

    def time(self, name: str) -> Any:
        """Run a method once."""
        from harmony_diffusion.reports.timing import Spent

        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The older checkout ended with code {self.process.wait()} in {name}.")
        return Spent(*map(float, answer.split()))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(
    name: str, scene: Scene, rounds: int, older: OlderCheckout | None, results: Path
) -> dict[str, Any]:
    """Return the figures of one method."""
    from harmony_diffusion.reports.timing import Spent, median_of, ratio, spend, take_turns

    def timed(run: Callable[[], np.ndarray]) -> Callable[[], Spent]:
        return lambda: spend(run)

    ours = our_method(name, scene)
    contestants = {"ours": timed(ours)}
    peer = PEERS[name]
    if peer and importlib.util.find_spec(peer):
        contestants["peer"] = timed(peer_method(name, scene))
    if older:
        contestants["before"] = lambda: older.time(name)
    times = take_turns(contestants, rounds)
    spent = {key: median_of(values) for key, values in times.items()}
    row: dict[str, Any] = {"method": name, "peer": peer if "peer" in times else None}
    row["cpu_ms"] = {key: 1000 * value.cpu for key, value in spent.items()}
    row["wall_ms"] = {key: 1000 * value.wall for key, value in spent.items()}
    row["to_peer"] = ratio(times, "ours", "peer") if "peer" in times else None
    row["to_before"] = ratio(times, "ours", "before") if older else None
    if older:
        difference = np.abs(ours().astype(float) - np.load(results / f"{name}.npy"))[scene[1] > 0]
        row["difference_to_before_of_255"] = {"mean": difference.mean(), "max": difference.max()}
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    times = [
        f"{row['cpu_ms'][key]:.1f} ({row['wall_ms'][key]:.1f})" if key in row["cpu_ms"] else "-"
        for key in ("ours", "peer", "before")
    ]
    ratios = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("to_peer", "to_before")]
    return [row["method"], row["peer"] or "-", *times, *ratios]


def main() -> None:
    args = parse_args()
    cv2.setNumThreads(1)
    if args.serve:
        serve(args.serve, args.size)
        return
    from harmony_diffusion.process import keep_freed_memory
    from harmony_diffusion.reports.timing import describe_run, write_report

    run = describe_run(threads=1)
    run["freed_memory_is_kept"] = keep_freed_memory()
    scene = make_scene(*args.size)
    print("| method | peer | ours: CPU (wall) ms | peer | before | to peer | to before |")
    print("|---|---|---:|---:|---:|---:|---:|")
    rows = []
    with tempfile.TemporaryDirectory() as results:
        older = OlderCheckout(args.before, Path(results), args.size) if args.before else None
        for name in args.methods:
            rows.append(measure(name, scene, args.rounds, older, Path(results)))
            print("| " + " | ".join(cells(rows[-1])) + " |", flush=True)
        if older:
            older.close()
    for row in rows:
        for key, bars in (("to_peer", BARS), ("to_before", BARS_BEFORE)):
            if row["method"] in bars and row[key] is not None:
                verdict = "met" if row[key] <= bars[row["method"]] else "NOT met"
                print(f"{row['method']} {key} {row[key]:.2f}, at most {bars[row['method']]}: {verdict}")
    if args.output:
        settings = {"size": list(args.size), "rounds": args.rounds, "foreground_ratio": FOREGROUND_RATIO}
        write_report(args.output, {"bench": "classical", "run": run, "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
