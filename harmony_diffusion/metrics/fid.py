"""FID and KID between two sets of images, with the feature network as an argument.

Both compare the features of generated and real images. FID compares means and covariances (Heusel et al.
2017). KID compares kernel means (Binkowski et al. 2018) and, unlike FID, has no bias in small sets. Values
are not comparable across feature networks or resize modes, so a result records both.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harmony_diffusion.errors import CheckpointError, InputError, InputNote
from harmony_diffusion.metrics.inception import FIDInception

FEW_IMAGES = 2048  # with fewer images, the covariance of Inception's 2,048 features is singular
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000

# Images are (B, 3, H, W) float32 in [0, 255], features (B, D).
Extractor = Callable[[Tensor], Tensor]


def _resize_pil(image: np.ndarray, size: int) -> Tensor:
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in image.transpose(2, 0, 1)]
    resized = [np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels]
    return torch.from_numpy(np.stack(resized)).clamp(0, 255)


def _resize_torch(image: np.ndarray, size: int, antialias: bool) -> Tensor:
    tensor = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return nn.functional.interpolate(
        tensor, (size, size), mode="bilinear", align_corners=False, antialias=antialias
    )[0]


# Resize modes of published tools.
RESIZE_MODES: dict[str, Callable[[np.ndarray, int], Tensor]] = {
    "clean": _resize_pil,  # clean-fid: PIL bicubic with antialiasing, each channel in float
    "bilinear": lambda image, size: _resize_torch(image, size, False),  # pytorch-fid
    "bilinear-antialias": lambda image, size: _resize_torch(image, size, True),  # torchmetrics since 1.9
    "none": lambda image, size: torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1),
}


@dataclass(frozen=True)
class SetDistance:
    """Distance between two sets of images, with all settings of its computation.

    Attributes:
        fid: Fréchet distance.
        kid: Mean of the squared kernel distance over random subsets.
        kid_deviation: Standard deviation of the squared kernel distance over the subsets.
        kid_subset_size: Number of images in a subset.
        generated: Number of generated images.
        real: Number of real images.
        features: Number of features.
        resize: A key of `RESIZE_MODES`, or `"none"`.
        size: Side of the resized images in pixels.
        extractor: Name and hash of the feature network.
    """

    fid: float
    kid: float
    kid_deviation: float
    kid_subset_size: int
    generated: int
    real: int
    features: int
    resize: str
    size: int
    extractor: str


def load_extractor(path: str | os.PathLike[str]) -> tuple[nn.Module, str]:
    """Load a feature network.

    Args:
        path: Weights of `FIDInception` as `.safetensors`, or a TorchScript module that takes
            `(B, 3, H, W)` float32 in [0, 255] and returns features `(B, D)`. A TorchScript file contains a
            program: load only files that you trust.

    Returns:
        The network in evaluation mode, and its name with the first 16 digits of the SHA-256 of the file.

    Raises:
        CheckpointError: The file has another format, or its weights do not fit.
        InputError: The file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "does not exist", "Give the path of the feature network's weights.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if path.suffix == ".safetensors":
        network: nn.Module = FIDInception.from_file(path)
        return network, f"FIDInception sha256:{digest}"
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, but the published Inception weights use it.
            warnings.simplefilter("ignore")
            network = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path}: is not a TorchScript module ({reason}). Give a TorchScript file or a .safetensors file."
        ) from None
    return network, f"{path.name} sha256:{digest}"


