import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import disc, picture

from harmony_diffusion import color
from harmony_diffusion.data.keyed_random import KeyedDraws, sample_key
from harmony_diffusion.data.synthesis import color_transfer
from harmony_diffusion.data.synthesis.candidates import choose
from harmony_diffusion.data.synthesis.composites import (
    KINDS,
    SyntheticComposites,
    reference_colors,
    reversed_filters,
)
from harmony_diffusion.data.synthesis.degradations import imperfect_masks, jpeg
from harmony_diffusion.data.synthesis.lighting import GRID, draw_light, light_gain
from harmony_diffusion.data.synthesis.placement import IN_PLACE
from harmony_diffusion.data.synthesis.retouching import hue_matrix, relight
from harmony_diffusion.errors import InputError

COUNT = 12


@pytest.fixture(scope="module")
def photographs():
    real = torch.stack([torch.from_numpy(picture(n, 64, 64)).permute(2, 0, 1) for n in range(COUNT)])
    mask = torch.stack([torch.from_numpy(disc(64, 64, (30, 28 + n), 10 + n)) for n in range(COUNT)])
    keys = torch.tensor([sample_key(7, 0, index) for index in range(COUNT)])
    return real, mask[:, None], keys


@pytest.fixture(scope="module")
def references():
    pixels = [torch.from_numpy(picture(100 + n, 16, 32)).flatten(0, 1).T for n in range(9)]
    return torch.stack(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_same_in_any_batch(photographs, references, kind):
    synthesize = SyntheticComposites(references, {kind: 1.0})
    whole = synthesize(*photographs)
    again = synthesize(*photographs)
    for rows in ([3], [9, 2, 5, 0, 7]):
        part = synthesize(*(tensor[rows] for tensor in photographs))
        for one, all_, same in zip(part, whole, again, strict=True):
            assert torch.equal(one, all_[rows]) and torch.equal(same, all_)


def test_other_keys_give_other_composites(photographs, references):
    real, mask, keys = photographs
    synthesize = SyntheticComposites(
        references, {"transfer": 1.0, "light": 1.0}, jittered=0.0, placements=IN_PLACE
    )
    first, second = synthesize(real, mask, keys), synthesize(real, mask, keys + 1)
    assert torch.equal(first.real, second.real)
    different = (first.composite != second.composite).flatten(1).any(1)
    assert different.all()


def test_values_are_8_bit_colors(photographs, references):
    batch = SyntheticComposites(references)(*photographs)
    for tensor in (batch.composite, batch.mask, batch.real):
        assert tensor.min() >= 0 and tensor.max() <= 1
        assert torch.equal((tensor * 255).round() / 255, tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_background_is_untouched(photographs, references, kind):
    real, mask, keys = photographs
    batch = SyntheticComposites(references, {kind: 1.0}, jittered=0.0, imperfect=False, placements=IN_PLACE)(
        real, mask, keys
    )
    assert torch.equal(batch.real, real / 255)
    outside = (mask == 0).expand(-1, 3, -1, -1)
    assert torch.equal(batch.composite[outside], batch.real[outside])
    changed = (batch.composite != batch.real).flatten(1).any(1)
    assert not changed.any() if kind == "untouched" else changed.all()


def test_only_soft_edges_reach_into_the_background(photographs, references):
    real, mask, keys = photographs
    batch = SyntheticComposites(references, jittered=0.0, placements=IN_PLACE)(real, mask, keys)
    near = torch.nn.functional.max_pool2d((mask > 0).float(), 7, 1, 3)
    far = (near == 0).expand(-1, 3, -1, -1)
    assert torch.equal(batch.composite[far], batch.real[far])
    assert (batch.mask[near == 0] == 0).all()


@pytest.mark.parametrize("kind", KINDS[:4])
def test_composites_differ_visibly_and_plausibly(references, kind):
    count = 60
    real = torch.stack([torch.from_numpy(picture(n, 32, 32)).permute(2, 0, 1) for n in range(count)])
    mask = torch.from_numpy(disc(32, 32, (15, 16), 9)).expand(count, 1, 32, 32)
    keys = torch.tensor([sample_key(3, 0, index) for index in range(count)])
    batch = SyntheticComposites(references, {kind: 1.0}, jittered=0.0, imperfect=False, placements=IN_PLACE)(
        real, mask, keys
    )
    weight = mask / 255.0
    fmse = (((batch.composite - batch.real) * 255) ** 2 * weight).sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)))
    assert ((fmse > 40) & (fmse < 7500)).float().mean() > 0.9
    inside = (mask > 0).expand(-1, 3, -1, -1)
    clipped = ((batch.composite == 0) | (batch.composite == 1)) & (batch.real > 0.05) & (batch.real < 0.95)
    assert clipped[inside].float().mean() < 0.05


