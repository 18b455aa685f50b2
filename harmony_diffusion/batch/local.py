"""Engines on one machine: inside this process, and a pool of processes that outlives each of them."""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, Protocol

from harmony_diffusion.batch.worker import Record, Settings, Worker
from harmony_diffusion.errors import HarmonyError

# What the workers' parent imports once; nothing is run in it, as PyTorch does not survive a fork afterwards.
_PRELOADED = ["harmony_diffusion.pipelines.harmonization", "harmony_diffusion.models"]
_MOST_STARTS_IN_VAIN = 3
_CORES_TO_OVERLAP = 3  # a worker: for decoding, the model and encoding

Work = list[tuple[int, bytes]]  # numbers and lines of the plan


@dataclass
class Event:
    """Something an engine reports.

    Attributes:
        worker: Which one.
        done: Entries that are done, with their records.
        lost: Entries that a worker which died had not done, the one it worked on first.
        died: Whether the worker died; another one is started in its place.
        idle: Whether the worker has nothing left to do.
    """

    worker: int
    done: list[tuple[int, Record]] = field(default_factory=list)
    lost: Work = field(default_factory=list)
    died: bool = False
    idle: bool = True


class Engine(Protocol):
    """What runs workers."""

    def start(self) -> None:
        """Begin to load the model, without waiting for it."""

    def fingerprint(self) -> dict[str, str]:
        """Wait until the model is loaded; return what the results depend on.

        Raises:
            HarmonyError: It cannot be loaded.
        """

    def free(self) -> list[int]:
        """Return the workers that have nothing to do."""

    def submit(self, worker: int, work: Work) -> None:
        """Give work to a worker that is free."""

    def wait(self, seconds: float) -> list[Event]:
        """Wait for events for up to some seconds.

        Raises:
            HarmonyError: The job cannot go on.
        """

    def close(self, *, at_once: bool = False) -> None:
        """End all workers; `at_once` without waiting for what they do."""


class InProcessEngine:
    """Works in the calling process: for one worker, and for one GPU.

    Args:
        settings: What to do.
        overlap: See `Worker`; None = where there are cores enough.
    """

    def __init__(self, settings: Settings, *, overlap: bool | None = None) -> None:
        self.settings = settings
        self.overlap = cores() >= _CORES_TO_OVERLAP if overlap is None else overlap
        self.worker: Worker | None = None
        self._work: Work = []
        self._records: Iterator[Record] = iter(())

    def start(self) -> None:
        """Do nothing: loading would hold up the caller."""

    def fingerprint(self) -> dict[str, str]:
        """Load the model."""
        if self.worker is None:
            self.worker = Worker(self.settings, overlap=self.overlap)
        return self.worker.fingerprint

    def free(self) -> list[int]:
        """Return 0 when nothing is left to do."""
        return [] if self._work else [0]

    def submit(self, worker: int, work: Work) -> None:
        """Keep the work for `wait`."""
        assert self.worker is not None
        self._work = list(work)
        self._records = self.worker.process_all([line for _, line in work])

    def wait(self, seconds: float) -> list[Event]:
        """Do one entry."""
        if not self._work:
            time.sleep(seconds)
            return []
        record = next(self._records)
        i, _ = self._work.pop(0)
        if not self._work and self.worker is not None:
            self.worker.sync()
        return [Event(0, done=[(i, record)], idle=not self._work)]

    def close(self, *, at_once: bool = False) -> None:
        """Close the journal."""
        if self.worker is not None:
            self.worker.close()


