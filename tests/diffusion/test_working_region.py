from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from harmony_diffusion.diffusion.shadows import shadow_mask, split_layers
from harmony_diffusion.diffusion.working_region import WorkingRegion, choose_region
from harmony_diffusion.errors import InputError, MaskError, SizeMismatchError
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models.layers import blend


def make_photo(height, width, seed=0):
    """Smooth colours with some texture, `(1, 3, height, width)`."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for cells, amount in ((4, 0.6), (16, 0.3), (48, 0.1)):
        noise = torch.rand(1, 3, cells, cells, generator=generator)
        image += amount * F.interpolate(noise, (height, width), mode="bilinear")
    return image


def make_mask(height, width, box, soft=False):
    mask = torch.zeros(1, 1, height, width)
    mask[..., box[0] : box[1], box[2] : box[3]] = 1
    return F.avg_pool2d(mask, 5, 1, 2, count_include_pad=False) if soft else mask


def distance(mask):
    """Steps of a chess king to the nearest pixel that is not 0, up to 40."""
    reached = (mask > 0).float()
    steps = torch.where(reached > 0, 0.0, 41.0)
    for step in range(1, 41):
        reached = F.max_pool2d(reached, 3, 1, 1)
        steps = torch.where((reached > 0) & (steps > step), torch.tensor(float(step)), steps)
    return steps


FRAMES = {
    "odd": (701, 533, (300, 371, 200, 255)),
    "one pixel": (701, 533, (350, 351, 200, 201)),
    "full": (300, 401, (0, 300, 0, 401)),
    "corner": (701, 533, (0, 60, 500, 533)),
    "bottom": (701, 533, (650, 701, 0, 533)),
    "tiny": (17, 33, (5, 9, 30, 33)),
    "panorama": (100, 2000, (10, 90, 100, 1900)),
    "tower": (1500, 90, (0, 1500, 20, 60)),
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("working_size", [512, 768])
def test_region_holds_the_foreground_inside_the_picture_in_nearly_its_shape(frame, working_size):
    height, width, box = FRAMES[frame]
    region = choose_region(make_mask(height, width, box), working_size=working_size)
    assert 0 <= region.top <= box[0] and box[1] <= region.top + region.height <= height
    assert 0 <= region.left <= box[2] and box[3] <= region.left + region.width <= width
    assert region.working_height % 64 == 0 and region.working_width % 64 == 0
    area = region.working_height * region.working_width
    assert 0.75 * working_size**2 < area < 1.3 * working_size**2
    stretch = (region.height / region.width) / (region.working_height / region.working_width)
    # A picture full of foreground leaves nothing to cut off for the shape.
    assert 0.93 < stretch < 1.07


def test_region_is_square_with_context_where_there_is_room():
    region = choose_region(make_mask(1000, 1000, (400, 500, 450, 530)), context=0.5)
    assert region == WorkingRegion(350, 390, 200, 200, 512, 512)
    wide = choose_region(make_mask(1000, 1000, (400, 500, 450, 530)), context=1.0)
    assert (wide.height, wide.width) == (300, 300)


def test_region_at_the_border_is_moved_and_not_made_smaller():
    region = choose_region(make_mask(1000, 1000, (0, 100, 920, 1000)))
    assert (region.top, region.left, region.height, region.width) == (0, 800, 200, 200)


def test_a_speck_is_not_enlarged_without_end():
    region = choose_region(make_mask(1000, 1000, (400, 402, 450, 452)))
    assert (region.height, region.width) == (128, 128)


def test_soft_values_count_as_foreground():
    mask = make_mask(400, 400, (100, 200, 100, 200))
    mask[..., 250:300, 120:130] = 0.01
    region = choose_region(mask)
    assert region.top <= 100 and region.top + region.height >= 300


def test_other_multiples_are_kept():
    region = choose_region(make_mask(97, 131, (20, 90, 3, 120)), working_size=72, multiple=8)
    assert region.working_height % 8 == 0 and region.working_width % 8 == 0
    assert 0.9 < (region.height / region.width) / (region.working_height / region.working_width) < 1.1


def test_bad_regions_are_told():
    mask = make_mask(64, 64, (10, 20, 10, 20))
    with pytest.raises(MaskError, match="empty"):
        choose_region(torch.zeros(1, 1, 64, 64))
    with pytest.raises(InputError, match="context"):
        choose_region(mask, context=-0.1)
    with pytest.raises(InputError, match="multiple of 64"):
        choose_region(mask, working_size=500)


def test_cut_at_the_size_of_the_box_copies_it():
    image = make_photo(200, 150)
    region = WorkingRegion(20, 30, 64, 64, 64, 64)
    for mode in ("area", "bilinear", "nearest"):
        part = region.cut(image, mode=mode)
        assert torch.equal(part, image[..., 20:84, 30:94])
        part.zero_()
    assert image.max() > 0.5


def test_cut_averages_the_area_under_each_pixel():
    image = torch.rand(1, 5, 190, 130)
    part = WorkingRegion(10, 20, 150, 100, 30, 40).cut(image)
    # 150 -> 30 rows: five whole ones each; 100 -> 40 columns: two and a half each.
    expected = image[..., 10:160, 20:120].unflatten(2, (30, 5)).mean(3)
    expected = expected.repeat_interleave(2, 3).unflatten(3, (40, 5)).mean(4)
    assert torch.allclose(part, expected, atol=1e-5)


def test_fine_stripes_do_not_alias_when_they_are_cut():
    stripes = (torch.arange(512) % 2).float().expand(1, 3, 300, 512)
    region = WorkingRegion(0, 0, 300, 500, 64, 128)
    for mode in ("area", "bilinear"):
        assert (region.cut(stripes, mode=mode) - 0.5).abs().max() < 0.15
    assert region.cut(stripes, mode="nearest").unique().tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cut_as_it_came(dtype):
    image = make_photo(300, 200)
    for size in ((64, 64), (512, 384)):
        region = WorkingRegion(10, 20, 200, 150, *size)
        for mode in ("area", "bilinear", "nearest"):
            part = region.cut(image.to(dtype), mode=mode)
            assert part.dtype == dtype and (part.float() - region.cut(image, mode=mode)).abs().max() < 0.01


def test_enlarging_is_smooth():
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    part = WorkingRegion(0, 0, 32, 32, 128, 128).cut(ramp)
    assert part.shape == (1, 1, 128, 128) and len(part[0, 0, 0].unique()) > 100


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("soft", [False, True])
def test_pasting_what_was_cut_gives_nearly_the_composite(frame, soft):
    height, width, box = FRAMES[frame]
    composite, mask = make_photo(height, width), make_mask(height, width, box, soft)
    region = choose_region(mask, working_size=256)
    for detail in ("generated", "preserve"):
        result = region.paste(region.cut(composite), composite, mask, detail=detail)
        assert result.shape == composite.shape
        assert (result - composite).abs().max() < (0.06 if detail == "generated" else 1e-3)
        assert (result - composite).square().mean().sqrt() < 0.005


@pytest.mark.parametrize("feather", [0.0, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("soft", [False, True])
def test_the_picture_is_untouched_beyond_the_feather_and_replaced_within_the_mask(feather, soft):
    composite, mask = make_photo(211, 173), make_mask(211, 173, (60, 120, 50, 110), soft)
    region = WorkingRegion(10, 5, 180, 160, 90, 80)
    generated = 1 - region.cut(composite)
    result = region.paste(generated, composite, mask, feather=feather)
    away = distance(mask)
    # Two pixels of the picture for each working pixel.
    assert torch.equal(
        result[away.expand_as(result) > 2 * feather], composite[away.expand_as(result) > 2 * feather]
    )
    enlarged = F.interpolate(generated, (180, 160), mode="bicubic", antialias=True).clamp(0, 1)
    solid = (mask == 1).expand_as(result)
    window = (..., *region.window)
    assert torch.equal(result[window][solid[window]], enlarged[solid[window]])


def test_feather_fades_evenly_and_never_below_the_mask():
    composite, mask = torch.zeros(1, 3, 100, 100), make_mask(100, 100, (30, 70, 30, 70), soft=True)
    region = WorkingRegion(0, 0, 100, 100, 100, 100)
    alpha = region.paste(torch.ones(1, 3, 100, 100), composite, mask, feather=8)[0, 0]
    assert (alpha >= mask[0, 0] - 1e-6).all()
    outward = alpha[50, 68:]
    assert (outward[1:] <= outward[:-1] + 1e-6).all() and (outward[:-1] - outward[1:]).max() < 0.25


def test_feather_does_not_reach_out_of_the_region_but_to_the_frame():
    composite, mask = torch.zeros(1, 3, 80, 80), make_mask(80, 80, (0, 40, 20, 60))
    region = WorkingRegion(0, 10, 60, 60, 60, 60)
    result = region.paste(torch.ones(1, 3, 60, 60), composite, mask)
    assert (result[..., 0, 20:60] == 1).all()
    assert not result[..., 60:, :].any() and not result[..., :10].any() and not result[..., 70:].any()


def test_preserve_takes_the_colour_and_keeps_the_detail():
    composite, mask = make_photo(512, 512), make_mask(512, 512, (100, 400, 120, 380))
    fine = 0.1 * (torch.arange(512) % 2 - 0.5)
    composite = (0.8 * composite + 0.1 + fine).clamp(0, 1)
    region = choose_region(mask, working_size=128)
    gain = torch.tensor([0.9, 0.7, 0.5]).view(1, 3, 1, 1)
    seen = region.cut(composite)
    generated = blend(gain * seen, seen, region.cut(mask))
    expected = blend(gain * composite, composite, mask)
    inside = mask.expand_as(composite) > 0

    def error(image):
        return float((image - expected)[inside].square().mean().sqrt())

    preserved = region.paste(generated, composite, mask, detail="preserve")
    assert error(preserved) < 0.01 < 0.03 < error(region.paste(generated, composite, mask))
    assert torch.equal(preserved[~inside], composite[~inside])


def test_preserve_measures_the_change_from_the_reference():
    composite, mask = make_photo(256, 256), make_mask(256, 256, (60, 200, 60, 200))
    picture = Picture(composite[0].permute(1, 2, 0).numpy())
    plane, region = mask[0, 0].numpy(), WorkingRegion(0, 0, 256, 256, 128, 128)
    # An autoencoder that shifts colours: the network changes nothing, and then halves the light.
    reference = (0.9 * region.cut(composite) + torch.tensor([0.05, 0.0, -0.02]).view(1, 3, 1, 1)).clamp(0, 1)

    def pasted(generated, **options):
        return region.paste_picture(picture, plane, generated, detail="preserve", **options).to_tensor()

    assert (pasted(reference) - composite[0]).abs().max() > 0.02
    assert (pasted(reference, reference=reference) - composite[0]).abs().max() < 1e-3
    inside = mask[0].expand_as(composite[0]) > 0
    change = (pasted(0.5 * reference, reference=reference) - 0.5 * composite[0])[inside].abs().mean()
    assert (
        change
        < 0.02
        < 0.1
        < (pasted(0.5 * reference, reference=reference) - composite[0])[inside].abs().mean()
    )


def test_a_drift_of_colour_is_taken_back_where_it_can_be_seen():
    composite, mask = make_photo(256, 256), make_mask(256, 256, (80, 180, 90, 170))
    region = WorkingRegion(0, 0, 256, 256, 256, 256)
    wanted = blend(0.7 * composite, composite, mask)
    ramp = torch.linspace(-0.06, 0.06, 256).expand(256, 256) * torch.tensor([1.0, -0.5, 0.3]).view(1, 3, 1, 1)
    generated = (wanted + ramp).clamp(0, 1)

    def error(**options):
        return float((region.paste(generated, composite, mask, **options) - wanted).abs().mean())

    for detail in ("generated", "preserve"):
        assert error(detail=detail, match_surroundings=True) < 0.25 * error(detail=detail)
    unchanged = region.paste(wanted, composite, mask, match_surroundings=True)
    assert torch.allclose(unchanged, region.paste(wanted, composite, mask), atol=1e-6)
    whole = torch.ones_like(mask)
    assert torch.equal(region.paste(generated, composite, whole, match_surroundings=True), generated)


def test_preserve_survives_an_outline_that_moved():
    """Generated outlines never match to the pixel; the background there must not colour the foreground."""
    composite, mask = make_photo(256, 256), make_mask(256, 256, (60, 200, 60, 200))
    composite = torch.where(mask > 0, 0.2 * composite + 0.6, 0.1 * composite)
    region = WorkingRegion(0, 0, 256, 256, 256, 256)
    generated = torch.roll(blend(0.8 * composite, composite, mask), (3, 3), (2, 3))
    preserved = region.paste(generated, composite, mask, detail="preserve")
    error = (preserved - 0.8 * composite)[mask.expand_as(composite) > 0].abs()
    assert error.mean() < 0.015 and error.quantile(0.99) < 0.1


def test_full_and_one_pixel_masks_are_pasted_finitely():
    composite = make_photo(65, 97)
    for box in ((0, 65, 0, 97), (30, 31, 40, 41)):
        mask = make_mask(65, 97, box)
        region = choose_region(mask, working_size=64)
        for detail in ("generated", "preserve"):
            result = region.paste(
                torch.rand(1, 3, *region.cut(mask).shape[-2:]), composite, mask, detail=detail
            )
            assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1


def test_inputs_are_left_as_they_were():
    composite, mask = make_photo(90, 80), make_mask(90, 80, (20, 50, 20, 50))
    region = choose_region(mask, working_size=64)
    generated = torch.rand(1, 3, region.working_height, region.working_width)
    before = [tensor.clone() for tensor in (composite, mask, generated)]
    for detail in ("generated", "preserve"):
        region.paste(generated, composite, mask, detail=detail)
    assert all(torch.equal(a, b) for a, b in zip(before, (composite, mask, generated), strict=True))


def test_half_precision_is_pasted_in_the_dtype_of_the_picture():
    composite, mask = make_photo(90, 80), make_mask(90, 80, (20, 50, 20, 50))
    region = choose_region(mask, working_size=64)
    generated = torch.rand(1, 3, region.working_height, region.working_width)
    for detail in ("generated", "preserve"):
        result = region.paste(generated.bfloat16(), composite, mask, detail=detail)
        assert result.dtype == torch.float32
        assert (result - region.paste(generated, composite, mask, detail=detail)).abs().max() < 0.02


def test_bad_pastes_are_told():
    composite, mask = make_photo(90, 80), make_mask(90, 80, (20, 50, 20, 50))
    region = WorkingRegion(10, 10, 64, 64, 64, 64)
    generated = torch.rand(1, 3, 64, 64)
    with pytest.raises(SizeMismatchError, match="generated"):
        region.paste(generated[..., :63], composite, mask)
    with pytest.raises(SizeMismatchError, match="mask"):
        region.paste(generated, composite, mask[..., :79])
    with pytest.raises(SizeMismatchError, match="region"):
        replace(region, top=40).cut(composite)
    with pytest.raises(InputError, match="beyond"):
        region.paste(generated, composite, make_mask(90, 80, (5, 50, 20, 50)))
    with pytest.raises(InputError, match="feather"):
        region.paste(generated, composite, mask, feather=-1)


def test_shadow_has_room_below_and_beside_the_foot_and_none_at_the_head():
    mask = make_mask(300, 300, (60, 210, 120, 180))
    wide = shadow_mask(mask, below=0.2, beside=0.5)
    assert (wide >= mask).all() and wide.max() <= 1
    assert wide[0, 0, 235, 150] == 1 and not wide[..., 245:, :].any()
    assert wide[0, 0, 200, 200] == 1 and wide[0, 0, 200, 100] == 1
    assert not wide[..., :80].any() and not wide[..., 220:].any()
    # The upper half of the object and what is beside it.
    assert torch.equal(wide[..., :125, :], mask[..., :125, :])


def test_each_object_has_a_shadow_of_its_own_size_and_specks_have_none():
    mask = make_mask(400, 400, (20, 120, 40, 100)) + make_mask(400, 400, (300, 360, 250, 290))
    mask[..., 200, 200] = 1
    wide = shadow_mask(mask)
    assert wide[0, 0, 125, 70] == 1 and wide[0, 0, 364, 270] == 1
    assert torch.equal(wide[..., 150:280, :], mask[..., 150:280, :])


@pytest.mark.parametrize("offset", [(0, 30), (150, 0), (150, 260), (217, 250)])
def test_shadows_at_the_border_are_those_of_a_larger_picture(offset):
    top, left = offset
    small = make_mask(250, 290, (top, min(top + 33, 250), left, min(left + 40, 290)))
    large = F.pad(small, (100, 100, 100, 100))
    assert torch.equal(shadow_mask(small), shadow_mask(large)[..., 100:-100, 100:-100])


def test_no_room_asked_for_is_the_mask():
    mask = make_mask(97, 61, (30, 60, 20, 40))
    assert torch.equal(shadow_mask(mask, below=0, beside=0), mask)


def test_shadow_masks_of_a_batch_are_those_of_a_loop():
    masks = [
        make_mask(97, 61, box) for box in ((30, 60, 20, 40), (0, 97, 0, 61), (96, 97, 60, 61), (5, 5, 5, 5))
    ]
    assert torch.equal(shadow_mask(torch.cat(masks)), torch.cat([shadow_mask(mask) for mask in masks]))
    assert not shadow_mask(masks[3]).any() and shadow_mask(masks[1]).all()


def test_bad_shadows_are_told():
    with pytest.raises(InputError, match="below"):
        shadow_mask(torch.zeros(1, 1, 32, 32), below=-1)
    with pytest.raises(InputError, match="beside"):
        shadow_mask(torch.zeros(1, 1, 32, 32), beside=float("nan"))


def flatten(layers, background):
    color, alpha = layers.foreground[:, :3], layers.foreground[:, 3:]
    return alpha * color + (1 - alpha) * layers.shadow * background


@pytest.mark.parametrize("soft", [False, True])
def test_layers_over_the_background_give_the_result(soft):
    composite, mask = make_photo(131, 97), make_mask(131, 97, (30, 90, 30, 60), soft)
    room = shadow_mask(mask)
    darkening = 1 - 0.6 * room * make_photo(131, 97, seed=1)[:, :1]
    result = blend(make_photo(131, 97, seed=2), composite * darkening, mask)
    layers = split_layers(result, composite, mask, room)
    assert (flatten(layers, composite) - result).abs().max() < 1e-3
    bare = mask == 0
    assert torch.allclose(layers.shadow[bare], darkening[bare], atol=0.01)
    assert torch.equal(layers.foreground[:, 3:][bare], torch.zeros_like(mask)[bare])
    assert (layers.foreground[:, 3:] >= mask).all() and torch.equal(layers.composite, result)
    for layer in (layers.foreground, layers.shadow):
        assert layer.min() >= 0 and layer.max() <= 1


def test_nothing_changed_has_no_shadow_and_the_mask_as_alpha():
    composite, mask = make_photo(131, 97), make_mask(131, 97, (30, 90, 30, 60), soft=True)
    layers = split_layers(composite, composite, mask, shadow_mask(mask))
    assert (layers.shadow == 1).all()
    assert torch.equal(layers.foreground[:, 3:], mask)
    assert (flatten(layers, composite) - composite).abs().max() < 1e-6


def test_shadow_continues_below_the_foreground_and_ends_with_its_mask():
    composite, mask = torch.full((1, 3, 64, 64), 0.8), make_mask(64, 64, (20, 40, 20, 40))
    room = make_mask(64, 64, (10, 50, 10, 50))
    layers = split_layers(composite * 0.5, composite, mask, room)
    assert torch.allclose(layers.shadow[..., 10:50, 10:50], torch.tensor(0.5), atol=0.01)
    assert (layers.shadow[room == 0] == 1).all()


def test_what_a_multiplier_cannot_do_it_does_not_try():
    composite, mask = torch.full((1, 3, 64, 64), 0.4), make_mask(64, 64, (20, 40, 20, 40))
    layers = split_layers(composite + 0.3, composite, mask, torch.ones_like(mask))
    assert (layers.shadow == 1).all()
    assert torch.equal(flatten(layers, composite)[..., :20, :], composite[..., :20, :])


def test_full_masks_are_all_foreground():
    composite, mask = make_photo(33, 47), torch.ones(1, 1, 33, 47)
    layers = split_layers(1 - composite, composite, mask, mask)
    assert torch.allclose(flatten(layers, composite), 1 - composite, atol=1e-6)
    assert (layers.shadow == 1).all()


def test_layers_of_different_sizes_are_told():
    composite, mask = make_photo(33, 47), torch.ones(1, 1, 33, 47)
    with pytest.raises(SizeMismatchError, match="generation_mask"):
        split_layers(composite, composite, mask, mask[..., :46])


def plain_paste(region, generated, composite, mask, feather):
    """The generated pixels, faded into the whole picture at once."""
    rows, columns = region.window
    size = (region.height, region.width)
    enlarged = F.interpolate(generated, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    reach = round(feather * (region.height * region.width) ** 0.5 / region.working_height / 2)
    plane = mask[0, 0, rows, columns].numpy()
    side = (2 * reach + 1, 2 * reach + 1)
    wide = cv2.dilate(plane, np.ones(side, np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    faded = cv2.GaussianBlur(wide, side, reach / 2, borderType=cv2.BORDER_REPLICATE)
    weight = torch.from_numpy(np.maximum(plane, faded)).clamp(max=1)[None, None]
    result = composite.clone()
    result[..., rows, columns] = blend(enlarged, composite[..., rows, columns], weight)
    return result


@pytest.mark.parametrize("soft", [False, True])
def test_pasting_in_bands_equals_pasting_at_once(soft):
    composite, mask = make_photo(1300, 1100), make_mask(1300, 1100, (200, 900, 150, 1000), soft)
    region = WorkingRegion(50, 40, 1200, 1040, 128, 128)
    generated = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    result = region.paste(generated, composite, mask, feather=8)
    expected = plain_paste(region, generated, composite, mask, 8)
    assert (result - expected).abs().max() < 2e-6


@pytest.mark.parametrize("detail", ["generated", "preserve"])
def test_a_picture_is_pasted_as_its_tensor_is(detail):
    composite, mask = make_photo(700, 900), make_mask(700, 900, (100, 600, 200, 700), soft=True)
    pixels = (composite[0].permute(1, 2, 0).numpy() * 65535).round().astype(np.uint16)
    alpha = np.full((700, 900), 65535, np.uint16)
    alpha[300:350] = 0
    picture = Picture(pixels, alpha)
    region = choose_region(mask, working_size=128)
    seen = region.cut_picture(picture)
    assert torch.allclose(seen, region.cut(picture.to_tensor()[None]), atol=1e-6)
    result = region.paste_picture(picture, mask[0, 0].numpy(), 1 - seen, detail=detail)
    expected = region.paste(1 - seen, picture.to_tensor()[None], mask, detail=detail)
    shown = alpha > 0
    assert np.array_equal(result.pixels[~shown], pixels[~shown])
    difference = result.to_tensor() - expected[0]
    assert difference[:, torch.from_numpy(shown)].abs().max() < 2e-5  # one step of 16 bits is 1.5e-5
    assert not np.array_equal(result.pixels, pixels)
