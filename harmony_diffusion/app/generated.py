"""Results of Stable Diffusion: generated once, kept as a file, and blended at any strength."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from harmony_diffusion.app.engine import Engine
from harmony_diffusion.app.sources import Scene
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.picture import Picture


@dataclass(eq=False)
class Generated:
    """A generated picture.

    Attributes:
        path: File with its pixels, in the depth and colour space of the composite.
    """

    path: str

    def render(self, picture: Picture, strength: float) -> Picture:
        """Blend it with its composite, or with a copy of another size."""
        pixels = np.load(self.path, allow_pickle=False)
        if pixels.shape == picture.pixels.shape and pixels.dtype == picture.pixels.dtype and strength == 1:
            return picture.with_pixels(pixels)
        generated = Picture(pixels, profile=picture.profile).read_srgb()
        if generated.shape != picture.pixels.shape:
            generated = cv2.resize(generated, picture.size[::-1], interpolation=cv2.INTER_AREA)
        own = picture.read_srgb()
        # Pixels that were not generated stay as they are. The edge of those that were lies outside the mask.
        return picture.with_pixels(picture.write_srgb(own + strength * (generated - own)))


def generate(engine: Engine, pipe: Any, scene: Scene, prompt: str, seed: int) -> Generated:
    """Run a diffusion pipeline; with the same prompt and seed the command line gives the same picture.

    Raises:
        InputError: A region to harmonize to was drawn, which these pipelines do not take.
    """
    if scene.reference is not None:
        raise InputError("reference", "is for the other models", "Erase it, or choose another model.")
    generator = torch.Generator().manual_seed(seed)
    images, _ = pipe(
        scene.composite,
        scene.mask,
        prompt.strip() or None,
        generator=generator,
        output_type="picture",
        return_dict=False,
    )
    path = engine.new_folder() / "generated.npy"
    np.save(path, images[0].pixels)
    return Generated(str(path))
