import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from harmony_diffusion.metrics.functional import fab
from harmony_diffusion.metrics.protocols import PROTOCOLS, score


def images(*shape):
    generator = np.random.default_rng(0)
    harmonized, real = generator.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    return harmonized, real, generator.random(shape) * (generator.random(shape) < 0.5)


def expected(harmonized, real, mask):
    a, b = (rgb2lab(image / 255)[..., 1:] for image in (harmonized, real))
    return (np.linalg.norm(a - b, axis=-1) * mask).sum() / mask.sum()


def test_colour_error_is_that_of_scikit_image():
    harmonized, real, mask = images(20, 30)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in (harmonized, real)]
    found = fab(*tensors, torch.from_numpy(mask)[None, None])
    assert found.item() == pytest.approx(expected(harmonized, real, mask), rel=2e-3)


def test_lightness_and_background_do_not_count():
    grey = torch.full((1, 3, 4, 4), 90.0)
    wrong = grey.clone()
    wrong[:, 0, :2] = 200
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:, :] = 1
    assert fab(grey + 60, grey, torch.ones(1, 1, 4, 4)).item() < 0.05
    assert fab(wrong, grey, mask).item() == 0
    assert fab(wrong, grey, 1 - mask).item() > 30
    assert fab(wrong, grey, 0 * mask).isnan().all()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_protocols_score_it_if_asked(kind):
    harmonized, real, mask = images(256, 256)
    levels = (255 * mask).round().astype(np.uint8)
    protocol = PROTOCOLS["default" if kind == "soft" else "dht"]
    assert "fab" not in score([protocol], harmonized, real, levels)[0]
    (found,) = score([protocol], harmonized, real, levels, metrics=("psnr", "fab"))
    weights = levels / 255 if kind == "soft" else levels > 127
    assert found["fab"] == pytest.approx(expected(harmonized, real, weights), rel=2e-3)
    assert list(found) == ["foreground_ratio", "psnr", "fab"]
