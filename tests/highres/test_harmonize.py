import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from picture_files import DISPLAY_P3, SRGB_CURVE, matrix_profile, swapped_table_profile
from small_models import Dense, Gain, GainMap, as_tensor, make_mask, make_picture

from harmony_diffusion.errors import InputError, MaskError, SizeMismatchError
from harmony_diffusion.highres.harmonize import harmonize_picture, upsample_window, window_around
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import Picture, load_picture
from harmony_diffusion.models import create_model
from harmony_diffusion.models.classical import Identity, Reinhard
from harmony_diffusion.models.classical_poisson import Poisson
from harmony_diffusion.models.color_grid import ColorGrid
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.harmonizer import Harmonizer
from harmony_diffusion.models.layers import blend

ROOT = Path(__file__).resolve().parents[2]


MODELS = {
    "identity": Identity,
    "gain": Gain,
    "gain_map": GainMap,
    "dense": Dense,
    "harmonizer": Harmonizer,
    "reinhard": Reinhard,
    "poisson": Poisson,
}
every_model = pytest.mark.parametrize("name", MODELS)
P3 = matrix_profile(DISPLAY_P3, SRGB_CURVE)
every_kind = pytest.mark.parametrize(
    "dtype, profile",
    [
        (np.uint8, None),
        (np.uint16, None),
        (np.float32, None),
        (np.uint8, P3),
        (np.uint16, P3),
        (np.uint8, swapped_table_profile()),
    ],
    ids=["uint8", "uint16", "float32", "uint8-p3", "uint16-p3", "uint8-table"],
)