def test_shares_are_kept_and_checked(references):
    keys = torch.tensor([sample_key(0, 0, index) for index in range(400)])
    real = torch.full((400, 3, 16, 16), 128, dtype=torch.uint8)
    mask = torch.zeros(400, 1, 16, 16, dtype=torch.uint8)
    mask[:, :, 4:12, 4:12] = 255
    batch = SyntheticComposites(None, {"retouch": 1.0, "untouched": 3.0}, imperfect=False)(real, mask, keys)
    assert 0.68 < (batch.kind == KINDS.index("untouched")).float().mean() < 0.82
    for bad in ({"repaint": 1.0}, {"light": -1.0}, {}, {"transfer": 1.0}):
        with pytest.raises(InputError):
            SyntheticComposites(None, bad)


def colors(seed, count=1024):
    generator = torch.Generator().manual_seed(seed)
    mixture = torch.eye(3) * 0.08 + 0.04 * torch.rand(2, 3, 3, generator=generator)
    return (0.35 + 0.1 * torch.rand(2, 3, 1, generator=generator)) + mixture @ torch.randn(
        2, 3, count, generator=generator
    ).clamp(-2.5, 2.5)


def test_reinhard_matches_mean_and_deviation_in_lab():
    source, reference = colors(0), colors(1)
    moved = color_transfer.reinhard(source, reference)(source)
    lab, wanted = (color.srgb_to_lab(c.clamp(0, 1)[..., None])[..., 0] for c in (moved, reference))
    assert torch.allclose(lab.mean(2), wanted.mean(2), atol=0.2)
    assert torch.allclose(lab.std(2), wanted.std(2), atol=0.2)


def test_monge_kantorovitch_matches_mean_and_covariance():
    source, reference = colors(2), colors(3)
    moved = color_transfer.monge_kantorovitch(source, reference)(source)
    assert torch.allclose(moved.mean(2), reference.mean(2), atol=1e-4)
    for row in range(2):
        assert np.allclose(np.cov(moved[row].numpy()), np.cov(reference[row].numpy()), atol=3e-4)


def test_histograms_and_distributions_are_matched():
    source, reference = colors(4), colors(5)
    levels = torch.linspace(0.05, 0.95, 19)
    moved = color_transfer.match_histograms(source, reference)(source)
    assert torch.allclose(moved.quantile(levels, 2), reference.quantile(levels, 2), atol=0.01)
    draws = KeyedDraws(torch.tensor([1, 2]))
    moved = color_transfer.iterative_distribution_transfer(source, reference, draws)(source)
    axis = torch.nn.functional.normalize(torch.tensor((1.0, -2.0, 0.5)), dim=0)
    along, wanted = (torch.einsum("c,bcn->bn", axis, c).quantile(levels, 1) for c in (moved, reference))
    before = torch.einsum("c,bcn->bn", axis, source).quantile(levels, 1)
    assert (along - wanted).abs().max() < 0.02 < (before - wanted).abs().max()


def test_rotations_are_rotations():
    turns = color_transfer._rotations(KeyedDraws(torch.arange(20)).normal("r", 4))
    assert torch.allclose(turns @ turns.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3), atol=1e-12)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(20, dtype=torch.float64))


