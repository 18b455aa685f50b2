"""Datasets: each yields `HarmonySample`, and knows no model."""