def build(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


@every_model
@every_kind
def test_background_is_equal_to_the_bit_and_foreground_is_not(name, dtype, profile):
    picture, mask = make_picture(dtype, profile=profile), make_mask()
    before = picture.pixels.copy(), mask.copy()
    result, _ = harmonize_picture(build(name), picture, mask)
    assert result.pixels.dtype == dtype and result.size == picture.size and result.profile == profile
    assert np.array_equal(result.pixels[mask == 0], before[0][mask == 0])
    assert np.array_equal(result.pixels, before[0]) == (name == "identity")
    assert np.array_equal(picture.pixels, before[0]) and np.array_equal(mask, before[1])


@every_model
@every_kind
def test_strength_zero_is_the_identity_to_the_bit(name, dtype, profile):
    picture = make_picture(dtype, profile=profile)
    result, _ = harmonize_picture(build(name), picture, make_mask(), strength=0)
    assert np.array_equal(result.pixels, picture.pixels)


@every_model
def test_strength_blends_linearly(name):
    picture, mask, model = make_picture(np.float32), make_mask(), build(name)
    full, _ = harmonize_picture(model, picture, mask)
    quarter, _ = harmonize_picture(model, picture, mask, strength=0.25)
    expected = picture.pixels + 0.25 * (full.pixels - picture.pixels)
    np.testing.assert_allclose(quarter.pixels, expected, rtol=0, atol=1e-6)


@every_model
def test_same_input_gives_the_same_bits(name):
    first, _ = harmonize_picture(build(name), make_picture(), make_mask())
    second, _ = harmonize_picture(build(name), make_picture(), make_mask())
    assert np.array_equal(first.pixels, second.pixels)


@every_model
def test_empty_mask_gives_the_picture(name):
    picture = make_picture()
    result, filters = harmonize_picture(build(name), picture, np.zeros(picture.size, np.float32))
    assert np.array_equal(result.pixels, picture.pixels)
    assert (filters is None) == (not build(name).predicts_filters)


@every_model
@pytest.mark.parametrize("size", [(16, 16), (20, 500), (300, 17)])
def test_odd_sizes_and_a_full_mask(name, size):
    picture = make_picture(size=size)
    mask = np.ones(size, np.float32)
    if name == "dense":
        mask[0] = 0
    result, _ = harmonize_picture(build(name), picture, mask)
    assert result.size == size


@pytest.mark.parametrize("name", ["identity", "gain", "dense"])
def test_model_in_bfloat16_works_on_full_precision_pixels(name):
    picture, mask = make_picture(np.uint16), make_mask()
    half, filters = harmonize_picture(build(name).to(torch.bfloat16), picture, mask)
    full, _ = harmonize_picture(build(name), picture, mask)
    assert filters is None or filters.dtype == torch.float32
    assert np.array_equal(half.pixels[mask == 0], picture.pixels[mask == 0])
    assert abs(half.pixels.astype(int) - full.pixels.astype(int)).max() < 0.02 * 65535
    if name == "identity":
        assert np.array_equal(half.pixels, picture.pixels)


@pytest.mark.parametrize("name", ["gain", "harmonizer", "reinhard"])
def test_packed_foreground_equals_the_whole_frame(name):
    # Two bands of pixels and more.
    picture, mask = make_picture(np.float32, (600, 1500)), make_mask((600, 1500))
    model = build(name)
    result, filters = harmonize_picture(model, picture, mask)
    with torch.no_grad():
        frame = model.apply_filters(as_tensor(picture.pixels), filters, torch.from_numpy(mask)[None, None])
    torch.testing.assert_close(as_tensor(result.pixels), frame, rtol=0, atol=2e-5)


@pytest.mark.parametrize("upsampling", ["bilinear", "bicubic"])
def test_windows_of_maps_equal_the_whole_frame(upsampling):
    picture, mask = make_picture(np.float32, (600, 1000)), make_mask((600, 1000))
    model = GainMap(upsampling).eval()
    result, maps = harmonize_picture(model, picture, mask)
    with torch.no_grad():
        frame = model.apply_filters(as_tensor(picture.pixels), maps, torch.from_numpy(mask)[None, None])
    torch.testing.assert_close(as_tensor(result.pixels), frame, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("small, large", [((7, 5), (40, 61)), ((64, 64), (1000, 333)), ((9, 30), (5, 31))])
def test_window_of_enlarged_maps_is_that_of_interpolate(mode, small, large):
    maps = torch.rand(2, 3, *small, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(maps, large, mode=mode, align_corners=False)
    for top, bottom, left, right in ((0, 1, 0, 1), (1, 4, 3, 30), (0, large[0], 0, large[1])):
        window = slice(top, bottom), slice(left, right)
        part = upsample_window(maps, large, window, mode)
        torch.testing.assert_close(part, whole[..., window[0], window[1]], rtol=0, atol=1e-5)


def test_small_picture_gets_the_pixels_of_the_dense_network():
    picture, mask = make_picture(np.float32, (50, 60)), make_mask((50, 60))
    model = build("dense")
    result, _ = harmonize_picture(model, picture, mask)
    with torch.no_grad():
        expected = model(as_tensor(picture.pixels), torch.from_numpy(mask)[None, None])
    torch.testing.assert_close(as_tensor(result.pixels), expected, rtol=0, atol=1e-6)


def test_background_is_kept_even_if_the_model_changes_it():
    class Careless(Dense):
        def forward(self, composite, mask):
            return 1 - composite

    picture, mask = make_picture(np.uint8, (50, 60)), make_mask((50, 60))
    result, _ = harmonize_picture(Careless(), picture, mask)
    assert np.array_equal(result.pixels[mask == 0], picture.pixels[mask == 0])
    assert not np.array_equal(result.pixels, picture.pixels)


def test_large_picture_gets_the_change_of_the_dense_network():
    picture, mask = make_picture(np.float32, (500, 700)), make_mask((500, 700))
    model = build("dense")
    result, _ = harmonize_picture(model, picture, mask)
    with torch.no_grad():
        expected = model(as_tensor(picture.pixels), torch.from_numpy(mask)[None, None])
    torch.testing.assert_close(as_tensor(result.pixels), expected, rtol=0, atol=1 / 255)


def two_colour_picture(size):
    """Grey foreground; left of it the background is red, right of it green."""
    pixels = np.zeros((*size, 3), np.float32)
    pixels[:, : size[1] // 2, 0] = 0.8
    pixels[:, size[1] // 2 :, 1] = 0.8
    mask = make_mask(size)
    mask[0, 0] = mask[-1, 3] = 0
    pixels[mask == 1] = 0.5
    return Picture(pixels), mask


@pytest.mark.parametrize("name", ["gain", "dense", "reinhard", "poisson"])
@pytest.mark.parametrize("size", [(60, 60), (300, 400)])
@pytest.mark.parametrize("how", ["reference", "alpha"])
def test_only_the_allowed_background_is_looked_at(name, size, how):
    green = np.zeros(size, np.float32)
    green[:, size[1] // 2 :] = 1
    picture, mask = two_colour_picture(size)
    if how == "alpha":
        picture = replace(picture, alpha=np.maximum(green, (mask == 1).astype(np.float32)))
    reference = green if how == "reference" else None
    result, _ = harmonize_picture(build(name), picture, mask, reference=reference)
    # What the excluded part looks like makes no difference.
    excluded = (green == 0) & (mask == 0)
    changed = picture.pixels.copy()
    changed[excluded] = (0.1, 0.2, 0.9)
    other, _ = harmonize_picture(build(name), picture.with_pixels(changed), mask, reference=reference)
    inside = mask > 0
    np.testing.assert_allclose(result.pixels[inside], other.pixels[inside], rtol=0, atol=1e-6)
    core = mask == 1
    assert result.pixels[core][:, 1].mean() > result.pixels[core][:, 0].mean() + 0.1
    everything, _ = harmonize_picture(build(name), picture.with_pixels(picture.pixels), mask)
    if how == "reference":
        assert abs(everything.pixels[core] - result.pixels[core]).max() > 0.05


@pytest.mark.parametrize(
    ("size", "box", "window"),
    [
        ((100, 300), (40, 60, 100, 140), (12, 88, 82, 158)),  # a square of 1.9 times 40
        ((100, 300), (0, 20, 280, 300), (0, 38, 262, 300)),  # moved into the frame
        ((100, 300), (10, 90, 20, 120), (0, 100, 0, 190)),  # no higher than the frame
        ((100, 300), (50, 51, 150, 151), (33, 68, 133, 168)),  # a fifth of the frame's side at least
        ((100, 300), (0, 0, 0, 0), (0, 100, 0, 300)),
    ],
)
def test_window_lies_around_the_foreground(size, box, window):
    mask = np.zeros(size, np.float32)
    mask[box[0] : box[1], box[2] : box[3]] = 0.01
    rows, columns = window_around(mask, 0.45)
    assert (rows.start, rows.stop, columns.start, columns.stop) == window


def test_models_with_a_context_see_the_object_alone_and_in_detail():
    picture, mask = make_picture(), np.zeros(make_picture().size, np.float32)
    height, width = picture.size
    mask[height // 3 : height // 3 + 8, 4:12] = 1
    window = window_around(mask, ColorGrid.context)
    assert mask[window].size < mask.size / 2
    model = create_model("color_grid", encoder_size=64).eval()
    torch.nn.init.normal_(model.to_global.weight, std=0.1)
    result, filters = harmonize_picture(model, picture, mask)
    _, others = harmonize_picture(model, picture, mask, reference=1 - mask)
    model.context = None
    part, same_filters = harmonize_picture(model, picture.cut(window), mask[window])
    assert torch.equal(filters, same_filters)
    np.testing.assert_array_equal(result.pixels[window], part.pixels)
    outside = mask == 0
    np.testing.assert_array_equal(result.pixels[outside], picture.pixels[outside])
    assert (result.pixels != picture.pixels).any()
    # A reference says itself where to look.
    assert not torch.equal(filters, others)


def test_frame_statistics_do_not_see_hidden_pixels():
    alpha = np.full((150, 200), 255, np.uint8)
    alpha[:, :60] = 0
    picture, mask = make_picture(alpha=alpha), make_mask()
    changed = picture.pixels.copy()
    changed[:, :60] = 255
    first, first_filters = harmonize_picture(build("harmonizer"), picture, mask)
    second, second_filters = harmonize_picture(build("harmonizer"), picture.with_pixels(changed), mask)
    assert torch.equal(first_filters, second_filters)
    assert np.array_equal(first.pixels[:, 60:], second.pixels[:, 60:])
    assert np.array_equal(first.pixels[:, :60], picture.pixels[:, :60])


def test_hidden_foreground_is_unchanged():
    alpha = np.full((150, 200), 255, np.uint8)
    alpha[60:90, 80:120] = 0
    picture = make_picture(alpha=alpha)
    for name in ("gain", "dense"):
        result, _ = harmonize_picture(build(name), picture, make_mask())
        assert np.array_equal(result.pixels[alpha == 0], picture.pixels[alpha == 0])
        assert np.array_equal(result.alpha, alpha)


def test_wrong_arguments_are_refused():
    picture, mask = make_picture(), make_mask()
    with pytest.raises(SizeMismatchError, match="150 x 200"):
        harmonize_picture(build("gain"), picture, mask[1:])
    with pytest.raises(SizeMismatchError, match="reference"):
        harmonize_picture(build("gain"), picture, mask, reference=mask.T)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="strength"):
            harmonize_picture(build("gain"), picture, mask, strength=strength)
    for name in ("gain", "dense", "reinhard"):
        with pytest.raises(MaskError, match="background"):
            harmonize_picture(build(name), picture, mask, reference=np.zeros_like(mask))


class Change(HarmonyModel, ModelMixin, ConfigMixin):
    """Dense network that always makes the same change of colours."""

    working_size = 256

    @register_to_config
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("version", torch.ones(()))

    def predict(self, composite, mask):
        height, width = composite.shape[-2:]
        everywhere = slice(0, height), slice(0, width)
        return CHANGES[self.kind](composite, (height, width), everywhere)


def affine_change(image, size, window):
    matrix = torch.tensor([[0.8, 0.1, 0.0], [0.02, 0.85, 0.05], [0.05, 0.1, 0.7]])
    return torch.einsum("dc,bchw->bdhw", matrix, image) + 0.06


def smooth_gain(image, size, window):
    y = ((torch.arange(window[0].start, window[0].stop) + 0.5) / size[0])[:, None]
    x = ((torch.arange(window[1].start, window[1].stop) + 0.5) / size[1])[None]
    return image * torch.stack(
        (0.6 + 0.3 * x + 0 * y, 0.7 + 0.2 * torch.cos(3 * y) + 0 * x, 0.9 - 0.3 * x * y)
    )


CHANGES = {"affine": affine_change, "gain": smooth_gain}


def energy_of_detail(image, where):
    return (image - F.avg_pool2d(image, 9, 1, 4)).square()[where.expand_as(image)].sum(dtype=torch.float64)


@pytest.mark.parametrize("kind", CHANGES)
def test_change_of_a_real_photograph_keeps_its_detail_and_makes_no_halo(kind, shared):
    picture = load_picture(shared / "golden/images/a0002.jpg")
    mask = load_mask(shared / "golden/images/a0002_1.png", size=picture.size)
    result, _ = harmonize_picture(Change(kind), picture, mask)
    assert np.array_equal(result.pixels[mask == 0], picture.pixels[mask == 0])
    rim = (cv2.erode(mask, np.ones((31, 31))) == 0) & (mask > 0)

    squared_error, largest, detail = {"all": [], "rim": []}, 0.0, np.zeros(2)
    for top in range(0, picture.size[0], 512):
        window = slice(top, min(top + 512, picture.size[0])), slice(0, picture.size[1])
        before, after = (as_tensor(p.read_srgb(*window)) for p in (picture, result))
        share = torch.from_numpy(mask[window])[None, None]
        expected = blend(CHANGES[kind](before, picture.size, window), before, share)
        error = (after - expected).abs()
        largest = max(largest, float(error.max()))
        for name, where in (("all", mask[window] > 0), ("rim", rim[window])):
            squared_error[name].append(error[0, :, torch.from_numpy(where)].square().flatten())
        inside = torch.from_numpy(mask[window] > 0)[None, None]
        detail += [float(energy_of_detail(image, inside)) for image in (after, expected)]

    psnr = {name: float(-10 * torch.log10(torch.cat(e).mean())) for name, e in squared_error.items()}
    assert abs(detail[0] / detail[1] - 1) < 0.02
    if kind == "affine":
        assert largest < 1 / 255
    else:
        assert psnr["all"] > 40 and psnr["rim"] > 40


MEASURE_MEMORY = """
import sys
import cv2, tifffile, torch
from harmony_diffusion.highres.harmonize import harmonize_picture
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import load_picture
from harmony_diffusion.models import create_model

def peak():
    # Of this process alone: ru_maxrss of a child begins with the peak of the parent that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20

torch.set_num_threads(1)
models = [create_model(name).eval() for name in ("harmonizer", "poisson")]
before = peak()
picture = load_picture(sys.argv[1])
for path in sys.argv[2:]:
    mask = load_mask(path, size=picture.size)
    for model in models:
        result, _ = harmonize_picture(model, picture, mask)
        assert (result.pixels[mask == 0] == picture.pixels[mask == 0]).all()
        assert (result.pixels != picture.pixels).any()
result.save(sys.argv[1] + ".result.png")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_stays_below_two_gigabytes_for_24_megapixels_of_16_bits(tmp_path):
    height, width = 4032, 6048
    pixels = np.empty((height, width, 3), np.uint16)
    pixels[..., 0] = np.linspace(2000, 60000, width)
    pixels[..., 1] = np.linspace(60000, 5000, height)[:, None]
    pixels[..., 2] = 30000
    paths = [str(tmp_path / name) for name in ("picture.png", "mask20.png", "mask90.png")]
    assert cv2.imwrite(paths[0], pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    for path, share in zip(paths[1:], (0.2, 0.9), strict=True):
        mask = np.zeros((height, width), np.uint8)
        mask[: int(height * share**0.5), : int(width * share**0.5)] = 255
        assert cv2.imwrite(path, mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    run = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, *paths],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 2  # gibibytes
