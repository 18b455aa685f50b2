"""What goes wrong with the Hub: a typed error, and nothing half done."""

import json
import sys
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http as http
import pytest
from tiny_training import ROOT

from harmony_diffusion import create_model, load_model, load_pipeline
from harmony_diffusion.cli import main
from harmony_diffusion.errors import CheckpointError, HubError, InputError
from harmony_diffusion.hub import Card, push_to_hub, save_for_hub

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return save_for_hub(create_model("idih", base_channels=8), tmp_path / "folder", card=Card(license="mit"))


@pytest.fixture
def published(hub, folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    hub.put("someone/model", {name: path.read_bytes() for name, path in files.items()})
    return hub


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Do not wait between the attempts of huggingface_hub."""
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)


def weights_in_cache(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*.safetensors") if path.exists()]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "hf auth login"),
        (403, "access is denied"),
        (404, "no such repository"),
        (429, "more requests"),
        (500, ""),
    ],
)
@pytest.mark.parametrize("place", ["/api/models/", WEIGHTS])
def test_refused_downloads_are_typed_errors_and_leave_no_weights(published, status, words, place, tmp_path):
    published.faults[place] = status
    for load in (load_model, load_pipeline):
        with pytest.raises(CheckpointError, match=f"someone/model: .*{words}"):
            load("someone/model")
    assert not weights_in_cache(tmp_path)
    published.faults.clear()
    load_model("someone/model")


def test_a_repository_or_revision_that_does_not_exist_is_named(published):
    with pytest.raises(CheckpointError, match="someone/absent: .*no such repository"):
        load_model("someone/absent")
    with pytest.raises(CheckpointError, match="revision"):
        load_model("someone/model", revision="v9")
    with pytest.raises(CheckpointError, match="names a revision"):
        load_model("someone/model@v1", revision="v2")


def test_weights_that_differ_from_their_hash_are_removed(published, tmp_path):
    data = published.repositories["someone/model"][0][1][f"model/{WEIGHTS}"]
    published.objects[f"instead of model/{WEIGHTS}"] = bytes(len(data))
    with pytest.raises(CheckpointError, match="has the SHA-256 .*, expected"):
        load_model("someone/model")
    assert not weights_in_cache(tmp_path)
    published.objects.clear()
    load_model("someone/model")


def test_a_cut_connection_leaves_no_weights(published, tmp_path):
    published.faults[f"model/{WEIGHTS}"] = "cut"
    with pytest.raises(CheckpointError, match="someone/model: "):
        load_model("someone/model")
    assert not weights_in_cache(tmp_path)
    published.faults.clear()
    load_model("someone/model")


def test_repositories_of_other_things_are_described(hub):
    hub.put("someone/other", {"config.json": b'{"_class_name": "AutoencoderKL"}'})
    hub.put("someone/list", {"config.json": b"[1]"})
    hub.put("someone/text", {"README.md": b"text"})
    for name, words in (
        ("other", "AutoencoderKL"),
        ("list", "holds a list"),
        ("text", "neither config.json"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_model(f"someone/{name}")


@pytest.mark.parametrize(
    ("file", "entries"),
    [("model_index.json", {"_class_name": []}), ("model/config.json", {"base_channels": "x"})],
)
def test_settings_of_other_types_are_typed_errors(published, file, entries):
    settings = json.loads(published.repositories["someone/model"][0][1][file]) | entries
    published.put("someone/model", {file: json.dumps(settings).encode()})
    for load in (load_model, load_pipeline):
        with pytest.raises(CheckpointError, match="model"):
            load("someone/model")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "hf auth login"),
        (403, "no right to write"),
        (404, "no such"),
        (429, "more requests"),
        (422, "failed"),
    ],
)
@pytest.mark.parametrize("place", ["/api/repos/create", "/lfs/", "/commit/"])
def test_refused_uploads_are_typed_errors_and_commit_nothing(hub, folder, status, words, place):
    hub.faults[place] = status
    with pytest.raises(HubError, match=words):
        push_to_hub(folder, "someone/model")
    assert not hub.repositories.get("someone/model")


def test_a_card_that_the_hub_refuses_is_an_error(hub, folder):
    (folder / "README.md").write_text("---\nlicense: no-such\npipeline_tag: image-to-image\n---\n")
    with pytest.raises(HubError, match="Invalid metadata"):
        push_to_hub(folder, "someone/model")
    assert not hub.repositories["someone/model"]


def test_uploads_are_one_commit_with_the_version_on_a_branch_or_as_a_pull_request(hub, folder):
    from harmony_diffusion import __version__

    address = push_to_hub(folder, "someone/model", create_pr=True)
    assert address.endswith("/discussions/1") and hub.messages == [
        f"Upload with harmony-diffusion {__version__}"
    ]
    push_to_hub(folder, "someone/model", revision="trial")
    assert any("/branch/trial" in path for _, path in hub.requests)
    assert any("/commit/trial" in path for _, path in hub.requests)


def test_what_must_not_be_uploaded_is_refused_before_any_request(hub, tmp_path):
    with pytest.raises(InputError, match="no folder with files"):
        push_to_hub(tmp_path / "absent", "someone/model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"PK")
    with pytest.raises(InputError, match="safetensors"):
        push_to_hub(tmp_path / "model", "someone/model")
    assert not hub.requests


def test_offline_and_without_a_token_nothing_is_built(hub, tmp_path, monkeypatch, capsys):
    arguments = [
        "hub",
        "default",
        str(tmp_path / "out"),
        "--id",
        "someone/model",
        "--license",
        "mit",
        "--push",
    ]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(arguments) == 2 and "HF_HUB_OFFLINE" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    assert main(arguments) == 2 and "hf auth login" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not hub.requests


def test_training_scripts_check_the_upload_before_they_train(monkeypatch, tmp_path, capsys):
    import importlib.util

    path = Path(ROOT) / "train" / "train_discriminative.py"
    spec = importlib.util.spec_from_file_location("train_discriminative", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = [
        "--model",
        "idih",
        "--data",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
        "--push_to_hub",
    ]
    monkeypatch.setattr(sys, "argv", ["train_discriminative.py", *arguments])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit):
        script.parse_args()
    assert "--push_to_hub: nothing can be uploaded" in capsys.readouterr().err
