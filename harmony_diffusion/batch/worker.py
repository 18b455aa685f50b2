"""What one process of a batch does: load the model once, then one entry of the plan after another.

Imports of PyTorch stay inside functions: the process that only hands out the work must stay small.
"""

import hashlib
import io
import json
import lzma
import os
import tarfile
import tempfile
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from harmony_diffusion.batch.inputs import PICTURE_SUFFIXES, check_name
from harmony_diffusion.batch.journal import Journal
from harmony_diffusion.batch.leases import Owner
from harmony_diffusion.batch.plan import digest
from harmony_diffusion.errors import HarmonyError, InputError, InputNote, OutputError

STATE = ".harmony"
# Bytes of memory a pixel at the peak, beyond what the loaded model takes (eval/bench_batch.py measures it).
BYTES_A_PIXEL = 40
_AHEAD = 2  # pictures decoded before their turn, and encoded after it

Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """All that the results depend on, and where they go.

    Attributes:
        out: Folder of the results.
        root: Folder that the names of pictures are relative to.
        mask_root: Folder that the names of masks are relative to.
        kind: "tar" for shards, else entries are pictures.
        suffix: Suffix of the results inside of tar shards.
        model: What `load_pipeline` takes.
        device: A name of PyTorch, or "auto": the accelerator if there is one.
        strength: 0 to 1, where an entry says nothing else.
        quality: Of JPEG, WebP and AVIF.
        png_level: Compression of PNG, 0 to 9.
        invert_mask: The foreground is black.
        resize_mask: Resize masks of another size.
        allow_truncated: Read what is left of damaged files.
        max_pixels: Limit of pixels.
        max_memory: Limit in bytes of the memory one picture may take; None = no other limit than the pixels.
        prompt: For diffusion pipelines, where an entry has none.
        steps: For diffusion pipelines.
        seed: For diffusion pipelines; the noise depends on it and on the id.
    """

    out: str
    root: str
    mask_root: str
    kind: str = "folder"
    suffix: str | None = None
    model: str = "default"
    device: str = "auto"
    strength: float = 1.0
    quality: int = 95
    png_level: int = 1
    invert_mask: bool = False
    resize_mask: bool = False
    allow_truncated: bool = False
    max_pixels: int = 100_000_000
    max_memory: int | None = None
    prompt: str | None = None
    steps: int | None = None
    seed: int = 0

    @property
    def state(self) -> Path:
        """Return the folder of plan, journals and leases."""
        return Path(self.out) / STATE

    @property
    def pixels(self) -> int:
        """Return the limit of pixels that follows from both limits."""
        if self.max_memory is None:
            return self.max_pixels
        return min(self.max_pixels, self.max_memory // BYTES_A_PIXEL)


class Worker:
    """Harmonizes entries, and writes a line of its own journal for each.

    Args:
        settings: What to do.
        overlap: Decode the next pictures and encode the last ones in threads beside the model; needs cores
            that are free.

    Raises:
        HarmonyError: The model cannot be loaded.
    """

    def __init__(self, settings: Settings, *, overlap: bool = False) -> None:
        import cv2

        from harmony_diffusion.pipelines.loading import load_pipeline

        _use_one_thread()
        cv2.setNumThreads(1)
        self._shows_warnings = _collect_notes()
        self.settings, self.overlap, self.owner = settings, overlap, Owner.this_process()
        self.pipe = load_pipeline(settings.model)
        self.pipe.set_progress_bar_config(disable=True)
        self.device = _device(settings.device)
        self.pipe.to(self.device)
        self.fingerprint = _fingerprint(self.pipe) | {"device": self.device}
        self._scratch: Path | None = None
        self._journal: Journal | None = None

    def process(self, line: bytes) -> Record:
        """Do one entry and append the result to the journal.

        Args:
            line: Line of the plan.

        Returns:
            The record: `status` "done" or "failed" with what belongs to it.

        Raises:
            OutputError: Nothing can be written there, which is no fault of this entry.
        """
        return self._store(self._compute(self._load(line)))

    def process_all(self, lines: Iterable[bytes]) -> Iterator[Record]:
        """Do entries in order, with decoding and encoding in threads of their own if `overlap` is set.

        Raises:
            OutputError: See `process`.
        """
        if not self.overlap:
            yield from map(self.process, lines)
            return
        rest = iter(lines)
        with (
            ThreadPoolExecutor(1, initializer=_use_one_thread) as decoding,
            ThreadPoolExecutor(1, initializer=_use_one_thread) as encoding,
        ):
            loading = deque(decoding.submit(self._load, line) for line in islice(rest, _AHEAD))
            storing: deque[Future[Record]] = deque()
            while loading:
                task = self._compute(loading.popleft().result())
                loading.extend(decoding.submit(self._load, line) for line in islice(rest, 1))
                storing.append(encoding.submit(self._store, task))
                while storing and (len(storing) > _AHEAD or storing[0].done()):
                    yield storing.popleft().result()
            while storing:
                yield storing.popleft().result()

    def _load(self, line: bytes) -> "_Task":
        task = _Task(json.loads(line), f"{digest(line):016x}")
        with self._step(task):
            if self.settings.kind != "tar":
                task.inputs = self._load_pictures(task.entry)
        return task

    def _compute(self, task: "_Task") -> "_Task":
        with self._step(task):
            if task.inputs is not None:
                task.result, task.inputs = self._harmonize(task.entry, *task.inputs), None
        return task

    def _store(self, task: "_Task") -> Record:
        with self._step(task):
            if self.settings.kind == "tar":
                task.record = self._do_shard(task.entry)
            elif task.result is not None:
                task.record = self._write_picture(task.entry["output"], task.result)
        record: Record = {"id": task.entry["id"], "input": task.digest}
        if task.reason is None:
            record |= {"status": "done", **task.record}
        else:
            record |= {"status": "failed", "reason": task.reason}
        if task.notes:
            record["notes"] = task.notes
        record["seconds"] = round(task.seconds, 4)
        try:
            self._own_journal().append(record)
        except OSError as error:
            raise OutputError(self.settings.state, error.strerror or str(error)) from error
        return record

    @contextmanager
    def _step(self, task: "_Task") -> Iterator[None]:
        """Keep time, notes and the reason of a failure; one picture must not end the job."""
        start = time.perf_counter()
        _collected.notes = []
        try:
            yield
        except _CannotWrite as error:
            raise error.error from error
        except Exception as error:  # decoders of damaged files raise almost anything
            task.reason, task.inputs, task.result = self._reason(error), None, None
        task.notes += map(self._short, _collected.notes)
        task.seconds += time.perf_counter() - start

    def sync(self) -> None:
        """Have the journal on the disk."""
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        """Close the journal, remove the folder of temporary files, show notes again as before."""
        warnings.showwarning = self._shows_warnings
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._scratch is not None:
            try:
                self._scratch.rmdir()
            except OSError:
                pass
            self._scratch = None

    def _own_journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self.settings.state / "journal" / f"{self.owner.name}.jsonl")
        return self._journal

    def _own_scratch(self) -> Path:
        if self._scratch is None:
            self._scratch = self.settings.state / "tmp" / self.owner.name
            self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def _write_picture(self, name: str, picture: Any) -> Record:
        encoded = io.BytesIO()
        picture.encoder(name, quality=self.settings.quality, png_level=self.settings.png_level)(encoded)
        content = encoded.getvalue()
        self._write(name, content)
        return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    def _load_pictures(self, entry: Record) -> tuple[Any, Any, Any]:
        """Return composite, mask and reference mask; pastes the foreground first where there is one."""
        from harmony_diffusion.images.masks import load_mask
        from harmony_diffusion.images.picture import load_picture

        settings = self.settings
        reading: dict[str, Any] = {"max_pixels": settings.pixels, "allow_truncated": settings.allow_truncated}
        masking: dict[str, Any] = {"max_pixels": settings.pixels, "invert": settings.invert_mask}

        def path_of(field: str) -> str | None:
            root = settings.mask_root if field in ("mask", "reference_mask") else settings.root
            return f"{root}/{entry[field]}" if field in entry else None

        mask_path = path_of("mask")
        if foreground_path := path_of("foreground"):
            from harmony_diffusion.images.compose import paste_foreground

            foreground = load_picture(foreground_path, **reading)
            background = load_picture(path_of("background"), **reading)  # type: ignore[arg-type]
            cut = None
            if mask_path is not None:
                cut = load_mask(mask_path, size=foreground.size, size_of="foreground", **masking)
            at = tuple(entry["at"]) if "at" in entry else None
            scale = entry.get("scale", 1.0)
            composite, mask = paste_foreground(foreground, background, cut, at=at, scale=scale)
        else:
            composite = load_picture(path_of("composite"), **reading)  # type: ignore[arg-type]
            mask = load_mask(
                mask_path,  # type: ignore[arg-type]
                size=composite.size,
                size_of=composite.name,
                resize=settings.resize_mask,
                **masking,
            )
        reference_path = path_of("reference_mask")
        if reference_path is None:
            return composite, mask, None
        reference = load_mask(
            reference_path, size=composite.size, name="reference_mask", max_pixels=settings.pixels
        )
        return composite, mask, reference

    def _harmonize(self, entry: Record, composite: Any, mask: Any, reference: Any) -> Any:
        from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

        strength = entry.get("strength", self.settings.strength)
        options: Record = {"output_type": "picture", "return_dict": False}
        if isinstance(self.pipe, HarmonizationPipeline):
            images, _ = self.pipe(composite, mask, strength=strength, reference_mask=reference, **options)
            return images[0]
        if reference is not None:
            raise InputError("reference_mask", "is for the models, and not for a diffusion pipeline")
        import torch

        seed = self.settings.seed + zlib.crc32(entry["id"].encode("utf-8", "surrogatepass"))
        options["generator"] = torch.Generator().manual_seed(seed)
        if self.settings.steps is not None:
            options["num_inference_steps"] = self.settings.steps
        if strength != 1:
            options |= {"init": "composite", "strength": strength}
        images, _ = self.pipe(composite, mask, entry.get("prompt", self.settings.prompt), **options)
        return images[0]

    def _write(self, name: str, content: Any) -> None:
        from harmony_diffusion.images.output_files import write_atomically

        target = Path(self.settings.out, name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, content, overwrite=True, scratch=self._own_scratch())
        except (OutputError, OSError) as error:
            raise _CannotWrite(
                error if isinstance(error, OutputError) else OutputError(target, error.strerror or str(error))
            ) from error

    def _do_shard(self, entry: Record) -> Record:
        """Harmonize the samples of a tar shard one after another into a shard of the same name."""
        errors: list[tuple[str, str]] = []
        count = 0
        checksum = hashlib.sha256()

        def write(file: BinaryIO) -> None:
            nonlocal count
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as shard:
                for name, composite, mask in self._samples(entry, errors):
                    try:
                        picture, content = self._harmonize_sample(name, composite, mask)
                    except Exception as error:  # as for pictures in folders
                        errors.append((name, self._reason(error, {composite: name, mask: name})))
                        continue
                    member = tarfile.TarInfo(picture)  # without time and owner: same input, same bytes
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
                    count += 1
            file.seek(0)
            while block := file.read(1 << 20):
                checksum.update(block)

        self._write(entry["output"], write)
        size = os.stat(Path(self.settings.out, entry["output"])).st_size
        record: Record = {"sha256": checksum.hexdigest(), "bytes": size, "pictures": count}
        return record | ({"errors": errors} if errors else {})

    def _samples(self, entry: Record, errors: list[tuple[str, str]]) -> Iterator[tuple[str, Path, Path]]:
        """Yield name, composite and mask of each sample; both are files that are removed afterwards."""
        path = f"{self.settings.root}/{entry['composite']}"
        try:
            source = tarfile.open(path, "r:*")
        except (tarfile.TarError, OSError) as error:
            raise InputError(path, f"is no tar file: {' '.join(str(error).split())}") from None
        with source, tempfile.TemporaryDirectory(dir=self._own_scratch()) as folder:
            found: dict[str, Path] = {}
            name, samples = "", 0
            for member in self._members(source, path, errors):
                stem, part, suffix = _split_member(member.name)
                if not member.isfile() or part not in ("composite", "mask") or suffix not in PICTURE_SUFFIXES:
                    continue
                if stem != name:
                    yield from _whole_sample(name, found, errors)
                    name, found, samples = stem, {}, samples + 1
                try:
                    check_name(stem, "name")
                except ValueError as error:
                    errors.append((stem, str(error)))
                    continue
                target = Path(folder, part + suffix)
                content = source.extractfile(member)
                target.write_bytes(content.read() if content else b"")
                found[part] = target
            yield from _whole_sample(name, found, errors)
        if not samples:
            raise InputError(
                path, "holds no sample", "Expected members NAME.composite.png and NAME.mask.png."
            )

    def _members(
        self, source: tarfile.TarFile, path: str, errors: list[tuple[str, str]]
    ) -> Iterator[tarfile.TarInfo]:
        """Yield the members up to the end, and refuse a file that is damaged or cut."""
        try:
            while (member := _next_member(source, path)) is not None:
                yield member
            _check_end(source, path)
        except InputError as error:
            if not self.settings.allow_truncated:
                raise
            errors.append((os.path.basename(path), self._reason(error)))

    def _harmonize_sample(self, name: str, composite: Path, mask: Path) -> tuple[str, bytes]:
        from harmony_diffusion.images.masks import load_mask
        from harmony_diffusion.images.picture import load_picture

        settings = self.settings
        picture = load_picture(
            composite, max_pixels=settings.pixels, allow_truncated=settings.allow_truncated
        )
        foreground = load_mask(
            mask,
            size=picture.size,
            size_of=picture.name,
            invert=settings.invert_mask,
            resize=settings.resize_mask,
            max_pixels=settings.pixels,
        )
        result = self._harmonize({"id": name}, picture, foreground, None)
        own = ".png" if composite.suffix == ".gif" else composite.suffix
        output = f"{name}.harmonized{settings.suffix or own}"
        encoded = io.BytesIO()
        result.encoder(output, quality=settings.quality, png_level=settings.png_level)(encoded)
        return output, encoded.getvalue()

    def _reason(self, error: Exception, names: dict[Path, str] | None = None) -> str:
        """Return one line that does not depend on where the folders lie."""
        text = str(error) if isinstance(error, HarmonyError) else f"{type(error).__name__}: {error}"
        if isinstance(error, InputError) and self.settings.pixels < self.settings.max_pixels:
            text = text.replace("--max-pixels", "--max-memory")
        for path, name in (names or {}).items():
            text = text.replace(str(path), f"{name}.{path.name}")
        return self._short(text)

    def _short(self, text: str) -> str:
        for root in (self.settings.root, self.settings.mask_root, self.settings.out):
            text = text.replace(f"{root}/", "")
        return " ".join(text.split())


