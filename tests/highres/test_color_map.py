import pytest
import torch
import torch.nn.functional as F

from harmony_diffusion.highres.color_map import apply_color_map, fit_color_map
from harmony_diffusion.models.layers import blend

SMALL, LARGE = (64, 80), (320, 400)
MATRIX = torch.tensor([[0.8, 0.1, 0.0], [0.02, 0.85, 0.05], [0.05, 0.1, 0.7]])
OFFSET = torch.tensor([0.05, 0.02, 0.08]).view(3, 1, 1)


def make_photo(seed=0):
    """Blobs, edges and fine texture, `(1, 3, 320, 400)`, and a round foreground."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, *LARGE)
    for cells, amount in ((5, 0.5), (20, 0.3), (80, 0.2), (320, 0.1)):
        noise = torch.rand(1, 3, cells, cells, generator=generator)
        image += amount * F.interpolate(noise, LARGE, mode="nearest" if cells == 20 else "bilinear")
    y, x = torch.meshgrid(torch.linspace(-1, 1, LARGE[0]), torch.linspace(-1, 1, LARGE[1]), indexing="ij")
    return image.clamp(0, 1), ((x.square() + y.square()) < 0.5).float()[None, None]


def shrink(image):
    return F.interpolate(image, SMALL, mode="bilinear", antialias=True).clamp(0, 1)


def change_large(change_small, change, image, mask):
    """Apply to `image` the map fitted to a change of its thumbnail; return it with what it should be."""
    small, small_mask = shrink(image), shrink(mask)
    color_map = fit_color_map(small, blend(change_small(small), small, small_mask), small_mask)
    return apply_color_map(image, color_map, mask), blend(change(image), image, mask)


def affine(image):
    return torch.einsum("dc,bchw->bdhw", MATRIX, image) + OFFSET


def smooth_gain(image):
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return image * torch.stack((0.6 + 0.3 * x, 0.7 + 0.2 * torch.cos(3 * y), 0.9 - 0.3 * x * y))


def psnr(first, second, where):
    return -10 * torch.log10((first - second).square()[where.expand_as(first) > 0].mean())


def detail(image, mask):
    """Energy of what a blur takes away, on the foreground."""
    rest = image - F.avg_pool2d(image, 5, 1, 2)
    return rest.square()[mask.expand_as(image) > 0].sum()


def test_affine_change_of_the_thumbnail_is_that_change_of_the_picture():
    result, expected = change_large(affine, affine, *make_photo())
    assert (result - expected).abs().max() < 1 / 255


def test_smooth_gain_of_the_thumbnail_is_that_gain_of_the_picture():
    image, mask = make_photo()
    result, expected = change_large(smooth_gain, smooth_gain, image, mask)
    assert psnr(result, expected, mask) > 40
    assert abs(detail(result, mask) / detail(expected, mask) - 1) < 0.02


def test_detail_beyond_the_thumbnail_is_kept_and_an_enlarged_thumbnail_loses_it():
    image, mask = make_photo()
    result, expected = change_large(affine, affine, image, mask)
    enlarged = F.interpolate(affine(shrink(image)), LARGE, mode="bicubic")
    assert abs(detail(result, mask) / detail(expected, mask) - 1) < 0.02
    assert detail(enlarged, mask) < 0.5 * detail(expected, mask)


def test_no_halo_at_the_edge_of_the_mask():
    image, mask = make_photo()
    # The background could not be more different from the foreground.
    image = torch.where(mask > 0, 0.3 * image, torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1))
    result, expected = change_large(smooth_gain, smooth_gain, image, mask)
    inner_rim = mask * F.max_pool2d(1 - mask, 21, 1, 10)
    core = mask - inner_rim
    assert (result - expected).abs()[inner_rim.expand_as(image) > 0].max() < 3 / 255
    assert psnr(result, expected, inner_rim) > psnr(result, expected, core) - 6


def test_what_the_background_looks_like_does_not_matter():
    image, mask = (shrink(t) for t in make_photo())
    mask = (mask > 0.5).float()
    harmonized = blend(smooth_gain(image), image, mask)
    other = torch.where(mask > 0, image, 1 - image)
    first = fit_color_map(image, harmonized, mask)
    second = fit_color_map(other, torch.where(mask > 0, harmonized, other), mask)
    assert torch.equal(first, second)


def test_blending_by_a_soft_mask_is_undone():
    image, mask = (shrink(t) for t in make_photo())
    soft = 0.3 * mask
    color_map = fit_color_map(image, blend(affine(image), image, soft), soft)
    result = apply_color_map(image, color_map, (mask > 0.5).float())
    torch.testing.assert_close(
        result, blend(affine(image), image, (mask > 0.5).float()), rtol=0, atol=1 / 255
    )


def test_unchanged_thumbnail_gives_the_identity():
    image, mask = make_photo()
    small, small_mask = shrink(image), shrink(mask)
    color_map = fit_color_map(small, small, small_mask)
    torch.testing.assert_close(apply_color_map(image, color_map, mask), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["empty", "full", "one_pixel", "corner", "faint", "constant"])
def test_scarce_foreground_gives_a_bounded_map(kind):
    image, mask = (shrink(t) for t in make_photo())
    mask = torch.full_like(mask, 1.0 if kind in ("full", "constant") else 0.0)
    image = torch.full_like(image, 0.4) if kind == "constant" else image
    spots = {"one_pixel": (30, 30, 1.0), "corner": (0, 0, 1.0), "faint": (30, 30, 1e-3)}
    if kind in spots:
        y, x, value = spots[kind]
        mask[..., y, x] = value
    harmonized = blend(0.9 * image + 0.08, image, mask)
    color_map = fit_color_map(image, harmonized, mask)
    assert torch.isfinite(color_map).all() and color_map.abs().max() < 5
    result = apply_color_map(image, color_map, mask)
    torch.testing.assert_close(result, harmonized, rtol=0, atol=1 / 255)


def test_empty_mask_gives_the_identity_map():
    image = make_photo()[0][..., :40, :40]
    color_map = fit_color_map(image, 1 - image, torch.zeros(1, 1, 40, 40))
    identity = torch.cat((torch.eye(3).flatten(), torch.zeros(3))).view(1, 12, 1, 1).expand_as(color_map)
    torch.testing.assert_close(color_map, identity, rtol=0, atol=1e-6)


def test_speck_lost_in_the_thumbnail_is_changed_like_the_rest():
    image, mask = make_photo()
    mask[..., 5, 5] = 1
    result, expected = change_large(affine, affine, image, mask)
    torch.testing.assert_close(result[..., 5, 5], expected[..., 5, 5], rtol=0, atol=1 / 255)


def test_background_is_equal_to_the_bit_and_input_is_not_mutated():
    image, mask = make_photo()
    mask = mask * 0.7
    color_map = torch.randn(1, 12, 20, 20, generator=torch.Generator().manual_seed(0))
    before = image.clone(), color_map.clone(), mask.clone()
    result = apply_color_map(image, color_map, mask)
    outside = (mask == 0).expand_as(image)
    assert torch.equal(result[outside], image[outside])
    assert result.min() >= 0 and result.max() <= 1
    assert all(torch.equal(t, old) for t, old in zip((image, color_map, mask), before, strict=True))


def test_batch_equals_loop():
    images, masks = (shrink(torch.cat(pair)) for pair in zip(make_photo(0), make_photo(1), strict=True))
    harmonized = blend(smooth_gain(images), images, masks)
    together = fit_color_map(images, harmonized, masks)
    for i in range(2):
        alone = fit_color_map(images[i : i + 1], harmonized[i : i + 1], masks[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)


def textures():
    """Images whose local covariances have rank 3, 2, 1 and 0, or all of these."""
    image = shrink(make_photo()[0])[..., :63, :77]
    grey = image.mean(1, keepdim=True)
    noise = 1e-4 * torch.rand(image.shape, generator=torch.Generator().manual_seed(2))
    return {
        "colours": image,
        "plane": torch.cat((image[:, :2], image[:, :2].mean(1, keepdim=True)), 1),
        "grey": grey.expand_as(image).contiguous(),
        "constant": torch.full_like(image, 0.3) + noise,
        "half_constant": torch.where(torch.arange(77) < 40, image, 0.8 + noise),
    }


@pytest.mark.parametrize("name", list(textures()))
@pytest.mark.parametrize("radius, eps", [(4, 1e-5), (16, 1e-2)])
def test_arrays_and_tensors_give_the_same_map(name, radius, eps):
    image = textures()[name]
    mask = shrink(make_photo()[1])[..., :63, :77]
    harmonized = blend(smooth_gain(image), image, mask)
    by_arrays = fit_color_map(image, harmonized, mask, radius, eps)
    needs_gradient = harmonized.clone().requires_grad_()
    by_tensors = fit_color_map(image, needs_gradient, mask, radius, eps)
    assert by_tensors.requires_grad and not by_arrays.requires_grad
    assert by_arrays.abs().max() < 5
    first, second = (apply_color_map(image, maps, mask) for maps in (by_arrays, by_tensors.detach()))
    # Nearly constant colours leave the fit in float32 few digits.
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
    assert (first - second).abs().mean() < 1e-6
    if eps < 1e-4:  # the other setting follows light alone
        assert (first - harmonized).abs().max() < 4 / 255
