import pytest
import torch
from tiny_pictures import disc, picture

from harmony_diffusion.data.keyed_random import KeyedDraws, sample_key
from harmony_diffusion.data.synthesis.composites import SyntheticComposites
from harmony_diffusion.data.synthesis.placement import (
    DEFAULT_PLACEMENTS,
    IN_PLACE,
    fill_background,
    place,
    placement_weights,
)
from harmony_diffusion.errors import InputError

COUNT, SIZE = 24, 64


@pytest.fixture(scope="module")
def photographs():
    image = torch.stack([torch.from_numpy(picture(n, SIZE, SIZE)).permute(2, 0, 1) for n in range(COUNT)])
    mask = torch.stack([torch.from_numpy(disc(SIZE, SIZE, (26, 22), 7)) for _ in range(COUNT)])[:, None]
    keys = torch.tensor([sample_key(5, 0, index) for index in range(COUNT)])
    return image / 255, mask / 255, keys


def lay_out(photographs, **shares):
    image, mask, keys = photographs
    return place(image, mask, KeyedDraws(keys), placement_weights(shares))


def test_in_place_both_layers_are_the_photograph(photographs):
    image, mask, _ = photographs
    layers = lay_out(photographs, **IN_PLACE)
    assert torch.equal(layers.foreground, image) and torch.equal(layers.background, image)
    assert torch.equal(layers.mask, mask) and not layers.apart.any()


def test_before_its_own_background_the_object_stays_and_the_background_does_not(photographs):
    image, mask, _ = photographs
    layers = lay_out(photographs, own_background=1)
    assert torch.equal(layers.mask, mask) and torch.equal(layers.foreground, image)
    assert layers.apart.all()
    assert ((layers.background != image).flatten(1).float().mean(1) > 0.5).all()


def test_a_moved_object_keeps_its_pixels_and_stays_inside_the_frame(photographs):
    image, mask, _ = photographs
    layers = lay_out(photographs, moved=1)
    for row in range(COUNT):
        before, after = (
            image[row][:, mask[row, 0] > 0.5],
            layers.foreground[row][:, layers.mask[row, 0] > 0.5],
        )
        assert before.shape == after.shape
        assert torch.equal(before.sort(1).values, after.sort(1).values)
    moved = (layers.mask != mask).flatten(1).any(1)
    assert moved.float().mean() > 0.9


def test_an_object_cut_off_by_the_frame_stays_at_its_edge(photographs):
    image, _, keys = photographs
    mask = torch.zeros(COUNT, 1, SIZE, SIZE)
    mask[:, :, 40:, 10:20] = 1  # touches the lower edge
    layers = place(image, mask, KeyedDraws(keys), placement_weights({"moved": 1}))
    assert (layers.mask.sum((1, 2, 3)) == mask.sum((1, 2, 3))).all()
    assert (layers.mask[:, :, -1].sum((1, 2)) == 10).all()


def test_the_old_place_shows_nothing_of_the_object():
    image, mask = torch.full((1, 3, 32, 32), 0.25), torch.zeros(1, 1, 32, 32)
    image[:, :, 10:20, 12:22], mask[:, :, 10:20, 12:22] = 1.0, 1.0
    filled = fill_background(image, mask)
    assert torch.allclose(filled, torch.full_like(filled, 0.25), atol=1e-5)
    photograph = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outside = (mask == 0).expand(-1, 3, -1, -1)
    assert torch.equal(fill_background(photograph, mask)[outside], photograph[outside])


def test_a_placement_is_the_same_in_any_batch(photographs):
    image, mask, keys = photographs
    weights = placement_weights(DEFAULT_PLACEMENTS)
    whole = place(image, mask, KeyedDraws(keys), weights)
    rows = torch.tensor([13, 2, 7])
    part = place(image[rows], mask[rows], KeyedDraws(keys[rows]), weights)
    for one, all_ in zip(part, whole, strict=True):
        assert torch.equal(one, all_[rows])
    assert 0.4 < whole.apart.float().mean() < 0.9


def test_composite_and_real_differ_in_the_object_alone(photographs):
    image, mask, keys = ((x * 255).to(torch.uint8) if x.is_floating_point() else x for x in photographs)
    make = SyntheticComposites(None, {"retouch": 1}, jittered=0.0, placements={"moved": 1})
    batch = make(image, mask, keys)
    behind = (batch.opacity == 0).expand(-1, 3, -1, -1)
    assert torch.equal(batch.composite[behind], batch.real[behind])
    opaque = (batch.opacity > 0.95).expand(-1, 3, -1, -1)
    assert (batch.composite[opaque] != batch.real[opaque]).float().mean() > 0.8


@pytest.mark.parametrize("shares", [{"elsewhere": 1.0}, {"moved": -1.0}, {}])
def test_unknown_and_impossible_shares_are_refused(shares):
    with pytest.raises(InputError):
        placement_weights(shares)
