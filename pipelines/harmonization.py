"""Hub entry file: any discriminative or classical model, `pipe(composite, mask)`."""

from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline  # noqa: F401
