"""Measure `harmony batch`: overhead, scaling with workers, and memory.

    python eval/bench_batch.py overhead                 # one worker against the same steps in a bare loop
    python eval/bench_batch.py scaling --repeats 3      # two workers against one
    python eval/bench_batch.py plan --count 1000000     # planning and resuming, without harmonizing
    python eval/bench_batch.py memory --count 1000      # memory of the workers
    python eval/bench_batch.py stopped                  # one of two runs is stopped for 90 seconds

The pictures are smooth noise with grain, so that file sizes are similar to photographs. CPU times are valid
on a machine with other load. Rates and wall times are printed with the load average before the run.
"""

import argparse
import io
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harmony_diffusion.batch.inputs import find_inputs
from harmony_diffusion.batch.job import Progress, run_batch
from harmony_diffusion.batch.journal import Journal, Ledger
from harmony_diffusion.batch.leases import Leases, Owner
from harmony_diffusion.batch.local import InProcessEngine, LocalEngine
from harmony_diffusion.batch.plan import Plan, digest, write_plan
from harmony_diffusion.batch.worker import Settings

ROOT = Path(__file__).resolve().parents[1]
FOREGROUNDS = (0.06, 0.29)  # foreground ratios, used in turn


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("overhead", "scaling", "plan", "memory", "stopped"))
    parser.add_argument("--count", type=int, help="number of pictures, or entries of the plan")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="default")
    parser.add_argument("--folder", type=Path, help="working folder (default: a temporary folder)")
    return parser.parse_args()


def make_pictures(folder: Path, sizes: list[tuple[int, int]], suffix: str = ".jpg") -> Path:
    """Write pictures with the given widths and heights, and their masks in the same folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    grain = rng.integers(-12, 13, (256, 256, 3), dtype=np.int16)
    for i, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 18, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        tiles = (-(-height // 256), -(-width // 256), 1)
        pixels += np.tile(grain, tiles)[:height, :width]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"p{i:06d}{suffix}", quality=92)
        y, x = np.mgrid[:height, :width]
        radius = np.sqrt(FOREGROUNDS[i % len(FOREGROUNDS)] * width * height / np.pi)
        disk = np.hypot(y - height / 2, x - width / 2) < radius
        Image.fromarray((disk * 255).astype(np.uint8)).save(folder / f"p{i:06d}_mask.png", compress_level=1)
    return folder


def settings_for(source: Path, out: Path, model: str) -> Settings:
    return Settings(out=str(out), root=str(source), mask_root=str(source), model=model)


def bench_overhead(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare CPU time of a batch with one worker and of a bare loop that decodes, harmonizes and encodes."""
    source = make_pictures(folder / "in", [(1024, 683)] * (args.count or 300))
    names = sorted(path.name for path in source.glob("*.jpg"))
    engine = InProcessEngine(settings_for(source, folder / "warm", args.model))
    engine.fingerprint()
    assert engine.worker is not None
    pipe = engine.worker.pipe

    def bare() -> float:
        from harmony_diffusion.images.masks import load_mask
        from harmony_diffusion.images.picture import load_picture

        start = time.process_time()
        for name in names:
            picture = load_picture(source / name)
            mask = load_mask(source / f"{name[:-4]}_mask.png", size=picture.size)
            (result,), _ = pipe(picture, mask, output_type="picture", return_dict=False)
            result.encode(io.BytesIO(), "x.jpg", quality=95, png_level=1)
        return (time.process_time() - start) / len(names)

    def batch(i: int) -> float:
        out = folder / f"out{i}"
        settings = settings_for(source, out, args.model)
        own = InProcessEngine(settings)
        own.fingerprint()
        start = time.process_time()
        run_batch(find_inputs(source, out=out), settings, own)
        return (time.process_time() - start) / len(names)

    rounds = [(bare(), batch(i)) for i in range(args.repeats)]
    bare_ms, batch_ms = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
    bookkeeping_ms = 1000 * bookkeeping(folder, folder / "out0")
    return {
        "pictures": len(names),
        "bare_cpu_ms": round(bare_ms, 2),
        "batch_cpu_ms": round(batch_ms, 2),
        "ratio": round(batch_ms / bare_ms, 3),
        "journal_and_leases_cpu_ms": round(bookkeeping_ms, 3),
        "journal_and_leases_share": round(bookkeeping_ms / batch_ms, 4),
    }


