import numpy as np
import pytest
from PIL import Image
from tiny_diffusion import make_pipe, object_mask, picture, trained_like

from harmony_diffusion.cli import main
from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.pipelines.loading import load_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_pipe(trained_like()).save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name in ("HARMONY_SD2_DUAL", "HARMONY_SD2_INPAINTING"):
        monkeypatch.delenv(name, raising=False)
    Image.fromarray(picture((80, 96))).save(tmp_path / "composite.png")
    Image.fromarray(object_mask((80, 96))).save(tmp_path / "mask.png")
    return tmp_path


def harmonize(files, *options, out="out.png"):
    arguments = ["image", files / "composite.png", files / "mask.png", "-o", files / out, *options]
    return main([str(argument) for argument in arguments])


def read(path):
    return np.asarray(Image.open(path)).astype(int)


def test_command_line_runs_a_saved_pipeline_by_name_and_by_folder(files, saved, monkeypatch):
    options = ["--prompt", "a cup", "--high-scale", 0.8, "--low-scale", 0.6, "--steps", 2, "--seed", 3]
    monkeypatch.setenv("HARMONY_SD2_DUAL", str(saved))
    assert harmonize(files, "--model", "sd2-dual", *options) == 0
    assert harmonize(files, "--model", saved, *options, out="again.png") == 0
    assert harmonize(files, "--model", saved, *options[:-1], 4, out="other.png") == 0
    assert harmonize(files, "--model", saved, *options, "--strength", 0.5, out="half.png") == 0
    before, first = read(files / "composite.png"), read(files / "out.png")
    assert np.array_equal(first, read(files / "again.png"))
    assert not np.array_equal(first, read(files / "other.png"))
    assert not np.array_equal(first, read(files / "half.png"))
    assert np.array_equal(first[:8], before[:8]) and not np.array_equal(first, before)


def test_strength_zero_on_the_command_line_keeps_the_input(files, saved):
    assert harmonize(files, "--model", saved, "--prompt", "", "--strength", 0) == 0
    assert np.array_equal(read(files / "out.png"), read(files / "composite.png"))


def test_without_controls_the_base_is_enough(files, saved, monkeypatch):
    monkeypatch.setenv("HARMONY_SD2_INPAINTING", str(saved))
    off = ["--high-scale", 0, "--low-scale", 0]
    pipe = load_pipeline("sd2-dual", controls=False)
    assert pipe.controlnet_high is None and pipe.controlnet_low is None
    # That the weights were found and the pipeline called is what counts here; 20 steps of 512 pixels are not.
    assert harmonize(files, "--model", "sd2-dual", "--prompt", "", *off, "--strength", 0) == 0


@pytest.mark.parametrize(
    ("options", "variable", "words"),
    [
        ([], None, ["two trained ControlNets", "HARMONY_SD2_DUAL"]),
        (
            [],
            "no-such-owner/no-such-pipeline",
            ["HARMONY_SD2_DUAL=no-such-owner/no-such-pipeline", "reachable"],
        ),
        (
            ["--high-scale", "0", "--low-scale", "0"],
            None,
            ["neither here nor reachable", "sd2-community", "November 2025", "HARMONY_SD2_INPAINTING"],
        ),
    ],
    ids=["no weights", "unreachable pipeline", "unreachable base"],
)
def test_missing_weights_are_explained(files, capsys, monkeypatch, options, variable, words):
    if variable:
        monkeypatch.setenv("HARMONY_SD2_DUAL", variable)
    assert harmonize(files, "--model", "sd2-dual", "--prompt", "a cup", *options) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and "Traceback" not in error
    assert not (files / "out.png").exists()


@pytest.mark.parametrize("option", [["--steps", "4"], ["--seed", "1"], ["--low-scale", "0.5"]])
def test_options_of_the_diffusion_pipeline_are_refused_elsewhere(files, capsys, option):
    assert harmonize(files, "--model", "reinhard", *option) == 2
    assert "sd2-dual" in capsys.readouterr().err


def test_a_reference_mask_is_refused_where_it_has_no_effect(files, saved, capsys):
    assert harmonize(files, "--model", saved, "--prompt", "", "--reference-mask", files / "mask.png") == 2
    assert "--reference-mask" in capsys.readouterr().err


def test_unknown_names_are_refused():
    with pytest.raises(CheckpointError, match="no_such_model"):
        load_pipeline("no_such_model")
