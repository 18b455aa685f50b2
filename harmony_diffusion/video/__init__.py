"""Clips: reading and writing, colours of frames, smoothing over time."""
