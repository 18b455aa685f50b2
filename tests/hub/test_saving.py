import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import EvalResult, ModelCard

from harmony_diffusion import HarmonizationPipeline, create_model, load_model, load_pipeline
from harmony_diffusion.cli import main
from harmony_diffusion.errors import CheckpointError, InputError, InputTypeError, OutputError
from harmony_diffusion.hub import Card, push_to_hub, read_card, save_for_hub

ROOT = Path(__file__).resolve().parents[2]
CARD = Card(license="apache-2.0", repository="someone/grid", datasets=("owner/iharmony4",))
SCORE = EvalResult("image-to-image", "iharmony4", "iHarmony4", "psnr", 38.0, metric_name="PSNR")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("idih", base_channels=8).eval()


@pytest.fixture
def pair():
    composite = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    mask = np.zeros((48, 40), np.uint8)
    mask[10:30, 12:30] = 255
    return composite, mask


def harmonize(pipe, pair):
    pipe.set_progress_bar_config(disable=True)
    return pipe(*pair, output_type="array").images[0]


IN_A_FRESH_PROCESS = """
import sys, numpy
from diffusers import DiffusionPipeline
name = "someone/grid"
pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=name, trust_remote_code=True)
pair = numpy.load(sys.argv[1])
numpy.save(sys.argv[2], pipe(pair["composite"], pair["mask"], output_type="array").images[0])
"""


def test_a_pushed_model_opens_by_its_id_in_three_ways_with_equal_pixels(hub, model, pair, tmp_path):
    expected = harmonize(HarmonizationPipeline(model), pair)
    folder = save_for_hub(model, tmp_path / "folder", card=CARD)
    push_to_hub(folder, "someone/grid")
    assert {method for method, path in hub.requests if path.startswith("/lfs/")} == {"PUT", "POST"}
    assert "private" in json.dumps(hub.settings["someone/grid"])
    assert len(hub.repositories["someone/grid"]) == 1

    assert np.array_equal(harmonize(HarmonizationPipeline(load_model("someone/grid")), pair), expected)
    assert np.array_equal(harmonize(HarmonizationPipeline.from_pretrained("someone/grid"), pair), expected)
    np.savez(tmp_path / "pair.npz", composite=pair[0], mask=pair[1])
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, tmp_path / "pair.npz", tmp_path / "out.npy"],
        env=os.environ | own | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=True,
    )
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def test_a_model_alone_opens_by_its_id_and_by_revision(hub, model, pair, tmp_path):
    model.save_pretrained(tmp_path / "model")
    push_to_hub(tmp_path / "model", "someone/bare", revision="v1", private=False)
    first = hub.repositories["someone/bare"][0][0]
    expected = harmonize(HarmonizationPipeline(model), pair)
    for pipe in (
        load_pipeline("someone/bare"),
        HarmonizationPipeline.from_pretrained("someone/bare"),
        HarmonizationPipeline(load_model("someone/bare", revision=first)),
        HarmonizationPipeline(load_model(f"someone/bare@{first}")),
    ):
        assert np.array_equal(harmonize(pipe, pair), expected)


def test_a_downloaded_model_opens_without_a_connection(hub, model, tmp_path):
    push_to_hub(save_for_hub(model, tmp_path / "folder", card=CARD), "someone/grid")
    load_model("someone/grid")
    hub.close()
    assert type(load_model("someone/grid")).__name__ == "IDIH"
    assert type(load_pipeline("someone/grid").model).__name__ == "IDIH"


def test_code_in_a_repository_is_not_run_and_not_downloaded(hub, model, tmp_path):
    folder = save_for_hub(model, tmp_path / "folder", card=CARD)
    witness = tmp_path / "ran"
    for path in [folder / "pipeline.py", *folder.glob("model/*.py")]:
        path.write_text(f"open({str(witness)!r}, 'w')\n" + path.read_text())
    push_to_hub(folder, "someone/grid")
    load_model("someone/grid")
    HarmonizationPipeline.from_pretrained("someone/grid")
    load_pipeline("someone/grid")
    assert not witness.exists() and not list((tmp_path / "cache").rglob("*.py"))


def test_a_diffusion_pipeline_opens_by_its_id(hub, tiny_sd2_components, tmp_path):
    from tiny_diffusion import make_pipe

    pipe = make_pipe(tiny_sd2_components)
    push_to_hub(save_for_hub(pipe, tmp_path / "folder", card=CARD), "someone/grid")
    loaded = load_pipeline("someone/grid")
    assert type(loaded) is type(pipe) and set(loaded.components) == set(pipe.components)
    wanted = pipe.unet.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.unet.state_dict().items())
    with pytest.raises(CheckpointError, match="StableDiffusionHarmonizationPipeline.from_pretrained"):
        load_model("someone/grid")


