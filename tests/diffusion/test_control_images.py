import numpy as np
import pytest
import torch
from skimage.filters import gaussian

from harmony_diffusion.diffusion.control_images import SIGMA, canny_image, gaussian_image
from harmony_diffusion.errors import InputError, SizeMismatchError


def make_foreground(seed=0, height=47, width=61):
    """Blobs and fine texture, and a mask with a hard, a soft and a one-pixel part that touches the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")
    image = (0.8 * image + 0.2 * torch.rand(1, 3, height, width, generator=generator)).clamp(0, 1)
    mask = torch.zeros(1, 1, height, width)
    mask[..., 10:, 5:40] = 1
    mask[..., 12:30, 40:45] = torch.linspace(0.9, 0.1, 5)
    mask[..., 3, 50] = 1
    return image, mask


def reference_canny(pixels, low, high):
    """Canny as OpenCV documents it, pixel by pixel, from uint8 `(H, W, 3)`."""
    height, width, _ = pixels.shape
    padded = np.pad(pixels.astype(int), ((1, 1), (1, 1), (0, 0)), mode="edge")
    gx, gy = np.zeros((2, height, width), int)
    magnitude = np.zeros((height + 2, width + 2), int)
    for i in range(height):
        for j in range(width):
            p = padded[i : i + 3, j : j + 3]
            dx = p[0, 2] + 2 * p[1, 2] + p[2, 2] - p[0, 0] - 2 * p[1, 0] - p[2, 0]
            dy = p[2, 0] + 2 * p[2, 1] + p[2, 2] - p[0, 0] - 2 * p[0, 1] - p[0, 2]
            strongest = int(np.argmax(abs(dx) + abs(dy)))
            gx[i, j], gy[i, j] = dx[strongest], dy[strongest]
            magnitude[i + 1, j + 1] = abs(gx[i, j]) + abs(gy[i, j])
    peaks = np.zeros((height, width), bool)
    for i in range(height):
        for j in range(width):
            m, x, y = magnitude[i + 1, j + 1], gx[i, j], gy[i, j]
            steep, tangent = abs(y), abs(x) * np.tan(np.pi / 8)
            if steep < tangent:
                before, after = magnitude[i + 1, j], magnitude[i + 1, j + 2]
            elif steep > tangent + 2 * abs(x):
                before, after = magnitude[i, j + 1], magnitude[i + 2, j + 1]
            else:
                s = -1 if x * y < 0 else 1
                peaks[i, j] = m > low and m > magnitude[i, j + 1 - s] and m > magnitude[i + 2, j + 1 + s]
                continue
            peaks[i, j] = m > low and m > before and m >= after
    edges = peaks & (magnitude[1:-1, 1:-1] > high)
    waiting = list(zip(*np.nonzero(edges), strict=True))
    while waiting:
        i, j = waiting.pop()
        for a in range(max(i - 1, 0), min(i + 2, height)):
            for b in range(max(j - 1, 0), min(j + 2, width)):
                if peaks[a, b] and not edges[a, b]:
                    edges[a, b] = True
                    waiting.append((a, b))
    return edges


@pytest.mark.parametrize("thresholds", [(100, 200), (20, 400), (0, 0)])
def test_canny_is_that_of_the_loop(thresholds):
    image, mask = make_foreground()
    edges = canny_image(image, mask, low_threshold=thresholds[0], high_threshold=thresholds[1])
    pixels = (image * mask * 255).round()[0].permute(1, 2, 0).numpy().astype(np.uint8)
    expected = reference_canny(pixels, *thresholds)
    assert 50 < expected.sum() < expected.size / 2
    assert np.array_equal(edges[0, 0].numpy() == 1, expected)
    assert torch.equal(edges[0, 0], edges[0, 1]) and torch.equal(edges[0, 0], edges[0, 2])


def test_edges_without_silhouette_lie_inside_and_with_it_on_the_outline():
    image = torch.full((1, 3, 64, 64), 0.7)
    image[..., 28:36, 28:36] = 0.1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 12:52, 12:52] = 1
    outlined = canny_image(image, mask)[0, 0]
    inner = canny_image(image, mask, silhouette=False)[0, 0]
    assert outlined[10:14].any() and outlined[26:38, 26:38].any()
    assert inner[26:38, 26:38].any()
    inner[26:38, 26:38] = 0
    assert not inner.any()


@pytest.mark.parametrize("silhouette", [True, False])
@pytest.mark.parametrize("premultiplied", [True, False])
def test_the_background_has_no_influence(silhouette, premultiplied):
    image, mask = make_foreground()
    other = torch.where(mask > 0, image, torch.rand_like(image))
    assert torch.equal(
        canny_image(image, mask, silhouette=silhouette), canny_image(other, mask, silhouette=silhouette)
    )
    assert torch.equal(
        gaussian_image(image, mask, premultiplied=premultiplied),
        gaussian_image(other, mask, premultiplied=premultiplied),
    )


@pytest.mark.parametrize("sigma", [0.4, 2.5, SIGMA, 40.0])
def test_premultiplied_blur_is_that_of_scikit_image(sigma):
    image, mask = make_foreground()
    cut = (image * mask)[0].double().numpy()
    expected = gaussian(cut, sigma=sigma, mode="nearest", truncate=4, channel_axis=0)
    assert np.abs(gaussian_image(image, mask, sigma=sigma)[0].numpy() - expected).max() < 1e-3


def test_normalised_blur_is_the_weighted_mean_of_the_foreground():
    image, mask = make_foreground()
    sigma = 2.0
    blurred = gaussian_image(image, mask, sigma=sigma, premultiplied=False)
    padded = torch.nn.functional.pad(torch.cat((image, mask), 1), (8, 8, 8, 8), mode="replicate")[0].double()
    for i, j in ((0, 0), (12, 6), (20, 42), (46, 5), (3, 50)):
        total, amount = np.zeros(3), 0.0
        for a in range(-8, 9):
            for b in range(-8, 9):
                weight = np.exp(-(a * a + b * b) / (2 * sigma**2)) * float(padded[3, i + 8 + a, j + 8 + b])
                total += weight * padded[:3, i + 8 + a, j + 8 + b].numpy()
                amount += weight
        expected = float(mask[0, 0, i, j]) * total / max(amount, 1e-30)
        assert np.abs(blurred[0, :, i, j].numpy() - expected).max() < 1e-5


def test_normalised_blur_keeps_a_flat_colour_to_the_rim_and_the_premultiplied_one_darkens_it():
    image = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:44, 20:44] = 1
    assert torch.allclose(gaussian_image(image, mask, premultiplied=False), image * mask, atol=1e-6)
    dark = gaussian_image(image, mask)
    assert dark[0, 2, 20, 20] < 0.3 and dark[0, 2, 12, 32] > 0.01


def test_a_foreground_cut_by_the_frame_does_not_darken_there():
    image, mask = torch.full((1, 3, 32, 40), 0.6), torch.ones(1, 1, 32, 40)
    for premultiplied in (True, False):
        assert torch.allclose(gaussian_image(image, mask, premultiplied=premultiplied), image, atol=1e-6)


def test_no_blur_is_the_foreground_itself():
    image, mask = make_foreground()
    for premultiplied in (True, False):
        blurred = gaussian_image(image, mask, sigma=0, premultiplied=premultiplied)
        assert torch.allclose(blurred, image * mask, atol=1e-6)


@pytest.mark.parametrize("kind", ["empty", "full", "pixel", "tiny frame"])
def test_odd_masks_give_finite_values_in_range(kind):
    size = (3, 5) if kind == "tiny frame" else (33, 47)
    image, mask = torch.rand(1, 3, *size), torch.zeros(1, 1, *size)
    if kind == "full":
        mask += 1
    elif kind != "empty":
        mask[..., 1, 2] = 1
    results = [canny_image(image, mask, silhouette=s) for s in (True, False)]
    results += [gaussian_image(image, mask, premultiplied=p) for p in (True, False)]
    for result in results:
        assert result.shape == image.shape and result.isfinite().all()
        assert result.min() >= 0 and result.max() <= 1
        assert kind != "empty" or not result.any()


def test_batch_equals_loop():
    pairs = [make_foreground(seed=seed) for seed in range(3)]
    images, masks = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    for silhouette in (True, False):
        batch = canny_image(images, masks, silhouette=silhouette)
        assert torch.equal(batch, torch.cat([canny_image(*one, silhouette=silhouette) for one in pairs]))
    for premultiplied in (True, False):
        batch = gaussian_image(images, masks, premultiplied=premultiplied)
        single = torch.cat([gaussian_image(*one, premultiplied=premultiplied) for one in pairs])
        assert torch.allclose(batch, single, atol=1e-6)


def test_half_precision_comes_back_as_it_came():
    image, mask = make_foreground()
    for dtype in (torch.float16, torch.bfloat16):
        assert canny_image(image.to(dtype), mask.to(dtype)).dtype == dtype
        blurred = gaussian_image(image.to(dtype), mask.to(dtype))
        assert blurred.dtype == dtype
        assert (blurred.float() - gaussian_image(image, mask)).abs().max() < 0.01


@pytest.mark.parametrize(
    "shapes", [((1, 3, 8, 8), (1, 1, 8, 9)), ((1, 4, 8, 8), (1, 1, 8, 8)), ((3, 8, 8), (8, 8))]
)
def test_shapes_that_do_not_fit_are_told(shapes):
    image, mask = (torch.rand(shape) for shape in shapes)
    for make in (canny_image, gaussian_image):
        with pytest.raises(SizeMismatchError, match=r"expected \(B, 3, H, W\)"):
            make(image, mask)


def test_bad_numbers_are_told():
    image, mask = make_foreground()
    with pytest.raises(InputError, match="low_threshold"):
        canny_image(image, mask, low_threshold=300)
    for sigma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="sigma"):
            gaussian_image(image, mask, sigma=sigma)
