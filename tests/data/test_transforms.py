import numpy as np
import pytest

from harmony_diffusion.data.keyed_random import generator_of
from harmony_diffusion.data.transforms import Geometry, check_same_size, draw_geometry
from harmony_diffusion.errors import SizeMismatchError


def ramps(height=60, width=80):
    y, x = np.mgrid[:height, :width]
    return np.stack((x * 3, y * 4, x + y), 2).astype(np.uint8)


def test_picture_and_mask_stay_in_step():
    picture = ramps()
    mask = (picture[..., 0] > 120).astype(np.uint8) * 255
    for key in range(40):
        geometry = draw_geometry(mask, 64, generator_of(key, "g"), turn=True)
        moved, moved_mask = geometry.picture(picture), geometry.mask(mask)
        assert moved.shape == (64, 64, 3) and moved_mask.shape == (64, 64)
        # Where the ramp says so, but for the pixels at the edge itself.
        clear = np.abs(moved[..., 0].astype(int) - 121) > 6
        assert clear.mean() > 0.5
        assert np.array_equal((moved[..., 0] > 120)[clear], (moved_mask > 0)[clear])


def test_mirror_and_turn_without_scaling_are_exact():
    picture = ramps(48, 48)
    whole = (0.0, 0.0, 48.0, 48.0)
    assert np.array_equal(Geometry(whole, (48, 48)).picture(picture), picture)
    assert np.array_equal(Geometry(whole, (48, 48), mirror=True).picture(picture), picture[:, ::-1])
    turned = Geometry(whole, (48, 48), mirror=True, turns=1).picture(picture)
    assert np.array_equal(turned, np.rot90(picture[:, ::-1]))
    crop = Geometry((8.0, 4.0, 40.0, 36.0), (32, 32)).picture(picture)
    assert np.array_equal(crop, picture[4:36, 8:40])


def test_odd_turns_of_oblong_results_keep_the_size():
    geometry = Geometry((0.0, 0.0, 80.0, 60.0), (32, 48), turns=3)
    assert geometry.picture(ramps()).shape == (32, 48, 3)


def test_crops_never_lose_the_object():
    mask = np.zeros((200, 300), np.uint8)
    mask[4:30, 265:296] = 255  # small, in a corner
    ratios = []
    for key in range(200):
        geometry = draw_geometry(mask, 64, generator_of(key, "g"), whole=0.0)
        left, top, right, bottom = geometry.box
        kept = mask[round(top) : round(bottom), round(left) : round(right)].sum() / mask.sum()
        assert kept > 0.4
        ratios.append((geometry.mask(mask) > 0).mean())
    assert min(ratios) < 0.02 < max(ratios)
    assert len({draw_geometry(mask, 64, generator_of(key, "g")).box for key in range(50)}) > 5


def test_a_mask_everywhere_gives_a_crop_all_the_same():
    geometry = draw_geometry(np.full((40, 50), 255, np.uint8), 32, generator_of(0, "g"), whole=0.0)
    assert geometry.box == (0, 0, 50, 40)


def test_hard_masks_stay_hard_and_soft_ones_soft():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 255
    geometry = Geometry((3.3, 2.2, 70.1, 55.5), (64, 64))
    assert set(np.unique(geometry.mask(mask))) == {0, 255}
    mask[10, 20:60] = 100
    assert len(np.unique(geometry.mask(mask))) > 2


def test_sizes_that_differ_are_named():
    with pytest.raises(SizeMismatchError, match=r"m\.png: is 80x50, its picture is 80x60"):
        check_same_size("m.png", ramps(), ramps(50, 80))
