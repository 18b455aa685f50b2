"""Cost of `harmony video`: memory over a long clip, and time a frame against harmonizing frame by frame.

    python eval/bench_video.py --frames 300 --output outputs/bench_video
    python eval/bench_video.py --frames 300 --size 3840x2160 --only memory --output outputs/bench_video_uhd
    python eval/bench_video.py --frames 60 --only time --predict-every 4 --output outputs/bench_video_4

The clip is made here: a disc of a fifth of the frame that moves over a pattern, H.264. Every measurement runs
in a process of its own. Time is CPU time of the process and its threads, since wall time depends on what else
runs; the load before the run stands beside it. "frame by frame" decodes, calls `HarmonizationPipeline` on
each frame as 8-bit RGB, and encodes with the same settings, all in one thread. Writes bench.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", default="1920x1080", metavar="WxH")
    parser.add_argument("--model", default="default")
    parser.add_argument("--predict-every", type=int, default=1)
    parser.add_argument("--only", choices=("memory", "time"))
    parser.add_argument(
        "--baseline",
        metavar="FOLDER",
        help="checkout whose package runs frame by frame, to compare with a release",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for bench.json")
    parser.add_argument("--worker", choices=("two-pass", "frame-by-frame"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.worker:
        print(json.dumps(two_pass(args) if args.worker == "two-pass" else frame_by_frame(args)))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    width, height = (int(side) for side in args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        make_clip(Path(folder), args.frames, width, height)
        found = {"frames": args.frames, "size": args.size, "model": args.model, "cores": os.cpu_count()}
        found["two-pass"] = run_worker("two-pass", folder)
        if args.only != "memory":
            found["frame-by-frame"] = run_worker("frame-by-frame", folder, args.baseline)
            ours, theirs = found["two-pass"], found["frame-by-frame"]
            found["cpu_ratio"] = ours["cpu_ms_a_frame"] / theirs["cpu_ms_a_frame"]
            found["wall_speedup"] = theirs["wall_ms_a_frame"] / ours["wall_ms_a_frame"]
    (args.output / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def run_worker(kind: str, folder: str, package: str | None = None) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", kind, "--folder", folder]
    environment = {**os.environ, **({"PYTHONPATH": package} if package else {})}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def make_clip(folder: Path, count: int, width: int, height: int) -> None:
    """Write clip.mp4 and mask.mp4."""
    import av

    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    pattern = 110 + 50 * np.sin(columns / 60) + 30 * np.cos(rows / 41)
    noise = np.random.default_rng(0).integers(-2, 3, (height, width))
    radius = np.sqrt(0.2 * width * height / np.pi)
    for name in ("clip.mp4", "mask.mp4"):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"preset": "veryfast", "crf": "20"}
            context = stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
            for i in range(count):
                x = width * (0.3 + 0.4 * i / max(count - 1, 1))
                inside = np.hypot(columns - x, rows - height / 2) < radius
                if name == "mask.mp4":
                    luma = np.where(inside, 235, 16)
                else:
                    luma = np.where(inside, 200 - pattern / 3, pattern) + np.roll(noise, 3 * i, 1)
                frame = av.VideoFrame(width, height, "yuv420p")
                values = (
                    luma.clip(16, 235),
                    np.where(inside[::2, ::2], 105, 130),
                    np.where(inside[::2, ::2], 160, 126),
                )
                for plane, samples in zip(
                    frame.planes, values if name == "clip.mp4" else (luma, 128, 128), strict=True
                ):
                    target = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
                    target[:, : plane.width] = samples
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


class Watch:
    """Sample the memory of this process, by frames done."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self.running = True
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while self.running:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            self.samples.append((time.monotonic(), resident))
            time.sleep(0.1)

    def largest(self, until: float) -> float:
        """Return the largest resident size before a moment, in MB."""
        return max((size for at, size in self.samples if at <= until), default=0) / 1e6


def two_pass(args: argparse.Namespace) -> dict:
    from harmony_diffusion import VideoHarmonizationPipeline

    pipe = VideoHarmonizationPipeline.from_pretrained(args.model)
    done: list[float] = []

    class Bar:
        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int) -> None:
            done.extend([time.monotonic()] * count)

    pipe.progress_bar = lambda **_: Bar()  # type: ignore[method-assign,assignment]
    load, watch = os.getloadavg()[0], Watch()
    cpu, wall = time.process_time(), time.monotonic()
    pipe(
        args.folder / "clip.mp4",
        args.folder / "mask.mp4",
        output=args.folder / "two_pass.mp4",
        predict_every=args.predict_every,
    )
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    watch.running = False
    # The second pass holds the most: after 60 of its frames, and at its end.
    early = done[args.frames + min(60, args.frames) - 1]
    peak = 1.024e-3 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu_ms_a_frame": 1000 * cpu / args.frames,
        "wall_ms_a_frame": 1000 * wall / args.frames,
        "load_before": load,
        "peak_mb": peak,
        "mb_after_60": watch.largest(early),
        "mb_after_all": watch.largest(done[-1]),
        "predict_every": args.predict_every,
    }


def frame_by_frame(args: argparse.Namespace) -> dict:
    import av
    import torch

    from harmony_diffusion import HarmonizationPipeline

    torch.set_num_threads(1)
    pipe = HarmonizationPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    load = os.getloadavg()[0]
    cpu, wall = time.process_time(), time.monotonic()
    with (
        av.open(str(args.folder / "clip.mp4")) as clip,
        av.open(str(args.folder / "mask.mp4")) as masks,
        av.open(str(args.folder / "frames.mp4"), "w") as container,
    ):
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = clip.streams.video[0].width, clip.streams.video[0].height
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "medium", "crf": "17", "x264-params": "mbtree=0"}
        stream.codec_context.thread_count = 1
        for frame, mask in zip(clip.decode(video=0), masks.decode(video=0), strict=True):
            image = frame.to_ndarray(format="rgb24")
            result = pipe(image, mask.to_ndarray(format="gray"), output_type="pil").images[0]
            made = av.VideoFrame.from_ndarray(np.asarray(result), "rgb24").reformat(format="yuv420p")
            made.pts, made.time_base = frame.pts, frame.time_base
            container.mux(stream.encode(made))
        container.mux(stream.encode())
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    return {
        "cpu_ms_a_frame": 1000 * cpu / args.frames,
        "wall_ms_a_frame": 1000 * wall / args.frames,
        "load_before": load,
        "peak_mb": 1.024e-3 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    main()
