"""The one thing every dataset yields, and what is wrong with it where it cannot be used."""

import logging
from dataclasses import dataclass
from typing import NamedTuple

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.sources import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HarmonySample:
    """One composite with its mask and its ground truth, as files.

    Attributes:
        name: Name of the composite, unique in the dataset.
        subset: Part of the dataset it belongs to.
        composite: File of the composite.
        mask: File of the mask.
        real: File of the ground truth.
        prompt: Caption of the picture, empty when there is none.
    """

    name: str
    subset: str
    composite: Source
    mask: Source
    real: Source
    prompt: str = ""


class Problem(NamedTuple):
    """Why a file or a line of a dataset cannot be used.

    Attributes:
        file: The file, with the line where there are lines.
        reason: What is wrong with it.
    """

    file: str
    reason: str


def report(error: InputError, problems: list[Problem] | None) -> None:
    """Append an error to a list of problems, or raise it where there is no list.

    Raises:
        InputError: `problems` is None.
    """
    if problems is None:
        raise error
    problems.append(Problem(error.subject, error.reason))


def report_duplicate(file: str, reason: str, problems: list[Problem] | None) -> None:
    """Append what does no harm, such as a line that is there twice, or log it where there is no list."""
    if problems is None:
        logger.warning("%s: %s", file, reason)
    else:
        problems.append(Problem(file, reason))
