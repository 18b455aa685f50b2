"""Hub entry file: clips, any discriminative or classical model, `pipe(composite, mask, output=...)`."""

from harmony_diffusion.pipelines.video import VideoHarmonizationPipeline  # noqa: F401
