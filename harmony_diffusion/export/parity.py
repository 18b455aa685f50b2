"""Compare an exported model with the one it was made from, on pictures that are easy to get wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harmony_diffusion.errors import ExportError

LIMIT = 1e-4  # of values in [0, 1]: a fortieth of a level of 8 bits
_PICTURE = (150, 203)  # full-size picture of the check, of another shape than the thumbnail

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        difference: Largest difference of the harmonized pictures, values in [0, 1].
        filters: Largest difference of the filters; None for models without.
        worst: Name of the input that differs most.
    """

    difference: float
    filters: float | None
    worst: str


def check_inputs(size: tuple[int, int]) -> dict[str, Pair]:
    """Make the inputs of the check, the same on every machine.

    Args:
        size: Height and width.

    Returns:
        Name -> composite `(1, 3, h, w)` and mask `(1, 1, h, w)`, float32 in [0, 1].
    """
    random = np.random.default_rng(0)
    scene, disk = _scene(random, size), _disk(size)
    point = np.zeros((1, 1, *size), np.float32)
    point[..., size[0] // 3, size[1] // 2] = 1
    # Few and large blocks. A border that runs everywhere makes ties in `topk`, which each runtime, and
    # PyTorch on each device, breaks in its own way.
    block = max(size) // 5
    rough = (random.random((1, 1, -(-size[0] // block), -(-size[1] // block))) > 0.5).astype(np.float32)
    rough = rough.repeat(block, 2).repeat(block, 3)[:, :, : size[0], : size[1]]
    hard = (disk > 0.5).astype(np.float32)
    extremes = (random.random((1, 3, *size)) > 0.5).astype(np.float32)
    return {
        "random": (random.random((1, 3, *size), np.float32), rough),
        "scene": (scene, hard),
        "empty mask": (scene, np.zeros_like(hard)),
        "full mask": (scene, np.ones_like(hard)),
        "soft mask": (scene, disk),
        "one pixel": (scene, point),
        "constant": (np.full_like(scene, 0.3), hard),
        "extremes": (extremes, hard),
    }


def compare_filters(
    predict: tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]],
    apply: tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]],
    size: tuple[int, int],
    limit: float = LIMIT,
) -> Parity:
    """Compare a model that predicts filters; both predict and apply their own.

    Args:
        predict: Of the original and of the exported model: `(composite, mask) -> filters`.
        apply: Of both: `(image, filters, mask) -> harmonized`.
        size: Height and width of the thumbnail.
        limit: Largest difference of the harmonized picture that is accepted.

    Raises:
        ExportError: A larger one, a changed background, or values that are not finite.
    """
    found: dict[str, float] = {}
    filters_differ = 0.0
    pictures = check_inputs(_PICTURE)
    for name, thumbnail in check_inputs(size).items():
        filters = [one(*thumbnail) for one in predict]
        _check_finite(name, "filters", filters[1])
        image, mask = pictures[name]
        harmonized = [one(image, own, mask) for one, own in zip(apply, filters, strict=True)]
        filters_differ = max(filters_differ, _difference(*filters))
        found[name] = _compared(name, harmonized, image, mask)
    return _judged(found, filters_differ, limit)


def compare_dense(
    run: tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]],
    size: tuple[int, int],
    limit: float = LIMIT,
) -> Parity:
    """Compare a model that returns the picture: `(composite, mask) -> harmonized` of both.

    Raises:
        ExportError: As `compare_filters`.
    """
    found = {}
    for name, (composite, mask) in check_inputs(size).items():
        harmonized = [one(composite, mask) for one in run]
        # Pipelines ask no dense network about an empty or a full mask, and some are undefined there.
        if name in ("empty mask", "full mask") and not np.isfinite(harmonized[0]).all():
            continue
        found[name] = _compared(name, harmonized, composite, mask)
    return _judged(found, None, limit)


def _compared(name: str, harmonized: list[np.ndarray], image: np.ndarray, mask: np.ndarray) -> float:
    _check_finite(name, "picture", harmonized[1])
    background = np.broadcast_to(mask == 0, image.shape)
    if not np.array_equal(harmonized[1][background], image[background]):
        raise ExportError(f"The exported model changes the background of the check {name!r}. Not exported.")
    return _difference(*harmonized)


def _check_finite(name: str, what: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ExportError(f"The exported model returns {what} with NaN for the check {name!r}. Not exported.")


def _difference(original: np.ndarray, exported: np.ndarray) -> float:
    return float(np.abs(original.astype(np.float64) - exported).max())


def _judged(found: dict[str, float], filters: float | None, limit: float) -> Parity:
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= limit:
        raise ExportError(
            f"The exported model differs by {found[worst]:.2g} for the check {worst!r}, at most {limit:.0e} "
            "is accepted. Not exported: store float32 with `half_storage=False` (`--fp32-storage`) where "
            "float16 was stored, else use the model with PyTorch."
        )
    return Parity(found[worst], filters, worst)


def _scene(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Noise with the spectrum of photographs (amplitude 1 / frequency), `(1, 3, h, w)`."""
    rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(size))
    shared, own = random.standard_normal((1, *size)), random.standard_normal((3, *size))
    noise = np.fft.ifft2(np.fft.fft2(shared + 0.3 * own) * amplitude).real
    noise /= noise.std((1, 2), keepdims=True)
    return (0.45 + 0.2 * noise).clip(0, 1).astype(np.float32)[None]


def _disk(size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size).reshape(2, 1, 1) - 0.5
    return ((0.3 - np.hypot(y, x + 0.05)) * 30).clip(0, 1).astype(np.float32)[None, None]
