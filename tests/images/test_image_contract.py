"""The image contract for anything a caller may hand over, drawn at random by hypothesis."""

import warnings

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from picture_files import ADOBE_RGB, DISPLAY_P3, SRGB_CURVE, gamma_curve, grey_profile, matrix_profile
from PIL import Image

from harmony_diffusion import HarmonizationPipeline, load_model
from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.images.compose import paste_foreground
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import Picture, load_picture

PROFILES = (
    None,
    matrix_profile(DISPLAY_P3, SRGB_CURVE),
    matrix_profile(ADOBE_RGB, gamma_curve(2.2)),
    grey_profile(gamma_curve(1.8)),
    b"no profile",
)
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I")
PIPE = HarmonizationPipeline(load_model("reinhard"))
PIPE.set_progress_bar_config(disable=True)
few = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def pairs(draw):
    """A picture with a mask that leaves some background."""
    height, width = draw(st.integers(16, 40)), draw(st.integers(16, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from((np.uint8, np.uint16, np.float32)))
    values = rng.random((height, width, 4)).astype(np.float32)
    if draw(st.booleans()):
        values[..., :3] = values[0, 0, 0]  # of one colour
    values[..., 3] *= rng.random((height, width)) > 0.3
    if dtype is not np.float32:
        values = np.rint(values * np.iinfo(dtype).max).astype(dtype)
    alpha = values[..., 3] if draw(st.booleans()) else None
    picture = Picture(values[..., :3], alpha, draw(st.sampled_from(PROFILES[:3])))
    mask = np.zeros((height, width), np.float32)
    top, left = draw(st.integers(0, height - 2)), draw(st.integers(0, width - 2))
    part = mask[top : draw(st.integers(top + 1, height - 1)), left : draw(st.integers(left + 1, width - 1))]
    part[...] = rng.random(part.shape) if draw(st.booleans()) else 1
    kind = draw(st.sampled_from(("float", "uint8", "uint16", "bool", "tensor", "pil")))
    given_mask = {
        "float": mask,
        "uint8": np.rint(mask * 255).astype(np.uint8),
        "uint16": np.rint(mask * 65535).astype(np.uint16),
        "bool": mask > 0.5,
        "tensor": torch.from_numpy(mask.copy())[None],
        "pil": Image.fromarray(np.rint(mask * 255).astype(np.uint8)),
    }[kind]
    return picture, given_mask


@few
@given(pairs(), st.sampled_from((0.0, 0.3, np.float32(0.5), 1)))
def test_background_is_kept_to_the_bit_and_nothing_is_mutated(pair, strength):
    picture, mask = pair
    pixels = picture.pixels.copy()
    before = np.array(np.asarray(mask))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            foreground = load_mask(mask)
            (result,) = PIPE(picture, mask, strength=strength, output_type="picture").images
        except HarmonyError:
            return  # a mask of few values may be taken for a label map
    assert result.pixels.dtype == pixels.dtype and result.profile == picture.profile
    untouched = foreground == 0
    if strength == 0:
        untouched[...] = True
    if picture.alpha is not None:
        untouched |= picture.alpha == 0
        assert np.array_equal(result.alpha, picture.alpha)
    assert np.array_equal(result.pixels[untouched], pixels[untouched])
    assert np.array_equal(picture.pixels, pixels) and np.array_equal(np.array(np.asarray(mask)), before)


@few
@given(
    st.sampled_from(MODES),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(PROFILES),
    st.binary(max_size=40),
    st.integers(0, 2**32 - 1),
)
def test_any_pil_image_is_taken_or_refused_by_a_typed_error(mode, size, profile, exif, seed):
    bytes_each = {"I": 4, "LA": 2, "La": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "HSV": 3, "LAB": 3}.get(mode, 4)
    bytes_each = 1 if mode in ("L", "P") else bytes_each
    length = (size[0] + 7) // 8 * size[1] if mode == "1" else size[0] * size[1] * bytes_each
    image = Image.frombytes(mode, size, np.random.default_rng(seed).bytes(length))
    image.info |= {"exif": exif, "icc_profile": profile} if profile else {"exif": exif}
    before = image.tobytes()
    for load in (load_picture, load_mask):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = load(image)
            except HarmonyError:
                continue
        if load is load_picture:
            values = loaded.read_srgb()
            assert values.shape == (*loaded.size, 3)
            assert sorted(loaded.size) == sorted(size)
        else:
            values = loaded
        assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1
    assert image.tobytes() == before


DTYPES = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?"),
    arrays.complex_number_dtypes(),
)


@few
@given(
    arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=20)), st.booleans()
)
def test_any_array_or_tensor_is_taken_or_refused_by_a_typed_error(array, as_tensor):
    source = array
    if as_tensor:
        try:
            source = torch.from_numpy(array.copy())
        except (TypeError, ValueError):
            return  # torch has no such type
    before = array.copy()
    for load in (load_picture, load_mask):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load(source)
            except HarmonyError:
                pass
    assert np.array_equal(array, before, equal_nan=array.dtype.kind in "fc")


ANYTHING = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3), st.just(np.float32(0.5))
)


@few
@given(pairs(), ANYTHING, st.one_of(st.none(), st.tuples(ANYTHING, ANYTHING), ANYTHING))
def test_any_scale_and_position_is_taken_or_refused_by_a_typed_error(pair, scale, at):
    picture, _ = pair
    mask = np.ones(picture.size, np.float32)
    try:
        composite, pasted = paste_foreground(picture, picture, mask, at=at, scale=scale)
    except HarmonyError:
        return
    assert np.array_equal(composite.pixels[pasted == 0], picture.pixels[pasted == 0])
