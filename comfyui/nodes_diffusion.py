"""Generate the foreground anew with Stable Diffusion 2 and two ControlNets."""

import torch
from comfy_api.latest import io

from .loaded import load, to_device
from .tensors import CATEGORY, MASK_TOOLTIP, broadcast, check_image, check_mask, collect_notes, status


class HarmonizeSD2(io.ComfyNode):
    """Harmonize with a saved diffusion pipeline; what the mask does not cover stays, to the bit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        scale = {"min": 0.0, "max": 2.0, "step": 0.05}
        return io.Schema(
            node_id="HarmonyDiffusionHarmonizeSD2",
            display_name="Harmonize (SD2, two ControlNets)",
            category=CATEGORY,
            description="Generate the foreground anew, steered by its edges and its colours.",
            inputs=[
                io.Image.Input("image"),
                io.Mask.Input("mask", tooltip=MASK_TOOLTIP),
                io.String.Input(
                    "folder", default="", tooltip="Saved pipeline of harmony-diffusion, or Hub id."
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="What the whole picture shows."
                ),
                io.Float.Input("high_scale", default=1.0, tooltip="Strength of the edges.", **scale),
                io.Float.Input("low_scale", default=0.7, tooltip="Strength of the colours.", **scale),
                io.Int.Input("steps", default=20, min=1, max=1000),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True),
                io.Combo.Input("detail", options=["generated", "preserve"], default="generated"),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls, image, mask, folder, prompt, high_scale, low_scale, steps, seed, detail
    ) -> io.NodeOutput:
        """Harmonize each image of the batch; image N has the seed plus N."""
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar

        image = check_image(image, "image")
        image, mask = broadcast(image=image, mask=check_mask(mask, image))
        if not folder:
            raise ValueError("folder: is empty. Name a saved pipeline, or its id on the Hub.")
        pipe = to_device(load(folder))
        if "unet" not in pipe.components:
            raise ValueError("folder: holds no diffusion pipeline. Use the node 'Harmonize'.")
        progress = ProgressBar(steps * len(image))
        notes: list[str] = []
        results = []
        for index in range(len(image)):

            def after_step(pipe, step, timestep, tensors, index=index):
                throw_exception_if_processing_interrupted()
                progress.update_absolute(index * steps + step + 1)
                return tensors

            with collect_notes(notes):
                output = pipe(
                    image[index].numpy(),
                    mask[index].numpy(),
                    prompt,
                    high_scale=high_scale,
                    low_scale=low_scale,
                    num_inference_steps=steps,
                    detail=detail,
                    feather=0.0,  # the result does not fade into pixels that the mask leaves out
                    generator=torch.Generator().manual_seed(seed + index),
                    callback_on_step_end=after_step,
                    output_type="array",
                )
            results.append(torch.from_numpy(output.images[0]))
        return io.NodeOutput(torch.stack(results), ui=status(notes))
