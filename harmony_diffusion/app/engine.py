"""The one worker of the page: models, and files of results, one job after another."""

import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harmony_diffusion.errors import CheckpointError, HarmonyError, InputError, InputNote

if TYPE_CHECKING:
    # Importing torch takes seconds, and the page is up before.
    from harmony_diffusion.models.contract import HarmonyModel

Result = TypeVar("Result")
TIME_LIMIT = 300.0  # seconds that a job waits for those before it
_KEPT = 3600.0  # seconds that files of results are kept
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
        self._loaded: dict[str, HarmonyModel] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def model(self, name: str) -> "HarmonyModel":
        """Return a model by the name or folder it was offered as.

        Raises:
            InputError: It was not offered.
            CheckpointError: It cannot be loaded.
        """
        if name not in self.models:
            raise InputError(
                "model", f"{name[:60]!r} is not offered", f"Choose one of {', '.join(self.models)}."
            )
        if name not in self._loaded:
            from harmony_diffusion.models import load_model

            try:
                self._loaded[name] = load_model(name)
            except (OSError, RuntimeError) as error:
                if isinstance(error, HarmonyError):
                    raise
                raise CheckpointError(f"{name}: cannot be loaded: {error}") from error
        return self._loaded[name]

    def run(self, job: Callable[..., Result], *arguments: Any) -> tuple[Result, list[str]]:
        """Run a job after those before it, and return its result and the notes about its files.

        Raises:
            InputError: The job is refused, or others take too long.
        """
        if not self._lock.acquire(timeout=TIME_LIMIT):
            raise InputError(
                "page", f"other jobs took more than {TIME_LIMIT:.0f} seconds", "Try again later."
            )
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", InputNote)
                result = job(*arguments)
        finally:
            self._lock.release()
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
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def offered_models(extra: str | None = None) -> list[str]:
    """Return the default model, other models whose weights come along, and those that need none.

    Args:
        extra: A name or folder to put first.
    """
    # Asking the registry would import torch before the page is up.
    weights = Path(__file__).parents[1] / "weights"
    with_weights = sorted(path.parent.name for path in weights.glob("*/config.json"))
    names = ["color_grid", *with_weights, VARIATION, "mkl", "idt", "histogram_matching", "poisson"]
    return list(dict.fromkeys([extra, *names] if extra else names))
