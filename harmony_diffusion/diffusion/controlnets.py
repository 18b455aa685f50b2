"""ControlNets for an inpainting U-Net: made from it, checked against it, and embedded once.

`ControlNetModel` is diffusers' own. Equation 6 of the paper gives the trainable copy of the encoder the noisy
latents alone (`control_input="noisy_latents"`, 4 channels); the original ControlNet gives it the input of the
frozen encoder (`"unet_input"`, 9 channels). With an autoencoder of C latent channels these are C and 2 C + 1.
"""

from dataclasses import dataclass
from typing import Any, Literal

from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding, ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.highres.offload import load_offloaded

ControlInput = Literal["noisy_latents", "unet_input"]

# What a ControlNet reads in each mode: Z_t, or [Z_t, M', Z_ms].
# 1 over the root mean square of SiLU under a normal distribution.
_SILU_GAIN = 1.68
CONTROL_INPUTS: tuple[ControlInput, ...] = ("noisy_latents", "unet_input")


def control_channels(unet: Any) -> dict[str, int]:
    """Return how many channels a ControlNet of an inpainting U-Net reads in each mode.

    Example:
        >>> from harmony_diffusion.diffusion.random_weights import random_components
        >>> control_channels(random_components("tiny")["unet"])
        {'noisy_latents': 4, 'unet_input': 9}
    """
    return {"noisy_latents": unet.config["out_channels"], "unet_input": unet.config["in_channels"]}


def is_inpainting_unet(unet: Any) -> bool:
    """Return True if a U-Net reads noisy latents, mask and latents of the background (4 + 1 + 4 channels)."""
    return bool(unet.config["in_channels"] == 2 * unet.config["out_channels"] + 1)


def make_controlnet(
    unet: UNet2DConditionModel,
    *,
    control_input: ControlInput = "noisy_latents",
    conditioning_channels: int = 3,
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256),
    unit_embedding: bool = False,
) -> ControlNetModel:
    """Make an untrained ControlNet, which adds zeros, from any inpainting U-Net.

    It copies the encoder's weights; for `"noisy_latents"` the first convolution keeps the weights of the
    channels of the noisy latents. Its output convolutions are zero.

    Args:
        unet: Inpainting U-Net, its input channels in the order [Z_t, M', Z_ms].
        control_input: Latent input of the ControlNet, see `CONTROL_INPUTS`.
        conditioning_channels: Channels of the control image.
        conditioning_embedding_out_channels: Widths of the network that embeds the control image. Each after
            the first halves the resolution; together they must shrink it as much as the autoencoder does.
        unit_embedding: Initialise that network so that it keeps the scale of its input. With diffusers' own
            initialisation, as in the paper, a control image arrives a hundred times weaker, and has no
            effect for thousands of steps.

    Returns:
        The ControlNet, in the dtype and on the device of the U-Net.

    Raises:
        CheckpointError: The U-Net is not for inpainting.
        InputError: Unknown `control_input`.
    """
    if control_input not in CONTROL_INPUTS:
        raise InputError(
            "control_input", f"must be one of {', '.join(CONTROL_INPUTS)}, got {control_input!r}"
        )
    if not is_inpainting_unet(unet):
        raise CheckpointError(
            f"The U-Net has {unet.config['in_channels']} input channels; a ControlNet for harmonization is "
            "made from an inpainting U-Net, which has 9 (noisy latents, mask, latents of the background), or "
            f"with {unet.config['out_channels']} latent channels {2 * unet.config['out_channels'] + 1}."
        )
    controlnet = ControlNetModel.from_unet(
        unet,
        conditioning_channels=conditioning_channels,
        conditioning_embedding_out_channels=conditioning_embedding_out_channels,
    )
    if unit_embedding:
        _keep_scale(controlnet.controlnet_cond_embedding)
    channels = control_channels(unet)[control_input]
    if channels != unet.config["in_channels"]:
        wide = controlnet.conv_in
        controlnet.conv_in = nn.Conv2d(channels, wide.out_channels, kernel_size=3, padding=1)
        controlnet.conv_in.load_state_dict({"weight": wide.weight[:, :channels], "bias": wide.bias})
        controlnet.register_to_config(in_channels=channels)
    # ModelMixin.to would warn of a change of type, but no weights were loaded.
    return nn.Module.to(controlnet, unet.device, unet.dtype)


