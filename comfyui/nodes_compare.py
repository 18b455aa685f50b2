"""Show images before and after, with scores."""

import torch
from comfy_api.latest import io

from .tensors import CATEGORY, MASK_TOOLTIP, broadcast, check_image, check_mask

GAP = 4


class Compare(io.ComfyNode):
    """Put two images beside each other, and measure how much the foreground changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return io.Schema(
            node_id="HarmonyDiffusionCompare",
            display_name="Compare (score)",
            category=CATEGORY,
            description="Before and after side by side. With the true image as 'before', these are scores.",
            inputs=[
                io.Image.Input("image"),
                io.Mask.Input("mask", tooltip=MASK_TOOLTIP),
                io.Image.Input("before", tooltip="Composite, or the true image to score against."),
            ],
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="text")],
        )

    @classmethod
    def execute(cls, image, mask, before) -> io.NodeOutput:
        """Compare each image of the batch."""
        from harmony_diffusion.metrics.functional import fmse, mse, psnr

        image, before = check_image(image, "image"), check_image(before, "before")
        if image.shape[1:] != before.shape[1:]:
            sizes = [f"{one.shape[2]}x{one.shape[1]}" for one in (before, image)]
            raise ValueError(
                f"before: is {sizes[0]} pixels, the image is {sizes[1]}. Give one of the same size."
            )
        image, mask, before = broadcast(image=image, mask=check_mask(mask, image), before=before)
        after, other = (one.permute(0, 3, 1, 2) * 255 for one in (image, before))
        errors = zip(mse(after, other), psnr(after, other), fmse(after, other, mask[:, None]), strict=True)
        lines = [f"{i}: MSE {m:.2f}, PSNR {p:.2f} dB, fMSE {f:.2f}" for i, (m, p, f) in enumerate(errors)]
        unchanged = ((image == before).all(-1) | (mask > 0)).flatten(1).all(1)
        lines = [
            f"{line}, background {'equal' if same else 'differs'}"
            for line, same in zip(lines, unchanged, strict=True)
        ]
        gap = image.new_ones(len(image), image.shape[1], GAP, 3)
        text = "\n".join(lines)
        return io.NodeOutput(torch.cat((before, gap, image), 2), text, ui={"text": lines})