@torch.no_grad()
def extract_features(
    images: Iterable[np.ndarray],
    extractor: Extractor,
    *,
    resize: str = "clean",
    size: int = 299,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Compute the features of images.

    Args:
        images: Images, each `(H, W, 3)` uint8. At most one batch is in memory.
        extractor: Feature network, on `device`.
        resize: A key of `RESIZE_MODES`, or `"none"` if the network resizes. `"none"` needs images of one
            size.
        size: Side of the resized images in pixels.
        batch_size: Images per batch.
        device: Device of the network.

    Returns:
        Features `(N, D)` float64 on the CPU.

    Raises:
        InputError: `resize` is unknown, there is no image, or the network does not return one row of features
            per image.
    """
    if resize not in RESIZE_MODES:
        raise InputError("resize", f"is {resize!r}", f"Choose one of {', '.join(RESIZE_MODES)}.")
    rows: list[Tensor] = []
    batch: list[Tensor] = []

    def flush() -> None:
        if len({image.shape for image in batch}) > 1:
            raise InputError(
                "images", "have several sizes", f"Set `resize` to one of {', '.join(RESIZE_MODES)}."
            )
        features = extractor(torch.stack(batch).to(device))
        if not isinstance(features, Tensor) or features.flatten(1).shape[0] != len(batch):
            raise InputError("extractor", "does not return one row of features per image")
        rows.append(features.flatten(1).double().cpu())
        batch.clear()

    for image in images:
        batch.append(RESIZE_MODES[resize](image, size))
        if len(batch) == batch_size:
            flush()
    if batch:
        flush()
    if not rows:
        raise InputError("images", "is empty")
    return torch.cat(rows)


def compare_features(
    generated: Tensor,
    real: Tensor,
    *,
    extractor: str,
    resize: str,
    size: int = 299,
    force: bool = False,
    seed: int = 0,
) -> SetDistance:
    """Compare two sets of images by their features.

    Args:
        generated: Features of the generated images, `(N, D)`.
        real: Features of the real images, `(M, D)`.
        extractor: Name and hash of the network, for the record.
        resize: Resize mode of the images, for the record.
        size: Side of the resized images in pixels, for the record.
        force: Accept fewer than `FEW_IMAGES` images, with a warning.
        seed: Seed of the KID subsets.

    Raises:
        InputError: There are too few images.
    """
    fewest = min(len(generated), len(real))
    if fewest < 2:
        raise InputError("images", f"are {len(generated)} generated and {len(real)} real", "Give more.")
    if fewest < FEW_IMAGES:
        reason = (
            f"are {len(generated):,} generated and {len(real):,} real: below {FEW_IMAGES:,} FID is biased "
            "upwards and depends on the number of images"
        )
        if not force:
            raise InputError(
                "images", reason, "Give more images, or accept the bias with `force` (`--force`)."
            )
        warnings.warn(f"images {reason}. Rely on KID", InputNote, stacklevel=2)
    subset = min(KID_SUBSET_SIZE, fewest)
    distances = kid_distances(generated, real, subsets=KID_SUBSETS, subset_size=subset, seed=seed)
    return SetDistance(
        frechet_distance(generated, real),
        float(distances.mean()),
        float(distances.std(correction=0)),
        subset,
        len(generated),
        len(real),
        generated.shape[1],
        resize,
        size,
        extractor,
    )


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Compute `|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)` for two sets of features, `(N, D)` and `(M, D)`.

    The trace of the matrix root equals the sum of the singular values of `A1 A2ᵀ`. `Ai` are the centred
    features divided by `sqrt(Ni - 1)`. This avoids the root of a nearly singular matrix.

    Example:
        >>> a = torch.tensor([[0.0], [2.0]])  # mean 1, variance 2
        >>> round(frechet_distance(a, 2 * a), 6)  # 1 + (sqrt(8) - sqrt(2))²
        3.0
    """
    first, second = generated.double(), real.double()
    centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (first, second)]
    roots = [_triangle(x) for x in centred]
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(x.square().sum() for x in centred) - 2 * shared
    return float(((first.mean(0) - second.mean(0)).square().sum() + spread).clamp_min(0))


def _triangle(centred: Tensor) -> Tensor:
    """Return a matrix with at most D rows and the same Gram matrix of its columns."""
    return torch.linalg.qr(centred, mode="r").R if centred.shape[0] > centred.shape[1] else centred


def kid_distances(
    generated: Tensor, real: Tensor, *, subsets: int, subset_size: int, seed: int = 0
) -> Tensor:
    """Compute the unbiased squared kernel distance of random subsets, with the kernel `(x·y / D + 1)³`.

    Args:
        generated: Features of the generated images, `(N, D)`.
        real: Features of the real images, `(M, D)`.
        subsets: Number of subsets.
        subset_size: Number of images of each set in a subset, drawn without replacement.
        seed: Seed of the draws.

    Returns:
        Distances `(subsets,)` float64. Single values may be negative.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(subsets):
        x, y = (
            features[torch.randperm(len(features), generator=generator)[:subset_size]].double()
            for features in (generated, real)
        )
        distances.append(_squared_distance(x, y))
        if subset_size == len(generated) == len(real):
            break  # every subset contains all images
    return torch.stack(distances)


def _squared_distance(x: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y))) / (n * (n - 1))
    return within - 2 * kernel(x, y).mean()
