"""Paste a foreground on a background, and draw its shadow."""

import torch
from comfy_api.latest import io

from .tensors import CATEGORY, MASK_TOOLTIP, broadcast, check_image, check_mask, collect_notes, status


class Compose(io.ComfyNode):
    """Paste a cut-out on a background; the background stays as it is, to the bit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        limit = 1 << 16
        return io.Schema(
            node_id="HarmonyDiffusionCompose",
            display_name="Compose",
            category=CATEGORY,
            description="Paste a foreground, given by its mask or its alpha channel, on a background.",
            inputs=[
                io.Image.Input("foreground"),
                io.Image.Input("background"),
                io.Boolean.Input("centered", default=True, tooltip="Ignore x and y."),
                io.Int.Input("x", default=0, min=-limit, max=limit, tooltip="Left edge of the foreground."),
                io.Int.Input("y", default=0, min=-limit, max=limit, tooltip="Top edge of the foreground."),
                io.Float.Input("scale", default=1.0, min=0.01, max=16.0, step=0.01),
                io.Mask.Input("mask", optional=True, tooltip=MASK_TOOLTIP),
            ],
            outputs=[io.Image.Output(display_name="image"), io.Mask.Output(display_name="mask")],
        )

    @classmethod
    def execute(cls, foreground, background, centered, x, y, scale, mask=None) -> io.NodeOutput:
        """Paste each foreground of the batch."""
        from harmony_diffusion import load_picture
        from harmony_diffusion.images.compose import paste_foreground

        foreground = check_image(foreground, "foreground", (3, 4))
        background = check_image(background, "background")
        mask = None if mask is None else check_mask(mask, foreground)
        foreground, background, mask = broadcast(foreground=foreground, background=background, mask=mask)
        notes: list[str] = []
        images, masks = [], []
        for index in range(len(foreground)):
            with collect_notes(notes):
                picture, coverage = paste_foreground(
                    load_picture(foreground[index].numpy(), name="foreground"),
                    load_picture(background[index].numpy(), name="background"),
                    None if mask is None else mask[index].numpy(),
                    at=None if centered else (x, y),
                    scale=scale,
                )
            images.append(torch.from_numpy(picture.pixels.copy()))
            masks.append(torch.from_numpy(coverage))
        return io.NodeOutput(torch.stack(images), torch.stack(masks), ui=status(notes))


class Shadow(io.ComfyNode):
    """Draw the shadow that a standing object casts on level ground."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return io.Schema(
            node_id="HarmonyDiffusionShadow",
            display_name="Cast shadow",
            category=CATEGORY,
            description="Darken the ground where the object of the mask casts its shadow.",
            inputs=[
                io.Image.Input("image"),
                io.Mask.Input("mask", tooltip=MASK_TOOLTIP),
                io.Float.Input(
                    "angle",
                    default=30.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    tooltip="Degrees: 0 right, 90 towards the viewer, 180 left, -90 behind.",
                ),
                io.Float.Input("length", default=0.5, min=0.0, max=3.0, step=0.05),
                io.Float.Input("softness", default=0.5, min=0.0, max=1.0, step=0.01),
                io.Float.Input("density", default=0.4, min=0.0, max=1.0, step=0.01),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="shadow", tooltip="Multiplier: 1 is no shadow."),
            ],
        )

    @classmethod
    def execute(cls, image, mask, angle, length, softness, density) -> io.NodeOutput:
        """Multiply each image of the batch by the shadow of its mask."""
        from harmony_diffusion.images.shadow import Shadow as Settings
        from harmony_diffusion.images.shadow import draw_shadow

        image = check_image(image, "image")
        image, mask = broadcast(image=image, mask=check_mask(mask, image))
        settings = Settings(angle, length, softness, density)
        notes: list[str] = []
        with collect_notes(notes):
            layer = torch.stack([torch.from_numpy(draw_shadow(one.numpy(), settings)) for one in mask])
        darker = image * layer[..., None]
        result = torch.where(layer[..., None] < 1, darker, image).contiguous()
        return io.NodeOutput(result, layer, ui=status(notes))
