"""Entry file for diffusers; the code comes with `pip install harmony-diffusion`."""

from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline  # noqa: F401
