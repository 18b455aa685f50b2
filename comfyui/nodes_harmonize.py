"""Harmonize the foreground of images."""

import json

import torch
from comfy_api.latest import io

from .loaded import load, models_with_weights, to_device
from .tensors import CATEGORY, MASK_TOOLTIP, broadcast, check_image, check_mask, collect_notes, status

FOLDER = "folder or Hub id"


class Harmonize(io.ComfyNode):
    """Make a pasted foreground agree with its background; the background stays as it is, to the bit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        models = models_with_weights()
        return io.Schema(
            node_id="HarmonyDiffusionHarmonize",
            display_name="Harmonize",
            category=CATEGORY,
            description="Change colour and light of the foreground so that it fits the background.",
            inputs=[
                io.Image.Input("image"),
                io.Mask.Input("mask", tooltip=MASK_TOOLTIP),
                io.Combo.Input("model", options=[*models, FOLDER], default=models[0]),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01),
                io.String.Input("folder", default="", optional=True, tooltip=f"For model '{FOLDER}'."),
                io.Mask.Input("reference_mask", optional=True, tooltip="Part of the background to match."),
                io.Boolean.Input("resize_mask", default=False, optional=True),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.String.Output(display_name="filters", tooltip="JSON: the settings that were applied."),
            ],
        )

    @classmethod
    def execute(
        cls, image, mask, model, strength, folder="", reference_mask=None, resize_mask=False
    ) -> io.NodeOutput:
        """Harmonize each image of the batch."""
        image = check_image(image, "image")
        mask = check_mask(mask, image, resize=resize_mask)
        if reference_mask is not None:
            reference_mask = check_mask(reference_mask, image, "reference_mask", resize_mask)
        image, mask, reference_mask = broadcast(image=image, mask=mask, reference_mask=reference_mask)
        if model == FOLDER and not folder:
            raise ValueError(
                f"folder: is empty, and the model is '{FOLDER}'. Name a saved model or pipeline."
            )
        pipe = to_device(load(folder if model == FOLDER else model))
        if "model" not in pipe.components:
            raise ValueError("folder: holds a diffusion pipeline. Use the node 'Harmonize (SD2)'.")
        notes: list[str] = []
        results, filters = [], []
        for index in range(len(image)):
            with collect_notes(notes):
                output = pipe(
                    image[index].numpy(),
                    mask[index].numpy(),
                    strength=strength,
                    reference_mask=None if reference_mask is None else reference_mask[index].numpy(),
                    output_type="array",
                )
            results.append(torch.from_numpy(output.images[0]))
            filters.append(None if output.filters is None else output.filters[0].tolist())
        text = json.dumps(
            {"model": model, "names": list(pipe.model.filter_names), "filters": filters}, allow_nan=False
        )
        return io.NodeOutput(torch.stack(results), text, ui=status(notes))
