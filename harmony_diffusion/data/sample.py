"""The sample that every data set yields, and the record of a fault."""

import logging
from dataclasses import dataclass
from typing import NamedTuple

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.sources import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HarmonySample:
    """Files of one composite, its mask and its ground truth.

    Attributes:
        name: Name of the composite, unique in the data set.
        subset: Subset of the data set.
        composite: File of the composite.
        mask: File of the mask.
        real: File of the ground truth.
        prompt: Caption of the picture; empty if there is none.
    """

    name: str
    subset: str
    composite: Source
    mask: Source
    real: Source
    prompt: str = ""


class Problem(NamedTuple):
    """A fault in a file or line of a data set.

    Attributes:
        file: The file, with the line number for files of lines.
        reason: The fault.
    """

    file: str
    reason: str


def report(error: InputError, problems: list[Problem] | None) -> None:
    """Append an error to a list of problems, or raise it if there is no list.

    Raises:
        InputError: `problems` is None.
    """
    if problems is None:
        raise error
    problems.append(Problem(error.subject, error.reason))


def report_duplicate(file: str, reason: str, problems: list[Problem] | None) -> None:
    """Append a harmless fault, such as a repeated line, to a list of problems. Without a list, log it."""
    if problems is None:
        logger.warning("%s: %s", file, reason)
    else:
        problems.append(Problem(file, reason))
