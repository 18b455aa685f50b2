"""What all benchmarks share: two clocks, contestants in turns, ratios, the machine, and the JSON file.

Other programs on a machine disturb the time on the wall far more than the processor time of a process, and
absolute figures more than ratios of contestants that take turns. So benchmarks report ratios of processor
times, with the wall beside them, and the load of the machine.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harmony_diffusion.images.output_files import write_atomically

_PACKAGES = ("torch", "diffusers", "numpy", "opencv-python", "pillow", "onnxruntime", "scikit-image")


class Spent(NamedTuple):
    """Seconds of the processor, user and system, and seconds on the wall."""

    cpu: float
    wall: float


def spend(run: Callable[[], Any]) -> Spent:
    """Call a function and return the time of this process that it takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


def run_command(command: Sequence[str], checkout: Path) -> tuple[Spent, float]:
    """Run a command with the package of a checkout, on one thread.

    Returns:
        Its time, and its peak memory in MiB.

    Raises:
        RuntimeError: The command failed.
    """
    changes = {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=os.environ | changes,
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    # The child starts with the peak of this process, which is below that of any program measured here.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"`{' '.join(command)}` in {checkout} failed:\n{errors}")
    peak = usage.ru_maxrss / 1024 / (1024 if sys.platform == "darwin" else 1)
    return Spent(usage.ru_utime + usage.ru_stime, time.perf_counter() - start), peak


def take_turns(
    contestants: Mapping[str, Callable[[], Spent]], rounds: int, warm_up: int = 1
) -> dict[str, list[Spent]]:
    """Time contestants in turns, in the opposite order every other round.

    Args:
        contestants: What does the work once and returns its time.
        rounds: Measured rounds.
        warm_up: Rounds before these, whose times are dropped.

    Returns:
        One time a round for each contestant.

    Example:
        >>> times = take_turns({"sum": lambda: spend(lambda: sum(range(9)))}, rounds=3)
        >>> len(times["sum"])
        3
    """
    times: dict[str, list[Spent]] = {name: [] for name in contestants}
    for turn in range(-warm_up, rounds):
        names = list(contestants)
        for name in names if turn % 2 == 0 else names[::-1]:
            spent = contestants[name]()
            if turn >= 0:
                times[name].append(spent)
    return times


def ratio(times: Mapping[str, Sequence[Spent]], name: str, to: str, clock: str = "cpu") -> float:
    """Return the median over the rounds of the time of one contestant by that of another.

    Args:
        times: As `take_turns` returns them.
        name: The one.
        to: The other.
        clock: "cpu" or "wall".
    """
    pairs = zip(times[name], times[to], strict=True)
    return statistics.median(getattr(own, clock) / getattr(other, clock) for own, other in pairs)


def median_of(times: Sequence[Spent]) -> Spent:
    """Return the median of each clock."""
    return Spent(*(statistics.median(column) for column in zip(*times, strict=True)))


def describe_run(threads: int | None = None) -> dict[str, Any]:
    """Return the processor, the versions and the load of the machine, for a report.

    Args:
        threads: Threads that the benchmark uses; None if it does not set them.
    """
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = (line for line in Path("/proc/cpuinfo").open() if line.startswith("model name"))
        cpu = next(names, cpu).split(":")[-1].strip()
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    run = {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "load_before": load}
    return {**run, "loaded": load is not None and load > 1, "versions": versions}


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, whole or not at all; an older one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(report, indent=1) + "\n").encode(), overwrite=True)
