"""Source and licences of a method, shown by `harmony models` and in model cards."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Origin of a method.

    Attributes:
        title: Title of the paper.
        paper: Address of the paper.
        code: Address of the official code, empty when none is public.
        code_license: Licence of the official code; ours is written from the paper and measured facts.
        weights_license: Licence of the official weights, empty when none are published.
    """

    title: str
    paper: str
    code: str = ""
    code_license: str = ""
    weights_license: str = ""
