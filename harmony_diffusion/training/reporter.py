"""Numbers and pictures of a run: log, `OUTPUT/validation`, TensorBoard."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harmony_diffusion.errors import MissingDependencyError
from harmony_diffusion.training.validation import Validation

logger = logging.getLogger(__name__)


class Reporter:
    """Writer of numbers and pictures.

    Args:
        folder: Folder of the run.
        report_to: "none" or "tensorboard".

    Raises:
        MissingDependencyError: TensorBoard is required and not installed.
    """

    def __init__(self, folder: Path, report_to: str) -> None:
        self.folder, self.board = folder, None
        if report_to == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError(
                    'TensorBoard is not installed. Run `pip install "harmony-diffusion[train]"`.'
                ) from error
            self.board = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers to TensorBoard; the names hold a group, as in `train/loss`."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def pictures(self, pictures: Tensor, step: int) -> None:
        """Write a sheet of pictures in [0, 1], `(3, H, W)`, to `OUTPUT/validation` and TensorBoard."""
        pixels = (pictures * 255).round().to(torch.uint8)
        (self.folder / "validation").mkdir(exist_ok=True)
        path = self.folder / "validation" / f"step-{step}.png"
        Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(path)
        if self.board is not None:
            self.board.add_image("validation", pixels, step)

    def validation(self, result: Validation, step: int) -> None:
        """Write the scores and the pictures of a validation."""
        scores = ", ".join(f"{name} {value:.2f}" for name, value in result.scores.items())
        logger.info("validation after %d steps: %s", step, scores)
        self.scalars({f"validation/{name}": value for name, value in result.scores.items()}, step)
        self.pictures(result.pictures, step)
