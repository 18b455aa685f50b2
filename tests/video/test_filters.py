import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import Dense, Gain, GainMap
from video_clips import moving_disc

from harmony_diffusion import load_model
from harmony_diffusion.highres.harmonize import harmonize_picture
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models import create_model
from harmony_diffusion.video.filters import FilterModel, sample_maps
from harmony_diffusion.video.frame_colors import PictureFrame


def frame_and_mask(size=(150, 200)):
    frames, masks = moving_disc(1, size)
    pixels = (frames[0] / 255).astype(np.float32)
    return PictureFrame(Picture(pixels)), (masks[0] / 255).astype(np.float32)


def rendered(model, frame, mask):
    filters = FilterModel(model)
    numbers = filters.predict([filters.view(frame, mask)])[0]
    assert numbers.shape == (filters.count,)
    return frame.changed(filters.changes(frame, mask, numbers)).picture.pixels


@pytest.mark.parametrize("name", ["default", "reinhard", "mkl"])
def test_a_frame_becomes_what_the_picture_becomes(name):
    frame, mask = frame_and_mask()
    model = load_model(name).eval()
    expected, _ = harmonize_picture(model, frame.picture, mask)
    np.testing.assert_allclose(rendered(model, frame, mask), expected.pixels, atol=2e-5)


def test_white_box_arguments_are_kept_with_the_statistics_of_the_frame():
    frame, mask = frame_and_mask()
    torch.manual_seed(0)
    model = create_model("harmonizer_lite").eval()
    filters = FilterModel(model)
    assert filters.shape == (6,) and filters.statistics == 4 and filters.count == 10
    expected, _ = harmonize_picture(model, frame.picture, mask)
    np.testing.assert_allclose(rendered(model, frame, mask), expected.pixels, atol=2e-5)


def test_dense_networks_are_kept_as_a_map_over_the_object():
    frame, mask = frame_and_mask()
    model = Dense().eval()
    filters = FilterModel(model)
    assert filters.dense and filters.shape == (12, 32, 32)
    expected, _ = harmonize_picture(model, frame.picture, mask)
    assert np.abs(rendered(model, frame, mask) - expected.pixels).max() < 0.03
    np.testing.assert_array_equal(rendered(model, frame, mask)[mask == 0], frame.picture.pixels[mask == 0])


def test_large_maps_are_cut_to_the_object():
    class Fine(GainMap):
        def predict_filters(self, composite, mask):
            gain = F.interpolate(super().predict_filters(composite, mask), 64, mode="bilinear")
            return gain

    frame, mask = frame_and_mask()
    filters = FilterModel(Fine().eval())
    assert filters.cut and filters.shape[1:] == (32, 32)


def test_several_frames_at_once_are_predicted_as_one_by_one():
    frames, masks = moving_disc(3, (80, 100))
    model = FilterModel(Gain().eval())
    views = [
        model.view(PictureFrame(Picture(f)), (m / 255).astype(np.float32))
        for f, m in zip(frames, masks, strict=True)
    ]
    alone = np.concatenate([model.predict([view]) for view in views])
    np.testing.assert_allclose(model.predict(views), alone, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 60), (7, 9)])
def test_sampling_over_the_same_window_is_bilinear_interpolation(size):
    maps = torch.rand(1, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    window = slice(0, size[0]), slice(0, size[1])
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=size[0] < 10)
    # Of a coarser result, the border alone is weighed in another way.
    atol = 1e-5 if size[0] > 10 else 0.05
    torch.testing.assert_close(sample_maps(maps, window, window, size), expected, rtol=0, atol=atol)


def test_strength_scales_the_change():
    frame, mask = frame_and_mask()
    filters = FilterModel(Gain().eval())
    numbers = filters.predict([filters.view(frame, mask)])[0]
    full, half = (
        frame.changed(filters.changes(frame, mask, numbers, strength)).picture.pixels
        for strength in (1.0, 0.5)
    )
    np.testing.assert_allclose(half, (full + frame.picture.pixels) / 2, atol=1e-5)


def test_a_small_copy_has_the_mean_correction_of_the_frame():
    frame, mask = frame_and_mask((300, 400))
    filters = FilterModel(load_model("reinhard").eval())
    numbers = filters.predict([filters.view(frame, mask)])[0]
    from harmony_diffusion.boxes import bounding_box

    small = filters.small_copy(frame, mask)
    change, share = filters.small_correction(
        small, bounding_box(mask > 0), filters.window(frame, mask), numbers
    )
    whole = frame.changed(filters.changes(frame, mask, numbers)).picture.pixels - frame.picture.pixels
    # The copy averages colours before the filters, the frame after: close, not equal.
    np.testing.assert_allclose(change.sum((0, 1)) / share.sum(), whole.sum((0, 1)) / mask.sum(), atol=0.03)