def test_the_folder_holds_what_a_repository_needs(model, tmp_path):
    folder = save_for_hub(model, tmp_path / "folder", card=CARD)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weights = "diffusion_pytorch_model.safetensors"
    assert files == {
        *("README.md", "model_index.json", "pipeline.py", "requirements.txt", ".gitattributes"),
        *("model/config.json", f"model/{weights}", "model/idih.py"),
    }
    assert (folder / "requirements.txt").read_text() == "harmony-diffusion~=0.2\n"
    assert json.loads((folder / "model_index.json").read_text())["model"] == ["idih", "IDIH"]
    assert "*.safetensors filter=lfs" in (folder / ".gitattributes").read_text()
    # The folder opens here too, without its entry files.
    assert type(HarmonizationPipeline.from_pretrained(folder).model) is type(model)


def test_the_card_is_valid_and_says_what_a_reader_must_know(hub, model, tmp_path):
    card = Card(
        license="other",
        license_name="research-only",
        license_link="https://example.com/licence",
        repository="someone/grid",
        base_model=("owner/base",),
        datasets=("owner/iharmony4",),
        results=(SCORE,),
        sections={"Data": "iHarmony4, for research only.", "Notes": "More."},
    )
    picture = tmp_path / "before_after.jpg"
    picture.write_bytes(b"\xff\xd8\xff\xe0")
    folder = save_for_hub(model, tmp_path / "folder", card=card, examples=picture)
    loaded = ModelCard.load(folder / "README.md")
    loaded.validate()
    data = loaded.data.to_dict()
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "image-to-image"
    assert data["license_name"] == "research-only" and data["base_model"] == ["owner/base"]
    assert data["datasets"] == ["owner/iharmony4"] and data["widget"][0]["output"] == {"url": "examples.jpg"}
    assert data["model-index"][0]["name"] == "idih"
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 38.0
    for words in (
        'from_pretrained("someone/grid")',
        "## Training",
        "for research only",
        "## Limits",
        "## Notes",
    ):
        assert words in loaded.text
    loaded.data.license = "no-such-licence"
    with pytest.raises(ValueError, match="known identifiers"):
        loaded.validate()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"license": "other"}, "needs a name and a link"),
        ({"license": "No Licence"}, "Give an identifier"),
        ({"base_model": ("a b",)}, "base_model: holds 'a b'"),
        ({"repository": "name"}, "Give owner/name"),
    ],
)
def test_what_the_hub_would_refuse_is_refused_before_anything_is_written(changes, words, model, tmp_path):
    with pytest.raises(InputError, match=words):
        save_for_hub(model, tmp_path / "folder", card=Card(**{"license": "mit", **changes}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trained on /home/somebody/photos", "absolute path '/home/somebody"),
        ("trained on C:\\photos\\mine", "absolute path"),
        ("by an-odd-name", "user name 'an-odd-name'"),
    ],
)
def test_paths_and_names_of_this_machine_are_not_published(text, words, model, tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "an-odd-name")
    card = Card(license="mit", sections={"Training": text})
    with pytest.raises(InputError, match=words):
        save_for_hub(model, tmp_path / "folder", card=card)
    assert not list(tmp_path.iterdir())


