"""Metrics of image harmonization, one value per image; averaging is the tables' business."""