def _keep_scale(embedding: nn.Module) -> None:
    for convolution in (embedding.conv_in, *embedding.blocks):
        weight = convolution.weight
        nn.init.normal_(weight, std=_SILU_GAIN / weight[0].numel() ** 0.5)
        nn.init.zeros_(convolution.bias)


def check_controlnet(controlnet: Any, unet: Any, control_input: str, name: str) -> None:
    """Check that a ControlNet fits the U-Net and its own input.

    Raises:
        CheckpointError: It does not.
    """
    channels = controlnet.config.in_channels
    expected = control_channels(unet)
    if channels != expected[control_input]:
        fitting = [mode for mode, count in expected.items() if count == channels]
        advice = f"it was made for control_input={fitting[0]!r}" if fitting else "it fits neither mode"
        raise CheckpointError(
            f"{name} has {channels} input channels, but control_input={control_input!r} feeds it "
            f"{expected[control_input]}: {advice}."
        )
    for key in ("block_out_channels", "layers_per_block", "cross_attention_dim"):
        theirs, ours = controlnet.config[key], unet.config[key]
        if _plain(theirs) != _plain(ours):
            raise CheckpointError(
                f"{name} has {key}={theirs}, the U-Net {ours}: they belong to other models."
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


class ReusableEmbedding(ControlNetConditioningEmbedding):
    """Embed a control image, and pass on an embedding that was computed before.

    The control image does not change between steps, so one embedding serves all of them.
    """

    def forward(self, conditioning: Tensor) -> Tensor:
        """Return `(B, C, h, w)` for an image `(B, 3, 8h, 8w)`, and an embedding as it is."""
        if conditioning.shape[1] == self.conv_out.out_channels:
            return conditioning
        return super().forward(conditioning)


def make_embedding_reusable(controlnet: Any) -> None:
    """Let a ControlNet accept embedded control images; its results for images do not change."""
    embedding = controlnet.controlnet_cond_embedding
    if type(embedding) is ControlNetConditioningEmbedding:
        # Same weights and names, so that it saves, loads, moves and compiles as before.
        embedding.__class__ = ReusableEmbedding


def embed_control_image(controlnet: Any, image: Tensor) -> Tensor:
    """Embed a control image, the part of a ControlNet that is equal at every step.

    Args:
        controlnet: A ControlNet after `make_embedding_reusable`.
        image: Control image in [0, 1], `(B, 3, H, W)`.

    Returns:
        `(B, C, h, w)`, an input of the ControlNet in place of the image.
    """
    load_offloaded(controlnet)
    device, dtype = image.device, controlnet.dtype
    weights = next(controlnet.controlnet_cond_embedding.parameters())
    if weights.device.type != "meta":  # there, a hook of each layer loads its weights
        image = image.to(weights.device)
    reverse = controlnet.config.controlnet_conditioning_channel_order == "bgr"
    image = image.flip(1) if reverse else image
    embedding = controlnet.controlnet_cond_embedding(image.to(dtype))
    # The network reverses the channels of its input.
    return (embedding.flip(1) if reverse else embedding).to(device)


@dataclass
class Control:
    """One ControlNet with its control image, scale and step range.

    Attributes:
        controlnet: The network.
        embedding: Its embedded control images, `(B, C, h, w)`.
        scale: Strength, lambda of equation 7; in training a number for each sample, `(B, 1, 1, 1)`.
        window: Start and end of its steps, as shares of all steps.
    """

    controlnet: Any
    embedding: Tensor
    scale: float | Tensor
    window: tuple[float, float]

    def is_active(self, step: int, steps: int) -> bool:
        """Return True if the ControlNet runs in a step."""
        start, end = self.window
        return bool(self.scale != 0) and step / steps >= start and (step + 1) / steps <= end
