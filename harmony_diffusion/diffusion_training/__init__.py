"""What the training scripts of the diffusion method share: the step, its data, its controls, the run."""
