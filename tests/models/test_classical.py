from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import scipy.stats
import skimage.color
import skimage.exposure
import torch
from PIL import Image

from harmony_diffusion.models import classical, create_model, load_model
from harmony_diffusion.models.classical import MKL, Region, Reinhard, mean_and_covariance
from harmony_diffusion.models.classical_poisson import seamless_clone
from harmony_diffusion.models.classical_transport import (
    IDT,
    HistogramMatching,
    look_up,
    match_quantiles,
    spread_rotations,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STATISTICAL = ("reinhard", "mkl", "idt", "histogram_matching")
every_method = pytest.mark.parametrize("name", (*STATISTICAL, "poisson"))
every_white_box = pytest.mark.parametrize("name", STATISTICAL)


@pytest.fixture(scope="module")
def photograph():
    """A real composite (1, 3, 256, 384) with its soft mask."""
    image = np.asarray(Image.open(EXAMPLES / "composite.jpg"), np.float32) / 255
    mask = np.asarray(Image.open(EXAMPLES / "mask.png"), np.float32) / 255
    return torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(mask)[None, None]


def pixels_of(image, mask):
    """Colours (N, 3) in float64 of the foreground and of the background under a hard mask."""
    flat, inside = image[0].double().flatten(1).T.numpy(), mask.flatten().numpy() > 0.5
    return flat[inside], flat[~inside]


def random_pixels(seed, count, mean, spread):
    generator = np.random.default_rng(seed)
    return np.clip(mean + generator.normal(size=(count, 3)) @ np.asarray(spread), 0.02, 0.98)


def composite_of(foreground, background):
    """Lay two lists of 1024 colours side by side: a composite (1, 3, 32, 64) and its mask."""
    colors = np.concatenate((foreground.reshape(32, 32, 3), background.reshape(32, 32, 3)), axis=1)
    mask = torch.zeros(1, 1, 32, 64, dtype=torch.float64)
    mask[..., :32] = 1
    return torch.from_numpy(colors).permute(2, 0, 1)[None], mask


@pytest.fixture
def two_clouds():
    """Foreground and background colours, 1024 each, correlated in different ways and inside the gamut."""
    foreground = random_pixels(0, 1024, 0.6, [[0.05, 0.02, 0], [0, 0.04, 0.01], [0.01, 0, 0.03]])
    background = random_pixels(1, 1024, 0.4, [[0.04, -0.02, 0.01], [0, 0.06, 0.02], [0, 0.01, 0.05]])
    return foreground, background


# Reinhard


def test_reinhard_agrees_with_scikit_image_lab(photograph):
    composite, mask = photograph[0], (photograph[1] > 0.5).float()
    foreground, background = (skimage.color.rgb2lab(pixels) for pixels in pixels_of(composite, mask))
    moved = (foreground - foreground.mean(0)) * background.std(0) / foreground.std(0) + background.mean(0)
    expected = skimage.color.lab2rgb(moved).clip(0, 1)
    harmonized, _ = pixels_of(Reinhard()(composite, mask), mask)
    np.testing.assert_allclose(harmonized, expected, atol=2e-4)


def test_reinhard_gives_the_background_mean_and_std(two_clouds):
    composite, mask = composite_of(*two_clouds)
    harmonized = Reinhard()(composite, mask)
    foreground, background = (skimage.color.rgb2lab(pixels) for pixels in pixels_of(harmonized, mask))
    np.testing.assert_allclose(foreground.mean(0), background.mean(0), atol=0.02)
    np.testing.assert_allclose(foreground.std(0), background.std(0), atol=0.02)


# Linear Monge-Kantorovitch


def test_mkl_gives_the_background_mean_and_covariance(two_clouds):
    composite, mask = composite_of(*two_clouds)
    filters = MKL().predict_filters(composite, mask)[0].numpy()
    foreground, background = two_clouds
    moved = foreground @ filters[:9].reshape(3, 3).T + filters[9:]
    np.testing.assert_allclose(moved.mean(0), background.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(background.T), atol=1e-6)


def test_mkl_agrees_with_the_formula_of_the_paper(two_clouds):
    a, b = (np.cov(pixels.T, ddof=0) for pixels in two_clouds)
    root = scipy.linalg.sqrtm(a)
    inverse = np.linalg.inv(root)
    expected = inverse @ scipy.linalg.sqrtm(root @ b @ root) @ inverse
    filters = MKL().predict_filters(*composite_of(*two_clouds))[0].numpy()
    np.testing.assert_allclose(filters[:9].reshape(3, 3), expected, atol=1e-9)
    np.testing.assert_allclose(
        filters[9:], two_clouds[1].mean(0) - expected @ two_clouds[0].mean(0), atol=1e-9
    )


def test_mkl_of_uncorrelated_channels_is_a_gain_each():
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T.repeat(128, axis=0)
    foreground, background = 0.5 + corners * [0.1, 0.05, 0.2], 0.4 + corners * [0.3, 0.1, 0.1]
    filters = MKL().predict_filters(*composite_of(foreground, background))[0].numpy()
    np.testing.assert_allclose(filters[:9].reshape(3, 3), np.diag([3, 2, 0.5]), atol=1e-9)


def test_mkl_moves_a_grey_foreground_along_grey_only():
    grey = np.linspace(0.2, 0.8, 1024)[:, None].repeat(3, 1)
    background = random_pixels(1, 1024, [0.6, 0.4, 0.3], np.diag([0.1, 0.05, 0.05]))
    matrix = MKL().predict_filters(*composite_of(grey, background))[0, :9].view(3, 3).numpy()
    axis = np.ones(3) / 3**0.5
    gain = np.sqrt(axis @ np.cov(background.T, ddof=0) @ axis / np.var(grey @ axis))
    np.testing.assert_allclose(matrix, np.eye(3) + (gain - 1) * np.outer(axis, axis), atol=1e-6)


# One-dimensional transport and histogram matching


def test_match_quantiles_pairs_equally_many_values_by_rank():
    generator = np.random.default_rng(0)
    values, target, weights = generator.random(500), generator.random(500) ** 3, np.full(500, 1 / 500)
    matched = match_quantiles(values, weights, target, weights, values)
    expected = skimage.exposure.match_histograms(values[None], target[None])[0]
    np.testing.assert_allclose(matched, expected, atol=1e-12)
    np.testing.assert_allclose(np.sort(matched), np.sort(target), atol=1e-12)


def test_match_quantiles_weighs_as_repetition_does():
    generator = np.random.default_rng(1)
    values, target = generator.integers(0, 20, 60) / 20, generator.integers(0, 30, 80) / 30
    times, target_times = generator.integers(1, 5, 60), generator.integers(1, 5, 80)
    positions = np.linspace(-0.2, 1.2, 57)
    weighted = match_quantiles(
        values, times / times.sum(), target, target_times / target_times.sum(), positions
    )
    values, target = values.repeat(times), target.repeat(target_times)
    repeated = match_quantiles(
        values,
        np.full(len(values), 1 / len(values)),
        target,
        np.full(len(target), 1 / len(target)),
        positions,
    )
    np.testing.assert_allclose(weighted, repeated, atol=1e-12)


def test_match_quantiles_agrees_with_optimal_transport_worked_by_hand():
    # 1/4 of the weight at 0 takes the lower half of the target's mass at 2; 3/4 at 1 takes the rest.
    matched = match_quantiles(
        np.array([1.0, 0.0]),
        np.array([0.75, 0.25]),
        np.array([4.0, 2.0]),
        np.array([0.5, 0.5]),
        np.arange(-1.0, 3),
    )
    np.testing.assert_allclose(matched, [1, 2, (0.25 * 2 + 0.5 * 4) / 0.75, 1 + (0.25 * 2 + 0.5 * 4) / 0.75])


def test_match_quantiles_is_monotone_and_carries_the_mean():
    generator = np.random.default_rng(2)
    values, target = generator.normal(size=3000).round(1), generator.gamma(2, size=4000)
    weights, target_weights = generator.random(3000) ** 8, generator.random(4000) ** 8
    weights, target_weights = weights / weights.sum(), target_weights / target_weights.sum()
    assert (
        np.diff(match_quantiles(values, weights, target, target_weights, np.linspace(-5, 5, 999))) >= 0
    ).all()
    matched = match_quantiles(values, weights, target, target_weights, values)
    np.testing.assert_allclose(weights @ matched, target_weights @ target, rtol=1e-9)


def test_histogram_matching_agrees_with_scikit_image(photograph):
    composite, mask = (photograph[0] * 255).round() / 255, (photograph[1] > 0.5).float()
    foreground, background = (np.rint(pixels * 255).astype(np.uint8) for pixels in pixels_of(composite, mask))
    expected = skimage.exposure.match_histograms(foreground[None], background[None], channel_axis=-1)[0]
    harmonized, _ = pixels_of(HistogramMatching()(composite, mask), mask)
    difference = np.abs(harmonized * 255 - expected)
    # A level goes to the mean of its quantiles here and to the highest of them there: the same but for levels
    # that hold much of the foreground.
    shares = np.stack([np.bincount(c, minlength=256)[c] for c in foreground.T], 1) / len(foreground)
    difference = difference[shares < 0.01]
    assert difference.size > 10000 and difference.mean() < 1 and np.quantile(difference, 0.99) < 4


def test_histogram_matching_keeps_16_bits(photograph):
    composite, mask = photograph
    filters = HistogramMatching().predict_filters(composite, mask)
    ramp = torch.linspace(0, 1, 65536).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    out = HistogramMatching().apply_filters(ramp, filters, torch.ones(1, 1, 1, 65536))[0]
    assert (out.diff(dim=-1) >= -1e-7).all()
    steepest = filters.view(3, 256).diff(dim=1).max()
    assert out.diff(dim=-1).max() < steepest / 256 + 1e-6


# Iterative distribution transfer


def sliced_distance(first, second):
    directions = np.random.default_rng(3).normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.mean([scipy.stats.wasserstein_distance(first @ d, second @ d) for d in directions])


def test_idt_brings_the_distributions_together(photograph):
    composite, mask = photograph[0], (photograph[1] > 0.5).float()
    foreground, background = pixels_of(composite, mask)
    harmonized, _ = pixels_of(IDT()(composite, mask), mask)
    assert sliced_distance(harmonized, background) < 0.1 * sliced_distance(foreground, background)
    linear, _ = pixels_of(MKL()(composite, mask), mask)
    assert sliced_distance(harmonized, background) < sliced_distance(linear, background)


def test_idt_tables_are_monotone(photograph):
    tables = IDT().predict_filters(*photograph).view(-1, 130)
    assert (tables[:, 1] >= tables[:, 0]).all()
    assert (tables[:, 2:].diff(dim=1) >= 0).all()


def test_rotations_are_rotations_and_spread():
    rotations = spread_rotations(20)
    np.testing.assert_allclose(rotations[0], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (20, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    # How far directions are from the nearest of the 60 axes: 9 degrees on average for random rotations.
    directions = np.random.default_rng(4).normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    nearest = np.degrees(np.arccos(np.abs(rotations.reshape(-1, 3) @ directions.T).max(0)))
    assert nearest.mean() < 8 and nearest.max() < 22


def test_look_up_agrees_with_numpy():
    generator = torch.Generator().manual_seed(0)
    values, tables = torch.rand(2, 300, generator=generator) * 3 - 1, torch.rand(2, 9, generator=generator)
    low, high = torch.tensor([[-0.5], [0.0]]), torch.tensor([[1.5], [0.7]])
    out = look_up(values, tables, low, high)
    for i in range(2):
        ends = low[i].item(), high[i].item()
        inside = values[i].numpy().clip(*ends)
        expected = np.interp(inside, np.linspace(*ends, 9), tables[i].numpy()) + values[i].numpy() - inside
        np.testing.assert_allclose(out[i].numpy(), expected, atol=1e-5)


# What all of them keep


@every_method
def test_excluded_pixels_never_enter(name, photograph):
    composite, mask = photograph
    reference = torch.ones_like(mask)
    reference[..., :100] = 0
    garbage = torch.where((mask == 0) & (reference == 0), torch.rand(composite.shape), composite)
    model = create_model(name)
    foreground = (mask > 0).expand_as(composite)
    harmonized = model(composite, mask, reference)[foreground]
    assert torch.equal(harmonized, model(garbage, mask, reference)[foreground])
    assert not torch.allclose(harmonized, model(composite, mask)[foreground], atol=1e-2)


@every_method
def test_all_ones_reference_is_no_reference(name, photograph):
    composite, mask = photograph
    model = create_model(name)
    assert torch.equal(model(composite, mask, torch.ones_like(mask)), model(composite, mask))


@every_method
@pytest.mark.parametrize("kind", ["no_foreground", "no_background", "no_reference"])
def test_without_either_region_nothing_changes(name, kind, photograph):
    composite, mask = photograph
    if kind != "no_reference":
        mask = torch.full_like(mask, float(kind == "no_background"))
    reference = torch.zeros_like(mask) if kind == "no_reference" else None
    torch.testing.assert_close(create_model(name)(composite, mask, reference), composite, rtol=0, atol=1e-5)


@every_white_box
def test_identical_regions_stay_as_they_are(name, two_clouds):
    composite, mask = composite_of(two_clouds[0], two_clouds[0])
    harmonized = create_model(name)(composite, mask)
    torch.testing.assert_close(harmonized, composite, rtol=0, atol=1e-6)


@every_white_box
def test_constant_foreground_takes_the_mean_of_the_background(name, two_clouds):
    composite, mask = composite_of(np.full((1024, 3), 0.3), two_clouds[1])
    space = classical.srgb_to_lab if name == "reinhard" else torch.nn.Identity()
    harmonized = space(create_model(name)(composite, mask))
    expected = space(composite)[..., 32:].mean((2, 3))
    torch.testing.assert_close(harmonized[..., :32].mean((2, 3)), expected, rtol=1e-3, atol=1e-3)


@every_method
def test_one_pixel_and_constant_background_are_finite(name, photograph):
    composite, mask = photograph[0].clone(), torch.zeros_like(photograph[1])
    mask[..., 0, 383] = 1
    assert torch.isfinite(create_model(name)(composite, mask)).all()
    composite = torch.where(photograph[1] > 0, composite, torch.tensor(0.25))
    assert torch.isfinite(create_model(name)(composite, photograph[1])).all()


@every_white_box
def test_soft_masks_weigh(name, two_clouds):
    """Foreground pixels of weight 1/2 count as much as half of them would."""
    foreground, background = two_clouds
    composite, mask = composite_of(np.concatenate((foreground[:512], foreground[:512])), background)
    reference = 1 - mask
    half = mask.clone()
    half[:, :, 16:] *= 0.5
    # Rows 0-15 hold the same colours as rows 16-31, so any weights give the same filters as one of them.
    model = create_model(name)
    once = model.predict_filters(composite, torch.where(mask.cumsum(2) > 16, 0, mask), reference)
    both = model.predict_filters(composite, half, reference)
    torch.testing.assert_close(once, both, rtol=0, atol=1e-8)
    other = composite.clone()
    other[:, :, 16:, :32] *= 0.5
    heavy, light = (
        model.predict_filters(other, mask, reference),
        model.predict_filters(other, half, reference),
    )
    assert not torch.allclose(heavy, light, atol=1e-3)


def test_mean_and_covariance_agree_with_numpy(two_clouds):
    weights = np.random.default_rng(5).random(1024)
    mean, covariance = mean_and_covariance(Region(two_clouds[0], weights / weights.sum()))
    np.testing.assert_allclose(mean, np.average(two_clouds[0], axis=0, weights=weights))
    np.testing.assert_allclose(covariance, np.cov(two_clouds[0].T, aweights=weights, ddof=0))


@every_white_box
def test_filters_of_a_thumbnail_serve_the_full_size(name, photograph):
    """A thumbnail of half the size has less texture; the colours may differ by a few levels of 255."""
    composite, mask = photograph
    small, small_mask = (
        torch.nn.functional.interpolate(t, scale_factor=0.5, mode="area") for t in photograph
    )
    model = create_model(name)
    from_thumbnail = model.apply_filters(composite, model.predict_filters(small, small_mask), mask)
    difference = (from_thumbnail - model(composite, mask)).abs()[(mask > 0).expand_as(composite)] * 255
    assert difference.mean() < (3 if name in ("reinhard", "mkl") else 6)


@every_white_box
def test_applying_is_pointwise(name, photograph, monkeypatch):
    composite, mask = photograph
    model = create_model(name)
    filters = model.predict_filters(composite, mask)
    whole = model.apply_filters(composite, filters, mask)
    band = model.apply_filters(composite[..., 120:200, :], filters, mask[..., 120:200, :])
    torch.testing.assert_close(band, whole[..., 120:200, :], rtol=0, atol=1e-6)
    packed = model.apply_filters(composite.flatten(2)[:, :, None], filters, mask.flatten(2)[:, :, None])
    torch.testing.assert_close(packed, whole.flatten(2)[:, :, None], rtol=0, atol=1e-6)
    monkeypatch.setattr(classical, "PIXELS_AT_ONCE", 1000)
    torch.testing.assert_close(model.apply_filters(composite, filters, mask), whole, rtol=0, atol=1e-6)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_taken(name, dtype, photograph):
    composite, mask = photograph
    model = create_model(name)
    harmonized = model(composite.to(dtype), mask.to(dtype))
    assert harmonized.dtype == dtype
    difference = (harmonized.float() - model(composite, mask)).abs()
    assert difference.mean() < 0.01


def test_idt_of_few_iterations_survives_saving(tmp_path, photograph):
    model = create_model("idt", iterations=3)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.iterations == 3
    assert torch.equal(loaded(*photograph), model(*photograph))


# Poisson


@pytest.fixture(scope="module")
def pasted_ellipse():
    """A textured ellipse on a smooth background, (64, 72, 3) uint8, and its mask."""
    y, x = np.mgrid[:64, :72].astype(float)
    background = np.stack([100 + y * 0.8 + 5 * np.sin(x / 5), 90 + x * 0.6, 120 - y * 0.5], -1)
    foreground = np.stack([160 + 20 * np.sin(y / 3), 140 + 15 * np.cos(x / 4), 60 + x * 0.5], -1)
    mask = ((y - 30) / 16) ** 2 + ((x - 36) / 20) ** 2 < 1
    return np.where(mask[..., None], foreground, background).round().astype(np.uint8), mask


def solve_poisson(image, inside, mask):
    """Solve equation 7 of Pérez et al. in `inside`, from the gradients within either region of the image."""
    index = np.full(mask.shape, -1)
    index[inside] = np.arange(inside.sum())
    matrix, right = scipy.sparse.lil_matrix((inside.sum(),) * 2), np.zeros((inside.sum(), 3))
    for y, x in np.argwhere(inside):
        row = index[y, x]
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            matrix[row, row] += 1
            if mask[y, x] == mask[v, u]:  # no gradient is known across the edge
                right[row] += image[y, x].astype(float) - image[v, u]
            if inside[v, u]:
                matrix[row, index[v, u]] = -1
            else:
                right[row] += image[v, u]
    solution = image.astype(float)
    solution[inside] = scipy.sparse.linalg.spsolve(matrix.tocsr(), right)
    return solution


def test_poisson_agrees_with_a_sparse_solver(pasted_ellipse):
    image, mask = pasted_ellipse
    cloned = seamless_clone(image, mask.astype(np.float32), ~mask)
    changed = np.abs(cloned - image)[mask].mean()
    # OpenCV solves for the bounding box, two pixels around the foreground, in 8 bits.
    y, x = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[y.min() - 2 : y.max() + 3, x.min() - 2 : x.max() + 3] = True
    difference = np.abs(cloned - solve_poisson(image, box, mask))[mask]
    assert changed > 25 and difference.mean() < 0.4 and difference.max() < 4
    # The paper's own formulation, in which the background does not move, is close by.
    difference = np.abs(cloned - solve_poisson(image, mask, mask))[mask]
    assert difference.mean() < 2 and difference.max() < 10


def test_poisson_takes_a_constant_offset_away():
    y, x = np.mgrid[:60, :80].astype(np.float32)
    clean = torch.from_numpy(np.stack([0.5 + 0.1 * np.sin(x / 9), 0.4 + y / 300, 0.3 + x / 400])).float()[
        None
    ]
    mask = torch.zeros(1, 1, 60, 80)
    mask[..., 20:45, 25:60] = 1
    restored = create_model("poisson")(clean + torch.tensor([0.2, -0.1, 0.15]).view(1, 3, 1, 1) * mask, mask)
    # Gradients across the edge are unknown, so the background's own slope there is lost: two levels of 255.
    assert (restored - clean).abs().max() < 4 / 255 and (restored - clean).abs().mean() < 0.5 / 255


@pytest.mark.parametrize("corner", [(0, 0), (0, 30), (29, 0), (29, 30), (13, 17)])
@pytest.mark.parametrize("height", [30, 31])
def test_poisson_leaves_the_foreground_in_its_place(corner, height):
    """Detail stays where it was, for every rounding of the centre and with the mask on any border."""
    generator = torch.Generator().manual_seed(0)
    composite = torch.full((1, 3, 60, 61), 0.4)
    top, left = corner
    window = (..., slice(top, top + height), slice(left, left + 31))
    detail = torch.rand(1, 3, 60, 61, generator=generator)[window] * 0.3
    mask = torch.zeros(1, 1, 60, 61)
    mask[window] = 1
    composite[window] = 0.6 + detail
    change = (create_model("poisson")(composite, mask) - composite)[window]
    inside = (..., slice(8, -8), slice(8, -8))
    # The change is smooth: harmonic, however rough the detail that it is added to.
    assert change[inside].mean() < -0.1
    assert change[inside].diff(dim=-1).abs().mean() < 0.01 and change[inside].diff(dim=-2).abs().mean() < 0.01


def test_poisson_treats_channels_alike_and_apart(photograph):
    composite, mask = photograph
    model = create_model("poisson")
    assert torch.equal(model(composite.flip(1), mask).flip(1), model(composite, mask))


def test_poisson_keeps_steps_finer_than_8_bits():
    ramp = torch.linspace(0.5, 0.502, 1024).view(1, 1, 32, 32).expand(1, 3, 32, 32).clone()
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 4:28, 4:28] = 1
    assert create_model("poisson")(ramp, mask)[0, 0, 4:28, 4:28].unique().numel() > 500