class LocalEngine:
    """A pool of processes. When one dies, only what it worked on is done again.

    Args:
        settings: What to do.
        workers: How many processes.
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        self.settings = settings
        self._context = _context()
        self._members: list[_Member | None] = [None] * workers
        self._starts_in_vain = 0
        self._fingerprint: dict[str, str] | None = None

    def start(self) -> None:
        """Start all processes."""
        overlap = cores() >= _CORES_TO_OVERLAP * len(self._members)
        with _environment(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE"):
            for i, member in enumerate(self._members):
                if member is None:
                    self._members[i] = _Member(self._context, self.settings, overlap)

    def fingerprint(self) -> dict[str, str]:
        """Wait for the first process that has loaded the model."""
        while self._fingerprint is None:
            self.wait(1.0)
        return self._fingerprint

    def free(self) -> list[int]:
        """Return the processes that have nothing to do."""
        return [i for i, member in enumerate(self._members) if member and member.ready and not member.work]

    def submit(self, worker: int, work: Work) -> None:
        """Send work to a process."""
        member = self._members[worker]
        assert member is not None and not member.work
        member.work = list(work)
        try:
            member.connection.send(work)
        except OSError:  # it died meanwhile, and `wait` will notice
            pass

    def wait(self, seconds: float) -> list[Event]:
        """Wait for messages of the processes; start new ones in the place of those that died."""
        members = {member.connection: i for i, member in enumerate(self._members) if member}
        events: list[Event] = []
        for connection in wait(list(members), timeout=seconds):
            i = members[connection]  # type: ignore[index]
            member = self._members[i]
            assert member is not None
            try:
                message = member.connection.recv_bytes()
            except (EOFError, OSError):
                events.append(self._bury(i, member))
                continue
            events += self._take(i, member, json.loads(message))
        return events

    def _take(self, i: int, member: "_Member", message: dict[str, Any]) -> list[Event]:
        if "error" in message:
            raise HarmonyError(message["error"])
        if "fingerprint" in message:
            self._fingerprint = message["fingerprint"]
            member.ready, self._starts_in_vain = True, 0
            return []
        number, _ = member.work.pop(0)
        return [Event(i, done=[(number, message)], idle=not member.work)]

    def _bury(self, i: int, member: "_Member") -> Event:
        member.end()
        if not member.ready:
            self._starts_in_vain += 1
            if self._starts_in_vain >= _MOST_STARTS_IN_VAIN * len(self._members):
                raise HarmonyError(
                    "the worker processes are killed while they load the model, perhaps as memory is short. "
                    "Give fewer --workers."
                )
        self._members[i] = None
        self.start()
        return Event(i, lost=member.work, died=True)

    @property
    def pids(self) -> list[int]:
        """Return the numbers of the processes."""
        return [member.process.pid or 0 for member in self._members if member]

    def close(self, *, at_once: bool = False) -> None:
        """End all processes."""
        members = [member for member in self._members if member]
        for member in members:
            if at_once:
                member.process.kill()
            member.connection.close()
        for member in members:
            member.end()
        self._members = [None] * len(self._members)


class _Member:
    """One process of the pool, and what it has to do."""

    def __init__(self, context: BaseContext, settings: Settings, overlap: bool) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, settings, overlap), daemon=True
        )
        self.process.start()
        theirs.close()
        self.work: Work = []
        self.ready = False

    def end(self) -> None:
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(connection: Connection, settings: Settings, overlap: bool) -> None:
    """Run a worker until the other end of the connection is closed."""
    import signal

    # Signals go to the whole group; the process that hands out the work decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        worker = Worker(settings, overlap=overlap)
    except Exception as error:  # said once by the process that hands out the work
        text = str(error) if isinstance(error, HarmonyError) else f"{type(error).__name__}: {error}"
        connection.send_bytes(json.dumps({"error": text}).encode())
        return
    try:
        connection.send_bytes(json.dumps({"fingerprint": worker.fingerprint}).encode())
        while True:
            work = connection.recv()
            try:
                for record in worker.process_all(line for _, line in work):
                    connection.send_bytes(json.dumps(record).encode())
            except HarmonyError as error:
                connection.send_bytes(json.dumps({"error": str(error)}).encode())
                return
            worker.sync()
    except (EOFError, OSError):
        pass  # the other end is gone
    finally:
        worker.close()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment, which new processes inherit, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
