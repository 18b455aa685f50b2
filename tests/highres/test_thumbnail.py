import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import Dense, Gain, as_tensor, make_mask, make_picture

from harmony_diffusion.highres.thumbnail import fill_smoothly, make_thumbnail, thumbnail_size
from harmony_diffusion.models.classical import Reinhard
from harmony_diffusion.models.harmonizer import Harmonizer


def test_thumbnail_of_a_network_with_filters_is_the_published_sampling():
    picture, mask = make_picture(np.uint8, (700, 900)), make_mask((700, 900))
    thumbnail = make_thumbnail(Harmonizer(), picture, mask)
    for seen, whole in (
        (thumbnail.composite, as_tensor(picture.read_srgb())),
        (thumbnail.mask, torch.from_numpy(mask)[None, None]),
    ):
        expected = F.interpolate(whole, (256, 256), mode="bilinear", align_corners=False)
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model, size", [(Dense, (56, 73)), (Reinhard, (796, 1024))])
def test_other_thumbnails_are_antialiased_and_keep_the_shape(model, size):
    picture, mask = make_picture(np.uint8, (933, 1200)), make_mask((933, 1200))
    thumbnail = make_thumbnail(model(), picture, mask)
    expected = F.interpolate(as_tensor(picture.read_srgb()), size, mode="bilinear", antialias=True)
    torch.testing.assert_close(thumbnail.composite, expected, rtol=0, atol=1e-5)
    assert thumbnail.mask.shape[-2:] == size


def test_thumbnail_sizes():
    assert thumbnail_size(Dense(), (48, 64)) == (48, 64)
    assert thumbnail_size(Dense(), (20000, 100)) == (905, 32)
    assert thumbnail_size(Gain(), (20000, 100)) == (64, 64)
    assert thumbnail_size(Reinhard(), (300, 1000)) == (300, 1000)
    assert thumbnail_size(Reinhard(), (300, 2048)) == (150, 1024)


def test_filling_keeps_what_is_sure_and_continues_it():
    generator = torch.Generator().manual_seed(0)
    image, sure = torch.rand(1, 3, 37, 50, generator=generator), torch.zeros(1, 1, 37, 50)
    sure[..., 10:14, 20:30] = 1
    filled = fill_smoothly(image, sure)
    inside = (sure == 1).expand_as(image)
    assert torch.equal(filled[inside], image[inside])
    seen = image[..., 10:14, 20:30].flatten(2)
    assert (filled.flatten(2) >= seen.amin(2, keepdim=True) - 1e-6).all()
    assert (filled.flatten(2) <= seen.amax(2, keepdim=True) + 1e-6).all()
    assert torch.equal(fill_smoothly(image, torch.ones_like(sure)), image)
    assert torch.equal(fill_smoothly(image, torch.zeros_like(sure)), torch.zeros_like(image))
