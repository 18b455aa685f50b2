import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from models.official_cases import load_part
from oracles.oracle_weights import fill_state_dict, make_inputs
from safetensors.torch import save_file

from harmony_diffusion.cli import main
from harmony_diffusion.errors import CheckpointError, OutputError
from harmony_diffusion.models import load_model, model_class
from harmony_diffusion.models.convert import convert_checkpoint, convert_names, unwrap

ORACLE = Path(__file__).parents[1] / "oracles" / "harmonizer_s11_300x420.npz"


@pytest.fixture(scope="module")
def official():
    with np.load(ORACLE, allow_pickle=False) as oracle:
        shapes = {
            str(k): tuple(int(d) for d in s if d >= 0)
            for k, s in zip(oracle["keys"], oracle["shapes"], strict=True)
        }
        return fill_state_dict(shapes, int(oracle["seed"]), json.loads(str(oracle["gain"])))


def wrap(official, kind):
    if kind == "module":
        return {f"module.{key}": value for key, value in official.items()}
    if kind == "nested":
        return {"epoch": 3, "model": {f"module.model.{key}": value for key, value in official.items()}}
    if kind == "state_dict":
        return {"state_dict": official, "optimizer": {"lr": 0.1}}
    return official


@pytest.mark.parametrize("kind", ["plain", "module", "nested", "state_dict"])
def test_usual_wrappings_are_taken_off(kind, official):
    converted = convert_names(model_class("harmonizer"), unwrap(wrap(official, kind)))
    expected = model_class("harmonizer").convert_official(official)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["dovenet", "s2am"])
def test_owner_may_be_part_of_the_official_names(name):
    """Official files of these begin all their names with `model.`, and a trainer may add another one."""
    names = {"dovenet": "model.model.0.weight", "s2am": "model.model.down.0.weight"}
    cls = model_class(name)
    expected = cls.convert_official({names[name]: torch.ones(1)})
    for prefix in ("", "module.", "module.model."):
        wrapped = {prefix + names[name]: torch.ones(1)}
        assert convert_names(cls, unwrap(wrapped)).keys() == expected.keys()
    with pytest.raises(CheckpointError, match=r"model\.surprise"):
        convert_names(cls, {"model.surprise": torch.ones(1)})


