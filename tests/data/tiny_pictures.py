import numpy as np
from PIL import Image


def picture(number, height=48, width=64):
    """A smooth picture with some texture, different for every number."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(20, 236, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return (smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)


def disc(height=48, width=64, center=(24, 30), radius=13):
    y, x = np.mgrid[:height, :width]
    return (((y - center[0]) ** 2 + (x - center[1]) ** 2) < radius**2).astype(np.uint8) * 255
