"""Composites made of photographs with masks."""