def test_pickles_are_not_published(model, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "weights.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match="weights.pt: may hold pickled objects"):
        save_for_hub(model, tmp_path / "folder", card=CARD, onnx=tmp_path / "onnx")
    assert not (tmp_path / "folder").exists()


def test_other_objects_and_existing_folders_are_refused(model, tmp_path):
    with pytest.raises(InputTypeError, match="is a Linear"):
        save_for_hub(torch.nn.Linear(1, 1), tmp_path / "folder", card=CARD)
    with pytest.raises(OutputError, match="exists already"):
        save_for_hub(create_model("identity"), tmp_path, card=CARD)


def test_the_command_keeps_sections_scores_and_half_precision(model, tmp_path, capsys):
    source = tmp_path / "model"
    half = create_model("idih", base_channels=8).half()
    half.save_pretrained(source)
    (source / "README.md").write_text("---\nlicense: mit\ntags:\n- mine\n---\n# T\n\n## Data\n\nOpen data.\n")
    arguments = ["hub", str(source), str(tmp_path / "out"), "--id", "someone/grid"]
    assert main(arguments) == 0
    card = read_card(tmp_path / "out" / "README.md")
    assert card.license == "mit" and "mine" in card.tags and card.sections["Data"] == "Open data."
    stored = load_model(tmp_path / "out" / "model").state_dict()
    assert all(torch.equal(value, half.state_dict()[name].float()) for name, value in stored.items())
    weights = "diffusion_pytorch_model.safetensors"
    sizes = [(folder / weights).stat().st_size for folder in (source, tmp_path / "out" / "model")]
    assert sizes[0] == sizes[1]
    assert main(["hub", "default", str(tmp_path / "other")]) == 2
    assert "--license-name" in capsys.readouterr().err


def test_the_command_keeps_credits_usage_and_pictures(model, tmp_path):
    source = tmp_path / "model"
    model.save_pretrained(source)
    (source / "failure.jpg").write_bytes(b"\xff\xd8\xff picture")
    usage = "```python\npipe = HarmonizationPipeline.from_pretrained('here')\npipe(a, b, strength=0.5)\n```"
    credit = "| `vae` | by [somebody](page.html), MIT |"
    text = f"# Mine\n\nIt grids.\n\n{usage}\n\n{credit}\n\n## Limits\n\n![A failure](failure.jpg)\n"
    header = "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"
    (source / "README.md").write_text(header + text)
    call = ["hub", str(source), str(tmp_path / "out"), "--id", "someone/grid", "--license", "mit"]
    for more in ([], ["--overwrite"]):
        assert main([*call, *more]) == 0
        written = (tmp_path / "out" / "README.md").read_text()
        assert f"It grids.\n\n{credit}" in written and "license_name" not in written
        assert (
            '\npipe = HarmonizationPipeline.from_pretrained("someone/grid")\npipe(a, b, strength' in written
        )
        assert (tmp_path / "out" / "failure.jpg").read_bytes() == b"\xff\xd8\xff picture"
    again = ["hub", str(tmp_path / "out"), str(tmp_path / "again"), "--id", "someone/grid"]
    assert main(again) == 0  # a folder for the Hub is a source too
    assert (tmp_path / "again" / "README.md").read_text() == written


def test_only_what_was_written_for_the_hub_is_replaced(model, tmp_path):
    photographs, file = tmp_path / "photographs", tmp_path / "file.txt"
    photographs.mkdir()
    (photographs / "only_copy.jpg").write_bytes(b"precious")
    file.write_text("precious")
    for target in (photographs, file):
        with pytest.raises(OutputError, match="something else"):
            save_for_hub(model, target, card=CARD, overwrite=True)
    assert (photographs / "only_copy.jpg").read_bytes() == file.read_bytes() == b"precious"
    folder = save_for_hub(model, tmp_path / "folder", card=CARD)
    (folder / "notes.md").write_text("precious")
    with pytest.raises(OutputError, match="something else"):
        save_for_hub(model, folder, card=CARD, overwrite=True)
    assert (folder / "notes.md").read_text() == "precious"
    (folder / "notes.md").unlink()
    for name, match in (("model/notes.md", "notes.md: would be lost"), ("examples.jpg", "would be lost")):
        (folder / name).write_text("precious")
        with pytest.raises(OutputError, match=match):
            save_for_hub(model, folder, card=CARD, overwrite=True)
        (folder / name).unlink()
    save_for_hub(model, folder, card=CARD, overwrite=True)
    (folder / "model_index.json").write_text("no index")
    with pytest.raises(OutputError, match="something else"):
        save_for_hub(model, folder, card=CARD, overwrite=True)


def test_a_folder_that_cannot_be_made_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("")
    for name, words in (("file/sub", "is a file"), ("a\0b", "is no path"), ("x" * 300, "too long")):
        with pytest.raises(OutputError, match=words):
            save_for_hub(model, tmp_path / name, card=CARD)


def test_examples_and_exports_that_are_none_are_refused(model, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("notes")
    for options, words in (
        ({"examples": tmp_path / "text.jpg"}, "is no JPEG file"),
        ({"onnx": tmp_path / "notes"}, "notes, which has no export.json"),
    ):
        with pytest.raises(InputError, match=words):
            save_for_hub(model, tmp_path / "folder", card=CARD, **options)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("line", ["license: 5", "license: [mit]", "license: mit\ntags: 5"])
def test_cards_with_values_of_other_types_are_refused(tmp_path, line):
    (tmp_path / "README.md").write_text(f"---\n{line}\n---\n")
    with pytest.raises(InputError, match="license: is|is no model card"):
        read_card(tmp_path / "README.md").check()
