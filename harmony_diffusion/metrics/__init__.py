"""Metrics of image harmonization, one value per image. The tables in `reports` average them."""