def test_hue_turns_around_grey():
    matrix = hue_matrix(torch.tensor([2 * torch.pi / 3], dtype=torch.float64))[0]
    assert torch.allclose(matrix @ torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    red, green = torch.eye(3, dtype=torch.float64)[:2]
    assert torch.allclose(matrix @ red, green, atol=1e-12)


def test_a_shoulder_keeps_white_and_none_clips():
    gain = torch.tensor([2.0, 2.0]).view(2, 1, 1)
    shoulder = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    values = torch.tensor([0.0, 0.25, 1.0]).expand(2, 1, 3)
    expected = torch.tensor([[[0.0, 0.5, 2.0]], [[0.0, 0.4, 1.0]]])
    assert torch.allclose(relight(values, gain, shoulder), expected)


def test_light_varies_over_the_object():
    mask = torch.zeros(8, 1, GRID, GRID)
    mask[:, :, 10:30, 15:40] = 1
    gain = light_gain(mask, draw_light(KeyedDraws(torch.arange(8)), 1))
    inside = gain[:, :, 10:30, 15:40].flatten(2)
    assert ((inside.amax(2) / inside.amin(2)).amax(1) > 1.1).all()
    steps = gain.diff(dim=3).abs().amax((1, 2, 3)) / (gain.amax((1, 2, 3)) - gain.amin((1, 2, 3)))
    assert (steps < 0.25).all()  # smooth


def test_jpeg_is_that_of_libjpeg():
    image = picture(5, 64, 80)
    for quality in (35, 75):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
        ours = jpeg(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, torch.tensor([float(quality)]))[0]
        error = (ours.clamp(0, 1) - expected).square().mean()
        loss = (torch.from_numpy(image).permute(2, 0, 1) / 255 - expected).square().mean()
        assert error < loss / 4


def test_masks_become_soft_and_wrong_by_little():
    count = 200
    mask = torch.zeros(count, 1, 32, 32)
    mask[:, :, 8:24, 10:20] = 1
    opacity, given = imperfect_masks(mask, KeyedDraws(torch.arange(count)))
    exact = (opacity == mask).flatten(1).all(1) & (given == mask).flatten(1).all(1)
    assert 0.38 < exact.float().mean() < 0.62
    soft = ((opacity > 0) & (opacity < 1)).flatten(1).any(1)
    assert 0.15 < soft.float().mean() < 0.4
    near = torch.nn.functional.max_pool2d(mask, 7, 1, 3)
    core = 1 - torch.nn.functional.max_pool2d(1 - mask, 7, 1, 3)
    assert (given[near == 0] == 0).all() and (given[core == 1] > 0.99).all()
    area = given.sum((1, 2, 3)) / mask.sum((1, 2, 3))
    assert area.min() > 0.5 and (area > 1.05).any() and (area < 0.95).any()


def test_a_thin_object_is_not_eroded_away():
    mask = torch.zeros(100, 1, 32, 32)
    mask[:, :, 15, 4:28] = 1
    assert (imperfect_masks(mask, KeyedDraws(torch.arange(100)))[1].sum((1, 2, 3)) > 0).all()


def test_the_first_good_candidate_is_chosen():
    before = torch.rand(1, 3, 64, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    same, good, other = before, before + 0.06, before - 0.08
    clipped, flat = before + 0.6, before.mean(2, keepdim=True).expand_as(before)
    for candidates, expected in (
        ((same, clipped, good, other), 2),
        ((other, good, same, flat), 0),
        ((flat, same, clipped, other), 3),
    ):
        assert choose(before, torch.cat(candidates)).tolist() == [expected]


def test_reversed_filters_are_the_fine_stream_of_harmonizer(photographs):
    real, mask, keys = photographs
    image, weight = real / 255, mask / 255
    composite, targets = reversed_filters(image, weight, keys)
    limits = torch.tensor([0.3, 0.5, 0.5, 0.6, 0.4, 0.4])
    drawn = KeyedDraws(keys).uniform("filters/arguments", 1, 6, low=-1, high=1)[:, 0]
    arguments = (drawn * limits).float().unbind(1)
    names = ("temperature", "brightness", "contrast", "saturation", "highlight", "shadow")
    assert len(targets) == 6 and torch.equal(targets[5], image)
    for stage, name in enumerate(names):
        distorted = composite if stage == 0 else targets[stage - 1]
        expected = getattr(color, name)(targets[stage], arguments[stage])
        expected = expected * weight + image * (1 - weight)
        assert torch.allclose(distorted, expected, atol=1e-6)


def test_reference_colors_are_those_of_the_foreground(photographs_folder):
    from harmony_diffusion.data.photographs import read_photographs

    photographs = read_photographs(photographs_folder)
    colors = reference_colors(photographs)
    assert colors.shape == (8, 3, 512) and colors.dtype == torch.uint8
    pixels = np.asarray(Image.open(photographs[3].picture))[np.asarray(Image.open(photographs[3].mask))]
    assert {tuple(c) for c in colors[3].T.tolist()} <= {tuple(c) for c in pixels.tolist()}
    assert reference_colors(photographs, limit=3).shape == (3, 3, 512)
    photographs[2].picture.unlink()
    with pytest.raises(InputError, match=r"p\.2\.jpg"):
        reference_colors(photographs)
    assert len(reference_colors(photographs, skip_bad=True)) == 7
