"""Parts of the diffusion method, used by its pipeline and by its training."""
