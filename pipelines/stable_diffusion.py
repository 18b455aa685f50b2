"""Hub entry file: Stable Diffusion 2 inpainting with two ControlNets, `pipe(composite, mask, prompt)`."""

from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline  # noqa: F401
