"""The cache of exports, and the commands that use it."""

import pytest
from small_models import Gain

from harmony_diffusion import models
from harmony_diffusion.cli import main
from harmony_diffusion.errors import CheckpointError, OutputError
from harmony_diffusion.export import shipped
from harmony_diffusion.export.folder import is_exported
from harmony_diffusion.export.runtime import OnnxModel
from harmony_diffusion.export.shipped import exported_folder


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved network of a class that the registry knows, and an empty cache."""
    monkeypatch.setenv("HARMONY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(models.MODELS, "gain", Gain)
    Gain().save_pretrained(tmp_path / "gain")
    return tmp_path / "gain"


def test_names_are_those_of_the_registry():
    assert shipped.DEFAULT_MODEL == models.DEFAULT_MODEL
    assert shipped.WEIGHTS == models.WEIGHTS


def test_an_exported_folder_is_used_as_it_is(exported):
    assert exported_folder(exported["gain"]) == exported["gain"]


def test_a_saved_folder_is_exported_once(saved):
    said = []
    first = exported_folder(saved, announce=said.append)
    assert is_exported(first) and len(said) == 1
    assert exported_folder(saved, announce=said.append) == first and len(said) == 1


def test_other_weights_have_their_own_export(saved):
    first = exported_folder(saved)
    model = Gain()
    model.amount.data += 0.1
    model.save_pretrained(saved)
    assert exported_folder(saved) != first


@pytest.mark.parametrize("name", ["reinhard", "hdnet", "no_such_folder"])
def test_what_has_no_weights_is_refused(name):
    with pytest.raises(CheckpointError, match="harmony export"):
        exported_folder(name)


def test_command_exports_and_says_how_closely(saved, tmp_path, capsys):
    assert main(["export", str(saved), str(tmp_path / "out")]) == 0
    assert "largest difference from PyTorch" in capsys.readouterr().out
    assert main(["export", str(saved), str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(saved), str(tmp_path / "out"), "--overwrite"]) == 0


def test_options_of_diffusion_are_refused_with_a_runtime(exported, tmp_path, capsys):
    from small_models import make_picture

    for name in ("composite", "mask"):
        make_picture().save(tmp_path / f"{name}.png")
    files = [str(tmp_path / name) for name in ("composite.png", "mask.png")]
    arguments = ["image", *files, "-o", str(tmp_path / "out.png"), "--runtime", "onnx", "--steps", "3"]
    assert main([*arguments, "--model", str(exported["gain"])]) == 2
    assert "--steps" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_a_damaged_export_in_the_cache_is_made_again(saved):
    first = exported_folder(saved)
    for name, data in (("network.onnx", b"cut"), ("export.json", b"{")):
        (first / name).write_bytes(data)
        assert exported_folder(saved) == first
        OnnxModel(first)
        assert (first / name).read_bytes() != data
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_two_that_export_at_once_leave_one_whole_folder(saved, monkeypatch):
    import harmony_diffusion.export.onnx as module

    export, theirs = module.export_onnx, []

    def slow(model, folder, **options):
        result = export(model, folder, **options)
        if not theirs:  # another process is faster
            theirs.append(folder)
            wanted = folder.with_name(folder.name.removeprefix(".").rpartition("-")[0])
            export(model, wanted)
            theirs.append((wanted / "export.json").stat().st_ino)
        return result

    monkeypatch.setattr(module, "export_onnx", slow)
    folder = exported_folder(saved)
    assert (folder / "export.json").stat().st_ino == theirs[1]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written_names_its_variable(saved, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARMONY_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="HARMONY_CACHE"):
        exported_folder(saved)