@dataclass
class _Task:
    """An entry on its way through the steps."""

    entry: Record
    digest: str
    inputs: tuple[Any, Any, Any] | None = None
    result: Any = None
    record: Record = field(default_factory=dict)
    reason: str | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class _Collected(threading.local):
    """The notes on the entry that the running thread works on."""

    notes: list[str] = []  # replaced by each step


_collected = _Collected()


def _collect_notes() -> Any:
    """Have notes collected instead of shown; return what showed them.

    `warnings.catch_warnings` would mix those of several threads.
    """
    before = warnings.showwarning

    def collect(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, InputNote):
            _collected.notes.append(str(message))
        else:
            before(message, category, *rest, **named)

    warnings.simplefilter("always", InputNote)
    warnings.showwarning = collect
    return before


def _use_one_thread() -> None:
    """Let PyTorch compute in the running thread alone: the number of threads changes the last bit of sums."""
    import torch

    torch.set_num_threads(1)


class _CannotWrite(Exception):
    """The output folder fails, and with it every other entry."""

    def __init__(self, error: OutputError) -> None:
        self.error = error
        super().__init__(str(error))


def _next_member(source: tarfile.TarFile, path: str) -> tarfile.TarInfo | None:
    try:
        return source.next()
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(path, f"is damaged: {error}", "Copy or download the file again") from None


