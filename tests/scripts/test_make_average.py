from pathlib import Path

import pytest
import torch
from run_script import run_script

from harmony_diffusion import create_model, load_model

SCRIPT = Path(__file__).resolve().parents[2] / "train" / "make_average.py"


def saved(folder, seed, channels=4):
    torch.manual_seed(seed)
    create_model("hdnet", base_channels=channels).save_pretrained(folder)
    return folder


def test_weights_are_averaged_by_their_shares(tmp_path):
    folders = [saved(tmp_path / name, seed) for seed, name in enumerate("ab")]
    models = [
        option for folder, share in zip(folders, (1, 3), strict=True) for option in ("--model", folder, share)
    ]
    run_script(SCRIPT, *models, "--output", tmp_path / "averaged")
    first, second, averaged = (load_model(path).state_dict() for path in (*folders, tmp_path / "averaged"))
    assert str(tmp_path) not in (tmp_path / "averaged" / "config.json").read_text()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, value in averaged.items():
        torch.testing.assert_close(value, 0.25 * first[name] + 0.75 * second[name])


@pytest.mark.parametrize(
    ("shares", "channels", "named"),
    [((1, 0), 4, "share above 0"), ((1, "x"), 4, "share above 0"), ((1, 1), 8, "equal configurations")],
)
def test_models_that_cannot_be_averaged_are_refused(tmp_path, shares, channels, named):
    folders = saved(tmp_path / "a", 0), saved(tmp_path / "b", 1, channels)
    models = [
        option for folder, share in zip(folders, shares, strict=True) for option in ("--model", folder, share)
    ]
    failed = run_script(SCRIPT, *models, "--output", tmp_path / "out", expect=2)
    assert named in failed.stderr and not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_kept(tmp_path):
    folder = saved(tmp_path / "a", 0)
    failed = run_script(SCRIPT, "--model", folder, 1, "--output", folder, expect=2)
    assert "exists" in failed.stderr