def bookkeeping(folder: Path, out: Path) -> float:
    """Return the CPU time per picture of journal and leases, measured separately."""
    plan = Plan(out / ".harmony" / "plan.jsonl")
    (path,) = (out / ".harmony" / "journal").iterdir()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    start = time.process_time()
    journal = Journal(folder / "journal" / "again.jsonl")
    for record in records:
        journal.append(record)
    journal.close()
    ledger = Ledger(plan, folder / "journal")
    leases = Leases(folder / "leases", Owner.this_process())
    for shard in range(plan.shards):
        leases.take(shard)
        ledger.read()
        plan.read(shard)
        leases.give_back(shard)
    return (time.process_time() - start) / len(records)


def bench_scaling(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure pictures per second from the tenth to the last, and the time to the first, by worker count."""
    source = make_pictures(folder / "in", [(1024, 683)] * (args.count or 200))
    found: dict[int, list[tuple[float, float]]] = {1: [], args.workers: []}
    loads = []
    for i in range(args.repeats):
        for workers in found:
            loads.append(os.getloadavg()[0])
            found[workers].append(timed_run(source, folder / f"out{i}_{workers}", workers, args.model))
    best = {workers: max(rate for rate, _ in runs) for workers, runs in found.items()}
    first = {workers: min(seconds for _, seconds in runs) for workers, runs in found.items()}
    return {
        "load_before": [round(load, 2) for load in loads],
        "best_rate": {workers: round(rate, 2) for workers, rate in best.items()},
        "speedup": round(best[args.workers] / best[1], 2),
        "first_result_s": {workers: round(seconds, 2) for workers, seconds in first.items()},
        "first_result_ratio": round(first[args.workers] / first[1], 2),
    }


def timed_run(source: Path, out: Path, workers: int, model: str) -> tuple[float, float]:
    """Run the command; return pictures per second from the tenth on, and seconds to the first one."""
    start = time.time()
    subprocess.run([*command(source, out, model), "--workers", str(workers)], check=True, capture_output=True)
    stamps = sorted(path.stat().st_mtime for path in out.glob("*.jpg"))
    return (len(stamps) - 10) / (stamps[-1] - stamps[9]), stamps[0] - start


def command(source: Path, out: Path, model: str) -> list[str]:
    return [sys.executable, "-m", "harmony_diffusion.cli", "batch", str(source), str(out), "--model", model]


def bench_plan(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Plan a million results from a thousand pictures, then find the remaining work of a resumed run."""
    count = args.count or 1_000_000
    source = make_pictures(folder / "in", [(16, 16)] * min(count, 1000), ".png")
    with (source / "list.csv").open("w") as file:
        file.write("composite,mask,output\n")
        for i in range(count):
            # The order of writing differs from the sorted order.
            number = i * 7919 % count
            name = f"p{i % min(count, 1000):06d}"
            file.write(f"{name}.png,{name}_mask.png,made/{number // 1000:04d}/result_{number:09d}.png\n")
    out = folder / "out"
    state = out / ".harmony"
    (state / "journal").mkdir(parents=True)
    start = time.perf_counter()
    write_plan(find_inputs(source / "list.csv"), state / "plan.jsonl")
    plan = Plan(state / "plan.jsonl")
    planned = time.perf_counter() - start
    # Every second result exists, as an empty file, because its content is not read.
    with (state / "journal" / "worker.jsonl").open("w") as file:
        for i, line in enumerate(plan.lines()):
            if i % 2 == 0:
                entry = json.loads(line)
                target = out / entry["output"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
                record = {"id": entry["id"], "input": f"{digest(line):016x}", "status": "done"}
                record |= {"sha256": "00" * 32, "bytes": 0, "seconds": 0.1}  # type: ignore[dict-item]
                file.write(json.dumps(record) + "\n")
    before = peak_mb()
    start = time.perf_counter()
    ledger = Ledger(plan, state / "journal")
    lost = ledger.forget_lost_outputs(out)
    decided = time.perf_counter() - start
    start = time.perf_counter()
    lines = sum(1 for _ in ledger.manifest(out))
    return {
        "entries": len(plan),
        "plan_s": round(planned, 1),
        "decision_s": round(decided, 1),
        "manifest_s": round(time.perf_counter() - start, 1),
        "done": lines,
        "lost": lost,
        "peak_mb_after_plan": round(before),
        "peak_mb": round(peak_mb()),
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bench_memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the memory of each worker while it harmonizes pictures of 0.3 to 24 megapixels."""
    sides = [(640, 480), (1024, 683), (2048, 1365), (3000, 2000), (4000, 3000), (6000, 4000)]
    # Ten different files are enough; the manifest repeats them.
    source = make_pictures(folder / "in", [sides[i] for i in (0, 1, 0, 2, 1, 3, 0, 1, 4, 5)])
    count = args.count or 1000
    with (source / "list.csv").open("w") as file:
        file.write("composite,mask,output\n")
        for i in range(count):
            name = f"p{(i * 7) % 10:06d}"
            file.write(f"{name}.jpg,{name}_mask.png,r{i:06d}.jpg\n")
    out = folder / "out"
    settings = settings_for(source, out, args.model)
    engine = LocalEngine(settings, args.workers)
    seen: list[tuple[int, float]] = []

    def look(progress: Progress) -> None:
        resident = [resident_mb(pid) for pid in engine.pids]
        if resident:
            seen.append((progress.done, max(resident)))

    run_batch(find_inputs(source / "list.csv"), settings, engine, on_progress=look)
    halves = [[mb for done, mb in seen if low < done <= high] for low, high in quarters(count)]
    peaks = [round(max(part), 1) for part in halves if part]
    means = [round(statistics.mean(part), 1) for part in halves if part]
    return {"pictures": count, "peak_mb_by_quarter": peaks, "mean_mb_by_quarter": means}


def quarters(count: int) -> list[tuple[int, int]]:
    return [(count * i // 4, count * (i + 1) // 4) for i in range(4)]


def resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bench_stopped(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Stop one of two runs for 90 seconds, then continue it, and count pictures that were made twice."""
    source = make_pictures(folder / "in", [(256, 171)] * (args.count or 3000))
    out = folder / "out"
    call = [*command(source, out, args.model), "--workers", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first, second = (subprocess.Popen(call, start_new_session=True, **quiet) for _ in range(2))  # type: ignore[call-overload]
    while journal_lines(out) < 100:
        if first.poll() is not None or second.poll() is not None:
            raise RuntimeError(f"a run ended early: exit codes {first.poll()} and {second.poll()}")
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGSTOP)
    stopped_at = journal_lines(out)
    time.sleep(90)
    os.killpg(first.pid, signal.SIGCONT)
    codes = [first.wait(), second.wait()]
    manifest = [json.loads(line)["id"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    return {
        "exit_codes": codes,
        "pictures": len(manifest),
        "each_once": len({*manifest}) == len(manifest) == (args.count or 3000),
        "done_when_stopped": stopped_at,
        "made_twice": journal_lines(out) - len(manifest),
    }


def journal_lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (out / ".harmony" / "journal").glob("*.jsonl"))


def main() -> None:
    args = parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="bench_batch_"))
    folder.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    try:
        figures = globals()[f"bench_{args.what}"](args, folder)
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    print(json.dumps({"bench": args.what, "load": round(load, 2), **figures}))


if __name__ == "__main__":
    main()
