"""What the training scripts need: order, schedules, losses, checkpoints, model cards."""
