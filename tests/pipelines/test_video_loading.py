"""A video pipeline is loaded, saved and offloaded like any other."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import DiffusionPipeline
from fake_accelerator import fake_accelerator
from PIL import Image
from small_configs import SMALL
from video_clips import BT709, moving_disc, write_clip

from harmony_diffusion import HarmonizationPipeline, VideoHarmonizationPipeline, create_model
from harmony_diffusion.errors import CheckpointError, InputError, InputTypeError
from harmony_diffusion.highres.offload import is_offloaded


def small_pipe(name):
    torch.manual_seed(0)
    pipe = VideoHarmonizationPipeline(create_model(name, **SMALL.get(name, {})))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def clip(tmp_path):
    frames, masks = moving_disc(3, (96, 80))
    Image.fromarray(masks[1]).save(tmp_path / "mask.png")
    return write_clip(tmp_path / "clip.mkv", frames, codec="ffv1", tags=BT709), tmp_path / "mask.png"


@pytest.mark.parametrize("name", ["color_grid", "harmonizer_lite", "idih"])
def test_an_offloaded_model_gives_the_same_clip_twice(name, clip, tmp_path):
    pipe = small_pipe(name)
    expected = pipe(*clip, output=tmp_path / "expected.mkv").path.read_bytes()
    pipe.enable_model_cpu_offload(device="cpu")
    assert is_offloaded(pipe.model)
    for again in "ab":
        assert pipe(*clip, output=tmp_path / f"{again}.mkv").path.read_bytes() == expected


def test_an_offloaded_model_computes_on_the_accelerator():
    pipe = small_pipe("idih")
    frames, masks = moving_disc(2, (96, 80))
    expected = np.stack(list(pipe(frames, masks)))
    with fake_accelerator() as device:
        cpu_offload_with_hook(pipe.model, execution_device=device)
        np.testing.assert_array_equal(np.stack(list(pipe(frames, masks))), expected)


def test_saved_folders_open_in_every_way(clip, tmp_path):
    pipe = small_pipe("harmonizer_lite")
    expected = pipe(*clip, output=tmp_path / "expected.mkv").path.read_bytes()
    pipe.save_pretrained(tmp_path / "video")
    HarmonizationPipeline(pipe.model).save_pretrained(tmp_path / "still")
    loaded = [
        VideoHarmonizationPipeline.from_pretrained(tmp_path / "video"),
        VideoHarmonizationPipeline.from_pretrained(tmp_path / "still"),
        DiffusionPipeline.from_pretrained(tmp_path / "video", trust_remote_code=True),
        VideoHarmonizationPipeline.from_pretrained(tmp_path / "video" / "model"),
        VideoHarmonizationPipeline.from_pipe(HarmonizationPipeline(pipe.model)),
    ]
    for number, one in enumerate(loaded):
        assert type(one).__name__ == "VideoHarmonizationPipeline"
        one.set_progress_bar_config(disable=True)
        assert one(*clip, output=tmp_path / f"{number}.mkv").path.read_bytes() == expected


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(CheckpointError, match="color_grid"):
        VideoHarmonizationPipeline.from_pretrained("colour_grid")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"strength": "1"}, InputError, "strength: must be a number from 0 to 1"),
        ({"strength": float("nan")}, InputError, "strength: must be"),
        ({"smoothing": "median"}, InputError, "Choose one of two-pass"),
        ({"time_constant": 0}, InputError, "time_constant: must be a number of 0.001 or more"),
        ({"predict_every": 1.5}, InputError, "predict_every: must be an integer of 1 or more"),
        ({"cuts": "often"}, InputError, "Give 'auto', a list of frame numbers, or None"),
        ({"cuts": [0]}, InputError, "cuts: must be an integer of 1 or more"),
        ({"cuts": [3]}, InputError, "expected frame numbers from 1 to 2"),
        ({"mask_end": "loop"}, InputError, "Choose one of error, hold, stop, pass"),
        ({"quality": 20}, InputError, "is not a setting of ffv1"),
        ({"start": 9}, InputError, "leave no frame"),
        ({"start": "1"}, InputError, "start: must be a number"),
        ({"composite": [np.zeros((96, 80, 3), np.uint8)]}, InputTypeError, "give a video file or a folder"),
        ({"mask": np.zeros((96, 80))}, InputTypeError, "mask: is a ndarray"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_written(
    clip, tmp_path, options, error, message
):
    call = {"composite": clip[0], "mask": clip[1], "output": tmp_path / "out.mkv"} | options
    with pytest.raises(error, match=message):
        small_pipe("reinhard")(**call)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "mask.png"]


def test_numbers_of_numpy_are_taken(clip, tmp_path):
    options = {"strength": np.float32(0.5), "predict_every": np.int64(2), "cuts": np.array([2])}
    assert small_pipe("reinhard")(*clip, output=tmp_path / "out.mkv", **options).shots == [(0, 2), (2, 3)]
