"""A batch from the plan to the manifest: who does what, what to do again, when to stop."""

import json
import os
import shutil
import signal
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from harmony_diffusion.batch.inputs import Inputs
from harmony_diffusion.batch.journal import DONE, FAILED, PENDING, Journal, Ledger
from harmony_diffusion.batch.kept_files import LISTS, check_kept
from harmony_diffusion.batch.leases import Leases, Owner, remove_abandoned
from harmony_diffusion.batch.local import Engine, Event, Work
from harmony_diffusion.batch.plan import SHARD, Plan, digest, write_plan
from harmony_diffusion.batch.worker import Settings
from harmony_diffusion.errors import HarmonyError, OutputError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.json_text import parse_json
from harmony_diffusion.paths import exists, is_folder, resolved

SCHEMA = 1
EXIT_FAILURES = 3
# A worker gets as much at once as takes it about a second.
_SECONDS_AT_ONCE, _MOST_AT_ONCE = 1.0, 16
_WAIT_SECONDS, _LOOK_SECONDS = 0.5, 2.0
_RATE_SECONDS = 60.0
_MOST_DEATHS = 2

# What `Settings` holds beside where things lie: the results depend on these.
_PLACES = {"out", "root", "mask_root"}


@dataclass(frozen=True)
class Options:
    """How a batch is run; the results do not depend on these.

    Attributes:
        max_errors: Stop when so many pictures have failed; None = never.
        retry_failed: Try again what failed before.
        restart: Throw away what is known of an earlier run.
        verify: Compare the outputs that are there with their hashes.
        overwrite: Write to a folder that holds other files.
    """

    max_errors: int | None = None
    retry_failed: bool = False
    restart: bool = False
    verify: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a batch is.

    Attributes:
        done: Entries with a result, earlier runs included.
        failed: Entries without one.
        total: Entries of the plan.
        rate: Entries a second over the last minute.
        seconds_left: At this rate; None when unknown.
        deaths: Workers that died.
    """

    done: int
    failed: int
    total: int
    rate: float = 0.0
    seconds_left: float | None = None
    deaths: int = 0


@dataclass
class Summary:
    """How a batch ended.

    Attributes:
        total: Entries of the plan.
        done: Entries with a result.
        failed: Pictures without one, those inside of tar shards included.
        new: Entries done by this run.
        deaths: Workers that died in this run.
        seconds: What this run took, without loading the model.
        exit_code: 0, 3 with failures, 130 after SIGINT, 143 after SIGTERM.
        manifest: File that lists the results; None when the batch is not complete.
        errors: File that lists the failures.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    new: int = 0
    deaths: int = 0
    seconds: float = 0.0
    exit_code: int = 0
    manifest: str | None = None
    errors: str | None = None


