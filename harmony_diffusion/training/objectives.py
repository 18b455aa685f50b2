"""Objectives: a model and its loss as one module, so that DDP and `compile` wrap both."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.layers import blend, clamp_unit
from harmony_diffusion.training.losses import (
    fn_mse,
    harmonizer_coarse_loss,
    harmonizer_fine_loss,
    parameter_smoothness,
)

Losses = dict[str, Tensor]
_OPAQUE = 0.95  # pixels with less opacity mix two objects and have no single true colour
_ROOT_EPS = 1.5e-5  # (1 / 255)^2: an error of one level is negligible


class ForegroundObjective(nn.Module):
    """FN-MSE of any model, with smoothness for models that predict parameter maps.

    Args:
        model: Registry model with parameters.
        min_area: A_min of `losses.fn_mse`.
        raw_output: Score the whole frame the network renders, before the background is pasted back (iDIH).
        smoothness: Weight of `losses.parameter_smoothness`; 0 for none.
        root: Take the root of the FN-MSE of each image, so that easy images weigh as much as hard ones.
        stride: With models that predict parameter maps, score every n-th pixel of every n-th row alone.

    Raises:
        InputError: Smoothness or a stride for a model without parameter maps, or together with `raw_output`.
    """

    def __init__(
        self,
        model: HarmonyModel,
        min_area: float = 100.0,
        raw_output: bool = False,
        smoothness: float = 0.0,
        root: bool = False,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.by_filters = bool(smoothness) or stride > 1
        if self.by_filters and (raw_output or model.filter_upsampling is None):
            raise InputError(
                "smoothness and stride", "are for the pasted result of models that predict parameter maps"
            )
        self.model, self.min_area = model, min_area
        self.raw_output, self.smoothness, self.root, self.stride = raw_output, smoothness, root, stride

    def forward(self, composite: Tensor, mask: Tensor, real: Tensor, opacity: Tensor | None = None) -> Losses:
        """Return the means over the batch: `loss`, and its parts.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: `(B, 1, H, W)`.
            real: `(B, 3, H, W)` in [0, 1].
            opacity: The true mask where the given one may be wrong, `(B, 1, H, W)`: then the error counts on
                its opaque pixels alone. None: the given mask is right.
        """
        scored = mask
        if opacity is not None and not self.raw_output:
            scored = (opacity > _OPAQUE).to(mask.dtype)
            real = blend(real, composite, scored)
        if self.by_filters:
            filters = self.model.predict_filters(composite, mask)
            step = slice(None, None, self.stride)
            composite, real, scored = (x[..., step, step] for x in (composite, real, scored))
            harmonized = self.model.apply_filters(composite, filters, scored)
        elif self.raw_output:
            harmonized = self.model.predict(composite, mask)
        elif scored is mask:
            harmonized = self.model(composite, mask)
        else:
            harmonized = blend(clamp_unit(self.model.predict_frame(composite, mask)), composite, scored)
        errors = fn_mse(harmonized, real, scored, self.min_area / self.stride**2)
        losses = {"fn_mse": errors.detach().mean()}
        loss = ((errors + _ROOT_EPS).sqrt() if self.root else errors).mean()
        if self.smoothness:
            smoothness = parameter_smoothness(filters).mean()
            losses["smoothness"] = smoothness.detach()
            loss = loss + self.smoothness * smoothness
        return {"loss": loss, **losses}


class HarmonizerObjective(nn.Module):
    """Harmonizer's dynamic loss: a fine stream with a target for each filter, and a coarse one with a result.

    Args:
        model: A `Harmonizer`.

    Raises:
        InputError: The model has no filter stages.
    """

    def __init__(self, model: HarmonyModel) -> None:
        super().__init__()
        if not model.filter_names:
            raise InputError("loss", f"'harmonizer' needs filter stages; {type(model).__name__} has none")
        self.model = model

    def forward(self, composite: Tensor, mask: Tensor, real: Tensor, targets: Sequence[Tensor]) -> Losses:
        """Return the means over the streams: `loss`, and its parts.

        Args:
            composite: First the images of the fine stream, then the others, `(B, 3, H, W)` in [0, 1].
            mask: `(B, 1, H, W)`.
            real: `(B, 3, H, W)` in [0, 1].
            targets: Of each filter in the order of the model, `(F, 3, H, W)` for the F images of the fine
                stream.
        """
        filters = self.model.predict_filters(composite, mask).float()
        stages = self.model.filter_stages(composite, filters, mask, smooth=True)
        fine = len(targets[0])
        fine_loss = harmonizer_fine_loss([stage[:fine] for stage in stages], targets, mask[:fine]).mean()
        coarse_loss = harmonizer_coarse_loss(stages[-1][fine:], real[fine:], mask[fine:]).mean()
        with torch.no_grad():
            error = fn_mse(stages[-1], real, mask).mean()
        return {"loss": fine_loss + coarse_loss, "coarse": coarse_loss.detach(), "fn_mse": error}
