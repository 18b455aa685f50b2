"""Harmonize a small copy, apply the change at full resolution."""
