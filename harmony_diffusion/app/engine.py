"""The one worker of the page: models, and files of results, one job after another."""

import os
import queue
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from harmony_diffusion.errors import CheckpointError, HarmonyError, InputError, InputNote
from harmony_diffusion.paths import is_folder
from harmony_diffusion.process import return_freed_memory

Result = TypeVar("Result")
TIME_LIMIT = 300.0  # seconds for a job and those before it
_KEPT = 3600.0  # seconds that files of results are kept
DIFFUSION, DIFFUSION_FOLDER = "sd2-dual", "HARMONY_SD2_DUAL"  # offered where the variable is set
VARIATION = "reinhard"  # the other model of the variations


class Engine:
    """Models and files.

    Args:
        folder: Folder for uploads and results; it is created, and `close` removes it.
        models: Names and folders of models that can be chosen, the first by default.
        max_pixels: Limit of height times width of all pictures.
    """

    def __init__(self, folder: Path, models: list[str], max_pixels: int = 100_000_000) -> None:
        self.folder, self.models, self.max_pixels = folder, models, max_pixels
        self._loaded: dict[str, Any] = {}
        # One thread owns the models, and its memory is used again by the next job.
        # A daemon, so that Ctrl-C need not wait for it.
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="harmony", daemon=True).start()
        folder.mkdir(parents=True, exist_ok=True)

    def model(self, name: str) -> Any:
        """Return what was offered under a name: a `HarmonyModel`, or a diffusion pipeline.

        Raises:
            InputError: It was not offered.
            CheckpointError: It cannot be loaded.
        """
        if name not in self.models:
            choices = ", ".join(Path(model).name for model in self.models)
            raise InputError("model", f"{name[:60]!r} is not offered", f"Choose one of {choices}.")
        if name not in self._loaded:
            try:
                self._loaded[name] = _load(name)
            except (OSError, RuntimeError) as error:
                if isinstance(error, HarmonyError):
                    raise
                raise CheckpointError(f"{name}: cannot be loaded: {error}") from error
        return self._loaded[name]

    def run(self, job: Callable[..., Result], *arguments: Any) -> tuple[Result, list[str]]:
        """Run a job after those before it, and return its result and the notes about its files.

        Raises:
            InputError: The job is refused, or takes too long together with those before it.
        """
        waiting: Future[tuple[Result, list[str]]] = Future()
        self._jobs.put((waiting, partial(self._run, job, *arguments)))
        try:
            return waiting.result(TIME_LIMIT)
        except TimeoutError:
            waiting.cancel()
            reason = f"this and the jobs before it took more than {TIME_LIMIT:.0f} seconds"
            raise InputError("page", reason, "Try again later, or with a smaller picture.") from None

    def _work(self) -> None:
        while True:
            waiting, job = self._jobs.get()
            if not waiting.set_running_or_notify_cancel():
                continue
            try:
                waiting.set_result(job())
            except BaseException as error:
                waiting.set_exception(error)
            del waiting, job  # their pictures are not kept until the next job

    def _run(self, job: Callable[..., Result], *arguments: Any) -> tuple[Result, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InputNote)
            try:
                result = job(*arguments)
            finally:
                return_freed_memory()
        notes = [self.without_paths(str(w.message)) for w in caught if issubclass(w.category, InputNote)]
        return result, list(dict.fromkeys(notes))

    def new_folder(self) -> Path:
        """Return a new folder for one result, and remove those of long ago."""
        for old in self.folder.glob("result-*"):
            if time.time() - old.stat().st_mtime > _KEPT:
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix="result-", dir=self.folder))

    def without_paths(self, text: str) -> str:
        """Return a message that names files by their own name, never by their folder."""
        text = re.sub(re.escape(str(self.folder)) + r"/(?:[^/\s]+/)*", "", text)
        for place in (os.getcwd(), str(Path.home()), str(Path(__file__).parents[2])):
            if len(place) > 1:
                text = text.replace(place + "/", "")
        return text

    def close(self) -> None:
        """Remove the folder, and wait for no job."""
        shutil.rmtree(self.folder, ignore_errors=True)


def is_diffusion(name: str) -> bool:
    """Return True if a model takes a prompt."""
    index = Path(name) / "model_index.json"
    return name == DIFFUSION or (index.is_file() and "StableDiffusion" in index.read_text("utf-8"))


def _load(name: str) -> Any:
    from harmony_diffusion.models import is_model, load_model

    if is_model(name):
        return load_model(name)
    if not is_diffusion(name):
        from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

        return HarmonizationPipeline.from_pretrained(name).model
    from diffusers.utils.torch_utils import get_device

    from harmony_diffusion.pipelines.loading import load_pipeline

    pipe: Any = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(get_device())


def offered_models(extra: str | None = None) -> list[str]:
    """Return the default model, other models whose weights come along, and those that need none.

    Args:
        extra: A name or folder to put first.
    """
    # Asking the registry would import torch before the page is up.
    weights = Path(__file__).parents[1] / "weights"
    with_weights = sorted(path.parent.name for path in weights.glob("*/config.json"))
    names = ["color_grid", *with_weights, VARIATION, "mkl", "idt", "histogram_matching", "poisson"]
    if os.environ.get(DIFFUSION_FOLDER):
        names.append(DIFFUSION)
    return list(dict.fromkeys([extra, *names] if extra else names))


def check_offered(model: str | None) -> None:
    """Check that a model to offer first can be one, before the page is served.

    Raises:
        InputError: It is neither a model with weights nor a folder, and no name of a repository on the Hub.
    """
    known = ["default", "identity", DIFFUSION, *offered_models()]
    if model is None or model in known or is_folder(model) or re.fullmatch(r"[\w.-]+/[\w.@-]+", model):
        return
    raise InputError(
        "--model",
        f"{model[:60]!r} is neither a model with weights nor a folder",
        f"Choose one of {', '.join(offered_models())}, or give a saved folder.",
    )
