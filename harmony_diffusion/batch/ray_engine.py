"""Engine for several machines: actors of Ray (https://docs.ray.io), an extra.

Ray only carries names to actors and results of a few bytes back. What is done and what is not stands in the
journals, as with the other engines, so that a batch may change its engine at any time.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harmony_diffusion.batch.local import Event, Work
from harmony_diffusion.batch.worker import Record, Settings, Worker
from harmony_diffusion.errors import HarmonyError, MissingDependencyError
from harmony_diffusion.process import wait_without_spinning

_OBJECT_STORE_BYTES = 100_000_000
_MOST_STARTS_IN_VAIN = 3
_CLOSE_SECONDS = 30.0


class RayEngine:
    """Workers that are actors of Ray: on this machine, or on the cluster that `RAY_ADDRESS` names.

    Args:
        settings: What to do.
        workers: How many actors; None = one a core of the cluster, or one a GPU where `device` is a GPU.
    """

    def __init__(self, settings: Settings, workers: int | None = None) -> None:
        self.settings, self.workers = settings, workers
        self._ray: Any = None
        self._actors: list[Any] = []
        self._tasks: dict[Any, tuple[int, Work | None]] = {}  # None: the actor is starting
        self._ready: set[int] = set()
        self._starts_in_vain = 0
        self._fingerprint: dict[str, str] | None = None

    def start(self) -> None:
        """Start Ray, or join the cluster, and start the actors."""
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError(
                "The engine ray needs Ray. Run `pip install harmony-diffusion[ray]`, or use --engine local."
            ) from error
        self._ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        wait_without_spinning()
        with _handlers_kept():
            if os.environ.get("RAY_ADDRESS"):
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(
                    include_dashboard=False,
                    num_cpus=self.workers,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        resources = ray.cluster_resources()
        wants_gpu = self.settings.device.startswith("cuda") or (
            self.settings.device == "auto" and resources.get("GPU", 0) >= 1
        )
        count = self.workers or int(resources.get("GPU" if wants_gpu else "CPU", 1)) or 1
        self._options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 2, "max_task_retries": 0}
        if wants_gpu:
            self._options["num_gpus"] = 1
        self._actors = [None] * count
        for i in range(count):
            self._start_actor(i)

    def _start_actor(self, i: int) -> None:
        self._actors[i] = self._ray.remote(_Actor).options(**self._options).remote(self.settings)
        self._await_start(i)

    def _await_start(self, i: int) -> None:
        self._ready.discard(i)
        self._tasks[self._actors[i].start.remote()] = (i, None)

    def fingerprint(self) -> dict[str, str]:
        """Wait for the first actor that has loaded the model."""
        while self._fingerprint is None:
            self.wait(1.0)
        return self._fingerprint

    def free(self) -> list[int]:
        """Return the actors that have nothing to do."""
        busy = {i for i, _ in self._tasks.values()}
        return [i for i in sorted(self._ready) if i not in busy]

    def submit(self, worker: int, work: Work) -> None:
        """Send work to an actor."""
        task = self._actors[worker].run.remote([line for _, line in work])
        self._tasks[task] = (worker, list(work))

    def wait(self, seconds: float) -> list[Event]:
        """Wait for actors; those that died are started again, by Ray or as new ones."""
        done, _ = (
            self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds) if self._tasks else ([], [])
        )
        if not self._tasks:
            threading.Event().wait(seconds)
        return [event for task in done for event in self._take(task)]

    def _take(self, task: Any) -> list[Event]:
        i, work = self._tasks.pop(task)
        try:
            answer = self._ray.get(task)
        except self._ray.exceptions.ActorUnavailableError:  # Ray starts it again
            return self._bury(i, work, new=False)
        except self._ray.exceptions.RayActorError:
            return self._bury(i, work, new=True)
        if "error" in answer:
            raise HarmonyError(answer["error"])
        if work is None:
            self._fingerprint = answer["fingerprint"]
            self._ready.add(i)
            self._starts_in_vain = 0
            return []
        return [
            Event(
                i, done=[(number, record) for (number, _), record in zip(work, answer["done"], strict=True)]
            )
        ]

    def _bury(self, i: int, work: Work | None, *, new: bool) -> list[Event]:
        if work is None and new:
            self._starts_in_vain += 1
            if self._starts_in_vain >= _MOST_STARTS_IN_VAIN * len(self._actors):
                raise HarmonyError(
                    "the actors of Ray die while they load the model. Look at the logs of Ray, "
                    "or use --engine local."
                )
        if new:
            self._start_actor(i)
        else:
            self._await_start(i)
        return [] if work is None else [Event(i, lost=work, died=True)]

    @property
    def pids(self) -> list[int]:
        """Return the numbers of the actors' processes, on whatever machine."""
        return self._ray.get([actor.pid.remote() for actor in self._actors])

    def close(self, *, at_once: bool = False) -> None:
        """End the actors, and Ray if it was started here."""
        if self._ray is None or not self._ray.is_initialized():
            return
        if not at_once:
            closing = [actor.close.remote() for actor in self._actors]
            self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for actor in self._actors:
            if actor is not None:
                self._ray.kill(actor)
        self._actors, self._tasks = [], {}
        self._ray.shutdown()


class _Actor:
    """One worker, in a process of Ray."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.worker: Worker | None = None

    def start(self) -> dict[str, Any]:
        """Load the model once."""
        try:
            self.worker = self.worker or Worker(self.settings)
        except HarmonyError as error:
            return {"error": str(error)}
        return {"fingerprint": self.worker.fingerprint}

    def run(self, lines: list[bytes]) -> dict[str, Any]:
        """Do some entries; their records say all, the pictures stay where they are."""
        if self.worker is None:
            raise RuntimeError("the actor was not started")
        done: list[Record] = []
        try:
            for line in lines:
                done.append(self.worker.process(line))
        except HarmonyError as error:
            return {"error": str(error)}
        self.worker.sync()
        return {"done": done}

    def pid(self) -> int:
        """Return the number of the process."""
        return os.getpid()

    def close(self) -> None:
        """Close the journal."""
        if self.worker is not None:
            self.worker.close()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep the signal handlers of this process: Ray sets one of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
