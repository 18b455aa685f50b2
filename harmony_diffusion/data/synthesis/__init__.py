"""Composites made of photographs, with the photograph as ground truth."""
