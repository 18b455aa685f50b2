"""Pipelines: `pipe(composite, mask, prompt)` for every method."""