def _check_end(source: tarfile.TarFile, path: str) -> None:
    """Check that a file ends by two blocks of zeros: the reader takes a bad header for the end, too."""
    file = source.fileobj
    assert file is not None
    fix = "Copy or download the file again, or give --allow-truncated for what is left"
    try:
        file.seek(source.offset)
        end = file.read(2 * tarfile.BLOCKSIZE)
        if end.count(0) != len(end):
            raise InputError(path, f"is damaged: there is no header at byte {source.offset}", fix)
        while block := file.read(1 << 20):
            if block.count(0) != len(block):
                raise InputError(path, f"is damaged: data follow its end at byte {source.offset}", fix)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(path, f"is damaged: {error}", fix) from None
    if len(end) < 2 * tarfile.BLOCKSIZE:
        raise InputError(path, f"is cut: its end is missing at byte {source.offset}", fix)


def _split_member(name: str) -> tuple[str, str, str]:
    """Split `day/a.composite.jpg` into `day/a`, `composite` and `.jpg`."""
    folder, slash, file = name.rpartition("/")
    stem, _, rest = file.partition(".")
    part, dot, suffix = rest.rpartition(".")
    return f"{folder}{slash}{stem}", part, f"{dot}{suffix}".lower()


def _whole_sample(
    name: str, found: dict[str, Path], errors: list[tuple[str, str]]
) -> Iterator[tuple[str, Path, Path]]:
    if len(found) == 2:
        yield name, found["composite"], found["mask"]
    elif found:
        missing = "mask" if "composite" in found else "composite"
        errors.append((name, f"has no {missing} beside its {' '.join(found)}"))
    for path in found.values():
        path.unlink(missing_ok=True)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = str(torch.device(name))
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0][:100]
        raise InputError(
            "device", f"{name[:40]!r} cannot be used here: {reason}", "Give auto, cpu or cuda."
        ) from None
    return device


def _fingerprint(pipe: Any) -> dict[str, str]:
    """Return a hash of all weights, and the versions that the bytes of the results depend on."""
    import cv2
    import numpy
    import PIL
    import torch

    checksum = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, torch.nn.Module):
            settings = dict(getattr(component, "config", {}))
            config = {key: value for key, value in settings.items() if not key.startswith("_")}
            checksum.update(f"{name} {type(component).__name__} {sorted(config.items())}".encode())
            for key, tensor in sorted(component.state_dict().items()):
                checksum.update(key.encode())
                checksum.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    versions = {
        "version": metadata.version("harmony-diffusion"),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
    }
    return {"weights": checksum.hexdigest(), **versions}
