"""Batches of small pictures for the tests, run in this process or in one that can be killed."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
from PIL import Image

from harmony_diffusion.batch.inputs import find_inputs
from harmony_diffusion.batch.job import Options, run_batch
from harmony_diffusion.batch.local import InProcessEngine, LocalEngine
from harmony_diffusion.batch.worker import Settings

MODEL = "reinhard"


def make_pictures(folder, count, *, side=32, suffix=".png"):
    """Write pictures `p000` and so on, with masks beside them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((side, side)).save(folder / f"p{i:03d}{suffix}")
        save_mask(folder / f"p{i:03d}_mask.png", side)
    return folder


def save_mask(path, side=32):
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : -side // 4] = 255
    Image.fromarray(mask).save(path)


def settings_for(inputs, out, **changes):
    values = {"model": MODEL, "suffix": inputs.suffix, "kind": inputs.kind} | changes
    return Settings(out=str(out), root=str(inputs.root), mask_root=str(inputs.mask_root), **values)


def run(source, out, *, workers=1, masks=None, root=None, suffix=None, engine=None, options=None, **changes):
    """Run a batch in this process, or with a pool of processes."""
    inputs = find_inputs(Path(source), masks=masks, root=root, suffix=suffix, out=Path(out))
    settings = settings_for(inputs, out, **changes)
    if engine == "ray":
        from harmony_diffusion.batch.ray_engine import RayEngine

        engine = RayEngine(settings, 2)
    elif engine is None:
        engine = InProcessEngine(settings) if workers == 1 else LocalEngine(settings, workers)
    return run_batch(inputs, settings, engine, options and Options(**options))


def start(source, out, **changes):
    """Run a batch in a process of its own, which a test may kill; PyTorch is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harmony_diffusion.pipelines.harmonization", "harmony_diffusion.models"])
    process = context.Process(target=_run_and_exit, args=(str(source), str(out), changes))
    process.start()
    return process


def _run_and_exit(source, out, changes):
    raise SystemExit(run(source, out, **changes).exit_code)


def contents(out):
    """Return the bytes of each file but those of the job's state."""
    files = (path for path in sorted(Path(out).rglob("*")) if path.is_file())
    return {
        name: path.read_bytes()
        for path in files
        if not (name := path.relative_to(out).as_posix()).startswith(".harmony/")
    }


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def journal(out):
    """Return every whole line of all journals."""
    found = []
    for path in sorted((Path(out) / ".harmony" / "journal").glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return found
