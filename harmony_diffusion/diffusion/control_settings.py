"""Settings of the control images of one ControlNet, saved beside its weights."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from harmony_diffusion.diffusion.control_detectors import BACKENDS, controlnet_aux_canny, detector_image
from harmony_diffusion.diffusion.control_images import SIGMA, canny_image, gaussian_image
from harmony_diffusion.diffusion.controlnets import CONTROL_INPUTS, ControlInput
from harmony_diffusion.errors import CheckpointError, InputError

FILE = "control.json"
ROLES = ("high", "low")
CANNY_THRESHOLDS = (100, 200)


@dataclass(frozen=True)
class ControlSettings:
    """How the control images of one ControlNet are drawn.

    Attributes:
        role: "high", edges, or "low", blurred colours.
        control_input: Latent input of the ControlNet, see `make_controlnet`.
        canny_thresholds: See `canny_image`.
        silhouette: See `canny_image`.
        sigma: See `gaussian_image`.
        premultiplied: See `gaussian_image`.
        canny_backend: "opencv" or "controlnet_aux": the program that draws the edges.
    """

    role: str
    control_input: ControlInput = "noisy_latents"
    canny_thresholds: tuple[float, float] = CANNY_THRESHOLDS
    silhouette: bool = True
    sigma: float = SIGMA
    premultiplied: bool = True
    canny_backend: str = field(default="opencv", repr=False)

    def __post_init__(self) -> None:
        """Check role, input and backend.

        Raises:
            InputError: Unknown role, input or backend.
        """
        for name, value, known in (
            ("role", self.role, ROLES),
            ("control_input", self.control_input, CONTROL_INPUTS),
            ("canny_backend", self.canny_backend, BACKENDS),
        ):
            if value not in known:
                raise InputError(name, f"must be one of {', '.join(known)}, got {value!r}")

    def draw(self, foreground: Tensor, mask: Tensor) -> Tensor:
        """Draw control images in [0, 1]; images are `(B, 3, H, W)`, masks `(B, 1, H, W)`."""
        if self.role == "high":
            low, high = self.canny_thresholds
            if self.canny_backend == "controlnet_aux":
                detector = controlnet_aux_canny(low, high)
                return detector_image(foreground, mask, detector, silhouette=self.silhouette)
            return canny_image(
                foreground, mask, low_threshold=low, high_threshold=high, silhouette=self.silhouette
            )
        return gaussian_image(foreground, mask, sigma=self.sigma, premultiplied=self.premultiplied)

    def of_pipeline(self) -> dict[str, Any]:
        """Return the pipeline arguments that this ControlNet was trained with."""
        names = {"high": ("canny_thresholds", "silhouette"), "low": ("sigma", "premultiplied")}[self.role]
        return {name: getattr(self, name) for name in ("control_input", *names)}

    def save(self, folder: Path) -> None:
        """Write `FOLDER/control.json`."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")


def load_control_settings(folder: Path) -> ControlSettings:
    """Read `FOLDER/control.json`.

    Raises:
        CheckpointError: It is absent, or holds other entries.
    """
    try:
        entries = json.loads((folder / FILE).read_text("utf-8"))
        unknown = set(entries) - {entry.name for entry in fields(ControlSettings)}
        if unknown:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        return ControlSettings(**{**entries, "canny_thresholds": tuple(entries["canny_thresholds"])})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: {FILE} cannot be used ({error}). It is written beside a ControlNet by "
            "train/train_controlnet.py; build the pipeline by its constructor for other ControlNets."
        ) from error