def run_batch(
    inputs: Inputs,
    settings: Settings,
    engine: Engine,
    options: Options | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Make every result of a batch that is not there yet.

    Runs of the same batch, at the same time or one after the other, share the work: the state lies in the
    folder of the results. Results are the same bytes however often the run was killed in between.

    Args:
        inputs: What to work on.
        settings: What to do.
        engine: What runs the workers.
        options: How to run.
        on_progress: Called a few times a second.

    Returns:
        How it ended.

    Raises:
        InputError: The plan cannot be made; nothing was written.
        OutputError: The folder belongs to another batch, or cannot be written to.
        HarmonyError: The model cannot be loaded.
    """
    options = options or Options()
    with _Signals() as signals:
        try:
            signals.interrupts = True
            engine.start()
            with _plan(inputs, settings, options) as (plan, path):
                _claim(settings, inputs, engine.fingerprint(), options)
                os.replace(path, settings.state / "plan.jsonl")
            signals.interrupts = False
            with closing(plan):
                return _Run(plan, settings, engine, options, signals, on_progress).run()
        except BaseException as error:
            engine.close(at_once=True)
            if signals.code and signals.interrupts:
                return Summary(exit_code=signals.code)
            if isinstance(error, OSError) and not isinstance(error, HarmonyError):
                place = error.filename or settings.out
                reason = error.strerror or str(error)
                raise OutputError(place, reason, "Choose another folder, or give --restart.") from error
            raise


@contextmanager
def _plan(inputs: Inputs, settings: Settings, options: Options) -> Iterator[tuple[Plan, Path]]:
    """Write the plan to a temporary file; leave no trace of it when something goes wrong."""
    out = Path(settings.out)
    _check_out(inputs, out, options)
    scratch = settings.state / "tmp" / Owner.this_process().name
    made = [path for path in (scratch, *scratch.parents) if not path.exists()]
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        path = scratch / "plan.jsonl"
        places = array("Q")
        write_plan(inputs, path, places)
        plan = Plan(path, 1 if inputs.kind == "tar" else SHARD)
        try:
            check_kept(inputs, plan, out, places, overwrite=options.overwrite)
            del places
            yield plan, path
        except BaseException:
            plan.close()
            raise
        scratch.rmdir()
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in made[1:]:
            try:
                folder.rmdir()
            except OSError:
                break
        if isinstance(error, OSError) and not isinstance(error, HarmonyError):
            raise OutputError(out, error.strerror or str(error), "Choose another folder.") from error
        raise


def _check_out(inputs: Inputs, out: Path, options: Options) -> None:
    there = exists(out, OutputError)
    if there and not is_folder(out, OutputError):
        raise OutputError(out, "is no folder", "Choose another one.")
    for root in {inputs.root, inputs.mask_root}:
        if there and out.samefile(root):
            raise OutputError(out, "is the folder of the inputs", "Choose another one.")
    if options.overwrite or not there or (out / ".harmony").is_dir():
        return
    if any(out.iterdir()):
        raise OutputError(
            out, "holds files that no batch made", "Choose another folder, or allow it with --overwrite."
        )


def _claim(settings: Settings, inputs: Inputs, fingerprint: dict[str, str], options: Options) -> None:
    """Write down what the results depend on, or compare it with what is written down already.

    Raises:
        OutputError: The folder holds results of something else.
    """
    record = settings.state / "job.json"
    own = {key: value for key, value in asdict(settings).items() if key not in _PLACES}
    wanted = {
        "schema": SCHEMA,
        "input": str(resolved(inputs.source)),
        "masks": str(resolved(inputs.mask_root)),
        "suffix": inputs.suffix,
        **own,
        **fingerprint,
        "threads": 1,
    }
    wanted = json.loads(json.dumps(wanted))
    if options.restart:
        leases = [Leases(path, Owner.this_process()) for path in (settings.state / "leases").glob("*")]
        if any(True for lease in leases for _ in lease.others()):
            raise OutputError(
                settings.out, "another process works on it", "End it before you give --restart."
            )
        for name in ("journal", "leases"):
            shutil.rmtree(settings.state / name, ignore_errors=True)
        if record.is_dir():
            shutil.rmtree(record)
        record.unlink(missing_ok=True)
    content = json.dumps(wanted, indent=1).encode() + b"\n"
    if not _create_exclusively(record, content):
        found = _read_claim(settings, record)
        changed = [key for key in sorted({*wanted, *found}) if wanted.get(key) != found.get(key)]
        if changed:
            differences = "; ".join(
                f"{key} was {found.get(key)!r}, is {wanted.get(key)!r}" for key in changed
            )
            raise OutputError(
                settings.out,
                f"holds results of other settings: {differences}",
                "Give another folder, the settings of then, or --restart to compute all of it again.",
            )


def _create_exclusively(path: Path, content: bytes) -> bool:
    """Make a file with all of its content; return False when another process has made it before."""
    temporary = path.with_name(f"job-{Owner.this_process().name}.tmp")
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with path.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _read_claim(settings: Settings, path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not found:
        raise OutputError(path, "is damaged", "Give another folder, or --restart to compute all of it again.")
    return found


class _Signals:
    """Catches SIGINT and SIGTERM: the first asks for an orderly end, a second one ends at once.

    Attributes:
        code: Exit status for the signal that came; 0 before.
        interrupts: Raise `KeyboardInterrupt` at the first one.
    """

    def __init__(self) -> None:
        self.code, self.interrupts = 0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            os._exit(self.code)  # the workers end as their connections close
        self.code = 128 + number
        if self.interrupts:
            raise KeyboardInterrupt


class _Run:
    """One process' part in a batch."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        engine: Engine,
        options: Options,
        signals: _Signals,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.plan, self.settings, self.engine, self.options = plan, settings, engine, options
        self.signals, self.on_progress = signals, on_progress
        self.out, self.owner = Path(settings.out), Owner.this_process()
        remove_abandoned(settings.state / "tmp")
        self.ledger = Ledger(plan, settings.state / "journal", retry_failed=options.retry_failed)
        self.ledger.forget_lost_outputs(self.out, verify=options.verify)
        # Another plan has other parts.
        self.leases = Leases(settings.state / "leases" / plan.checksum, self.owner)
        self.queue: deque[Work] = deque()
        self.open: dict[int, set[int]] = {}  # leased shards -> entries that are not done yet
        self.busy: dict[int, Work] = {}  # workers -> what they were given
        self.deaths: dict[int, int] = {}  # entries -> workers that died on them
        self.summary = Summary(total=len(plan))
        self.new_failures, self.seconds_each = 0, _SECONDS_AT_ONCE
        self._rates: deque[tuple[float, int]] = deque()
        self._shown = self._looked = 0.0
        self._next_shard = 0
        self._journal: Journal | None = None

    def run(self) -> Summary:
        """Work until nothing is left, too much failed or a signal came."""
        start = time.monotonic()
        if self.ledger.count(PENDING):
            for name in LISTS:  # they describe a batch that is complete
                (self.out / name).unlink(missing_ok=True)
        try:
            while True:
                stopping = bool(self.signals.code) or self._failed_too_often()
                if not stopping:
                    self._hand_out()
                if not self.busy and (stopping or not self._is_work_left()):
                    break
                for event in self.engine.wait(_WAIT_SECONDS):
                    self._take(event)
                self._keep_leases()
                self._show()
            self.engine.close()
        finally:
            self.leases.give_all_back()
            if self._journal is not None:
                self._journal.close()
        self.summary.seconds = round(time.monotonic() - start, 3)
        self._show(last=True)
        return self._finish()

    def _failed_too_often(self) -> bool:
        return self.options.max_errors is not None and self.new_failures >= self.options.max_errors

    def _hand_out(self) -> None:
        for worker in self.engine.free():
            if not self.queue:
                self._lease_a_shard()
            if not self.queue:
                return
            self.busy[worker] = self.queue.popleft()
            self.engine.submit(worker, self.busy[worker])

    def _lease_a_shard(self) -> None:
        """Take the lease of the first shard that has something to do, and queue its entries."""
        for shard in range(self._next_shard, self.plan.shards):
            first = shard * self.plan.shard
            if not self.ledger.pending(first, first + self.plan.shard):
                if shard == self._next_shard:  # nor have those before it
                    self._next_shard += 1
                continue
            if shard in self.open or not self.leases.take(shard):
                continue
            self.ledger.read()  # what others did until they gave the lease back
            pending = self.ledger.pending(first, first + self.plan.shard)
            if not pending:
                self.leases.give_back(shard)
                continue
            lines = self.plan.read(shard)
            self.open[shard] = set(pending)
            step = max(1, min(_MOST_AT_ONCE, int(_SECONDS_AT_ONCE / max(self.seconds_each, 1e-3))))
            parts = (pending[i : i + step] for i in range(0, len(pending), step))
            self.queue.extend([(i, lines[i - first]) for i in part] for part in parts)
            return

    def _is_work_left(self) -> bool:
        """Return True while entries are pending here or with other owners; read their journals first."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            self.ledger.read()
        return self.ledger.count(PENDING) > 0

    def _take(self, event: Event) -> None:
        for i, record in event.done:
            self.seconds_each += 0.2 * (record["seconds"] - self.seconds_each)
            self.new_failures += record["status"] == "failed" or bool(record.get("errors"))
            self.ledger.note(i, record)
            self.summary.new += 1
            self._settle(i)
        if event.died:
            self._take_death(event.lost)
        if event.idle:
            self.busy.pop(event.worker, None)

    def _settle(self, i: int) -> None:
        """Give the lease of a shard back when its last entry is done."""
        shard = i // self.plan.shard
        if (left := self.open.get(shard)) is not None:
            left.discard(i)
            if not left:
                del self.open[shard]
                self.leases.give_back(shard)

    def _take_death(self, lost: Work) -> None:
        """Queue what a worker that died had not done, each entry alone; give up one that kills workers."""
        self.summary.deaths += 1
        self.ledger.read()  # a line may be in the journal whose message was lost
        left = []
        for i, line in lost:
            if self.ledger.state[i] == PENDING:
                left.append((i, line))
            else:
                self.summary.new += 1
                self._settle(i)
        if left:
            i, line = left[0]
            self.deaths[i] = self.deaths.get(i, 0) + 1
            if self.deaths[i] >= _MOST_DEATHS:
                self._give_up(*left.pop(0))
        self.queue.extendleft([one] for one in reversed(left))

    def _give_up(self, i: int, line: bytes) -> None:
        if self._journal is None:
            self._journal = Journal(self.settings.state / "journal" / f"{self.owner.name}.jsonl")
        record = {"id": json.loads(line)["id"], "input": f"{digest(line):016x}", "status": "failed"}
        record["reason"] = "killed the worker twice"
        self._journal.append(record)
        self.ledger.note(i, record)
        self.summary.new += 1
        self.new_failures += 1
        self._settle(i)

    def _keep_leases(self) -> None:
        """Show that this process is alive; leave to others what they took over while it was not."""
        lost = self.leases.refresh()
        for shard in lost & {*self.open}:
            del self.open[shard]
            left = [[one for one in work if one[0] // self.plan.shard != shard] for work in self.queue]
            self.queue = deque(work for work in left if work)

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self.on_progress is None or (now - self._shown < 0.25 and not last):
            return
        self._shown = now
        total, failed = len(self.plan), self.ledger.count(FAILED)
        finished = total - self.ledger.count(PENDING)
        self._rates.append((now, finished))
        while now - self._rates[0][0] > _RATE_SECONDS:
            self._rates.popleft()
        then, before = self._rates[0]
        rate = (finished - before) / (now - then) if now > then else 0.0
        left = (total - finished) / rate if rate else None
        self.on_progress(Progress(finished - failed, failed, total, rate, left, self.summary.deaths))

    def _finish(self) -> Summary:
        """Write the lists of results and failures, and say how it ended."""
        summary, ledger = self.summary, self.ledger
        complete, stopped = not ledger.count(PENDING), self._failed_too_often()
        if complete:
            summary.manifest = self._write("manifest.jsonl", ledger.manifest(self.out))
        if complete or stopped:
            summary.errors = self._write("errors.jsonl", ledger.errors())
        remove_abandoned(self.settings.state / "tmp")
        summary.done, summary.failed = ledger.count(DONE), ledger.failures
        summary.exit_code = self.signals.code or (EXIT_FAILURES if summary.failed or stopped else 0)
        if complete and not stopped:
            # A signal that came after the last picture changes nothing.
            summary.exit_code = EXIT_FAILURES if summary.failed else 0
        return summary

    def _write(self, name: str, lines: Iterator[bytes]) -> str:
        scratch = self.settings.state / "tmp" / self.owner.name
        scratch.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self.out / name, lambda file: file.writelines(lines), overwrite=True, scratch=scratch
        )
        scratch.rmdir()
        return str(self.out / name)