def test_converted_folder_computes_what_the_official_code_does(official, tmp_path):
    torch.save(wrap(official, "nested"), tmp_path / "official.pth")
    arguments = ["convert", "--model", "harmonizer", str(tmp_path / "official.pth"), str(tmp_path / "out")]
    assert main(arguments) == 0
    with np.load(ORACLE, allow_pickle=False) as oracle:
        size = int(oracle["height"]), int(oracle["width"])
        composite, mask = make_inputs(int(oracle["seed"]), *size, int(oracle["batch"]))
        expected, stride = oracle["output"], int(oracle["stride"])
    with torch.no_grad():
        harmonized = load_model(tmp_path / "out")(composite, mask)
    np.testing.assert_allclose(harmonized[..., ::stride, ::stride].numpy(), expected, rtol=0, atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "CC BY-NC-SA 4.0" in card and "official.pth" in card and "arxiv.org/abs/2207.01322" in card
    assert not list(tmp_path.glob(".*"))


CASES = {
    "hdnet_lite": "hdnet_ngf8_s11_192x320",
    "idih": "idih256_s11_200x320",
    "idih_hrnet": "idih_hrnet18s_s11_256x256",
    "is2am": "is2am256_s11_200x300",
    "dih": "saic_dih256_s11_256x256",
    "dccf": "dccf_idih_s11_448x576",
    "dccf_is2am": "dccf_is2am_s11_448x576",
    "pct_net": "pctnet_cnn_s11_640x832",
    "pct_net_vit": "pctnet_vit_s11_256x256",
    "cdt_net_sim": "cdtnet_sim_s11_512x640",
    "s2cr_net": "s2crnet_squeeze_s11_256x256_b2",
}


@pytest.mark.parametrize("name", CASES)
def test_official_checkpoints_are_converted_by_the_command(name, tmp_path):
    official = load_part(CASES[name])[0]
    torch.save(wrap(official, "module"), tmp_path / "official.pth")
    paths = [str(tmp_path / "official.pth"), str(tmp_path / "out")]
    assert main(["convert", "--model", name, *paths]) == 0
    loaded = load_model(tmp_path / "out")
    expected = type(loaded).convert_official(official)
    assert type(loaded) is model_class(name) and expected
    state = loaded.state_dict()
    assert all(torch.equal(state[key], value.view(state[key].shape)) for key, value in expected.items())
    assert f"# {name}: converted weights" in (tmp_path / "out" / "README.md").read_text()
    assert main(["convert", "--model", "rain_net", *paths, "--overwrite"]) == 2


def test_safetensors_are_read_too(official, tmp_path):
    save_file(official, tmp_path / "official.safetensors")
    assert convert_checkpoint("harmonizer", tmp_path / "official.safetensors", tmp_path / "out").is_dir()


def test_missing_extra_misshaped_and_broken_tensors_are_listed(official, tmp_path, capsys):
    wrong = dict(official)
    del wrong["regressor.f.weight"]
    wrong["regressor.g.bias"] = torch.zeros(7)
    wrong["regressor.f.bias"] = torch.full_like(wrong["regressor.f.bias"], float("nan"))
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint("harmonizer", tmp_path / "wrong.pth", tmp_path / "out")
    message = str(caught.value)
    assert "1 missing: regressor.image.weight" in message
    assert "regressor.start.bias (7,) instead of (160,)" in message
    assert "1 not finite: regressor.image.bias" in message
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))

    torch.save({**official, "unknown.weight": torch.zeros(1)}, tmp_path / "extra.pth")
    assert main(["convert", "--model", "harmonizer", str(tmp_path / "extra.pth"), str(tmp_path / "out")]) == 2
    assert "unknown.weight" in capsys.readouterr().err


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    target = tmp_path / "pwned"
    torch.save({"weight": Malicious(str(target))}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(str(target))))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="not run|cannot be read"):
            convert_checkpoint("harmonizer", tmp_path / name, tmp_path / "out")
    assert not target.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_one_error(content, suffix, tmp_path):
    (tmp_path / f"bad{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError):
        convert_checkpoint("harmonizer", tmp_path / f"bad{suffix}", tmp_path / "out")


def test_files_without_weights_are_refused(tmp_path):
    for i, content in enumerate(({"epoch": 3}, [1, 2], {}, torch.zeros(2))):
        torch.save(content, tmp_path / f"{i}.pth")
        with pytest.raises(CheckpointError, match="holds"):
            convert_checkpoint("harmonizer", tmp_path / f"{i}.pth", tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such file"):
        convert_checkpoint("harmonizer", tmp_path / "none.pth", tmp_path / "out")
    with pytest.raises(CheckpointError, match="needs none"):
        convert_checkpoint("reinhard", tmp_path / "0.pth", tmp_path / "out")


def test_only_a_saved_model_is_replaced_and_only_when_allowed(official, tmp_path):
    torch.save(official, tmp_path / "official.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("kept")
    for overwrite, reason in ((False, "exists already"), (True, "something else than a saved model")):
        with pytest.raises(OutputError, match=reason):
            convert_checkpoint("harmonizer", tmp_path / "official.pth", tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "precious.txt").read_text() == "kept"
    model = convert_checkpoint("harmonizer", tmp_path / "official.pth", tmp_path / "model")
    (model / "README.md").unlink()
    convert_checkpoint("harmonizer", tmp_path / "official.pth", model, overwrite=True)
    assert (model / "README.md").is_file()
    (model / "thesis.txt").write_text("kept")
    with pytest.raises(OutputError, match="something else than a saved model"):
        convert_checkpoint("harmonizer", tmp_path / "official.pth", model, overwrite=True)
    assert (model / "thesis.txt").read_text() == "kept"
