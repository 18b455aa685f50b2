"""`from_pretrained` heeds or refuses every keyword, and says what a wrong name, file or folder is."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_diffusion import call, make_pipe, object_mask, picture, trained_like

from harmony_diffusion import HarmonizationPipeline, StableDiffusionHarmonizationPipeline, load_pipeline
from harmony_diffusion.errors import CheckpointError, InputError, InputTypeError
from harmony_diffusion.models import create_model

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "checkpoints" / "mini_dual_controlnet"
WEB_PAGE = "<!DOCTYPE html>\n<html><body>404: not found</body></html>\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders that `save_pretrained` wrote."""
    folder = tmp_path_factory.mktemp("saved")
    make_pipe(trained_like()).save_pretrained(folder / "diffusion")
    HarmonizationPipeline.from_pretrained("default").save_pretrained(folder / "default")
    HarmonizationPipeline.from_pretrained("default").model.save_pretrained(folder / "model")
    return folder


def open_with(kind):
    return StableDiffusionHarmonizationPipeline if kind == "diffusion" else HarmonizationPipeline


@pytest.mark.parametrize("kind", ["diffusion", "default"])
def test_a_saved_folder_opens_without_the_library_being_named(kind, saved):
    loaded = DiffusionPipeline.from_pretrained(saved / kind, trust_remote_code=True)
    assert type(loaded) is open_with(kind)
    again = open_with(kind).from_pretrained(saved / kind)
    assert type(again) is open_with(kind) is type(load_pipeline(saved / kind))
    entry = (saved / kind / "pipeline.py").read_text()
    assert "import" in entry and len(entry.splitlines()) == 3


def test_the_shipped_checkpoint_opens_by_diffusers_alone_and_gives_the_same():
    loaded = DiffusionPipeline.from_pretrained(MINI, trust_remote_code=True)
    own = StableDiffusionHarmonizationPipeline.from_pretrained(MINI)
    for pipe in (loaded, own):
        pipe.set_progress_bar_config(disable=True)
    composite, mask = picture((128, 128)), object_mask((128, 128))
    first, second = (call(pipe, composite, mask).images[0] for pipe in (loaded, own))
    assert np.array_equal(first, second)


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.S)


def test_the_documented_line_that_opens_a_folder_runs():
    """All documents, so that the line may move between them."""
    documents = [ROOT / "README.md", ROOT / "pipelines" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    lines = [
        line.partition("#")[0].strip()
        for path in documents
        for block in python_blocks(path)
        for line in block.splitlines()
        if "DiffusionPipeline.from_pretrained(" in line and "trust_remote_code" in line
    ]
    lines = [line for line in lines if re.search(r"[ (=]DiffusionPipeline\.", line)]
    assert lines
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "\n".join(["from diffusers import DiffusionPipeline", *lines, "print(type(pipe))"]),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "HarmonizationPipeline" in run.stdout


def stderr_of(code, folder):
    """Run code in a new process, where warnings are errors; return what it printed beside progress bars."""
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [
        line for line in re.split(r"[\r\n]", run.stderr) if line.strip() and not re.search(r"\d+%\|", line)
    ]


def test_the_first_lines_of_the_readme_print_no_warning(tmp_path):
    blocks = python_blocks(ROOT / "README.md")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert not stderr_of(next(b for b in blocks if 'from_pretrained("default")' in b), tmp_path)
    assert (tmp_path / "result.png").is_file()


def test_loading_the_diffusion_pipeline_prints_no_warning():
    code = "from harmony_diffusion import StableDiffusionHarmonizationPipeline as Pipeline\n"
    assert not stderr_of(code + "Pipeline.from_pretrained('checkpoints/mini_dual_controlnet')", ROOT)


@pytest.mark.parametrize("kind", ["diffusion", "default"])
def test_loading_and_converting_logs_no_warning(kind, saved, caplog):
    with caplog.at_level(logging.WARNING):
        for name in ("diffusers", "harmony_diffusion"):
            logging.getLogger(name).propagate = True
        pipe = open_with(kind).from_pretrained(saved / kind, dtype=torch.bfloat16)
        open_with(kind).from_pipe(pipe)
        if kind == "default":
            HarmonizationPipeline.from_pretrained("default", dtype="float16")
    assert not [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        ("float16", torch.float16),
        ("torch.bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("auto", torch.float32),
        (None, torch.float32),
        ({"model": "float16", "default": torch.float32}, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_types_are_heeded_by_either_name(keyword, value, dtype, saved):
    for source in ("default", saved / "default", saved / "model"):
        pipe = HarmonizationPipeline.from_pretrained(source, **{keyword: value})
        assert {weight.dtype for weight in pipe.model.parameters()} == {dtype}


def test_auto_keeps_the_type_of_each_component(tmp_path):
    components = trained_like()
    torch.nn.Module.to(components["unet"], torch.bfloat16)
    for name in ("controlnet_high", "controlnet_low"):
        torch.nn.Module.to(components[name], torch.bfloat16)
    make_pipe(components).save_pretrained(tmp_path)
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path, dtype="auto")
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    half = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path, torch_dtype="float16")
    assert half.unet.dtype == half.vae.dtype == torch.float16


@pytest.mark.parametrize("value", ["float17", "int8", torch.int64, 16, {"model": "many"}])
def test_wrong_types_are_refused_by_name(value, saved):
    for source in ("default", saved / "default"):
        with pytest.raises(InputError, match="torch_dtype: must be a floating-point type"):
            HarmonizationPipeline.from_pretrained(source, torch_dtype=value)
    with pytest.raises(InputError, match="dtype: is float16, and torch_dtype is bfloat16"):
        HarmonizationPipeline.from_pretrained("default", dtype="float16", torch_dtype="bfloat16")


def test_device_map_is_a_device_for_a_model_alone():
    assert HarmonizationPipeline.from_pretrained("default", device_map="cpu").device.type == "cpu"
    for value in ("balanced", "auto", {"model": "cpu"}):
        with pytest.raises(InputError, match="device_map"):
            HarmonizationPipeline.from_pretrained("default", device_map=value)


def test_what_is_fulfilled_anyway_is_taken():
    options = {
        "local_files_only": True,
        "cache_dir": "x",
        "token": "t",
        "use_safetensors": True,
        "variant": None,
    }
    pipe = HarmonizationPipeline.from_pretrained("default", **options, force_download=False)
    assert type(pipe.model).__name__ == "ColorGrid"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variant", "fp16"),
        ("revision", "main"),
        ("force_download", True),
        ("custom_pipeline", "other"),
        ("quantization_config", object()),
        ("max_memory", {0: "1GB"}),
        ("model", create_model("reinhard")),
    ],
)
def test_what_a_model_alone_cannot_heed_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"^{name}: "):
        HarmonizationPipeline.from_pretrained("default", **{name: value})


@pytest.mark.parametrize("kind", ["diffusion", "default", "model"])
@pytest.mark.parametrize(
    ("wrong", "right"), [("torch_dtpe", "torch_dtype"), ("varient", "variant"), ("device-map", "device_map")]
)
def test_misspelt_keywords_are_refused_with_the_right_one(kind, wrong, right, saved):
    with pytest.raises(InputTypeError, match=f"{wrong}: is no keyword.*Did you mean '{right}'"):
        open_with(kind).from_pretrained(saved / kind, **{wrong: "x"})


def test_components_and_settings_are_keywords_of_a_saved_pipeline(saved):
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(
        saved / "diffusion", controlnet_high=None, sigma=3.0
    )
    assert pipe.controlnet_high is None and pipe.config["sigma"] == 3.0
    with pytest.raises(InputTypeError, match="Did you mean 'controlnet_high'"):
        StableDiffusionHarmonizationPipeline.from_pretrained(saved / "diffusion", control_net_high=None)


def empty(folder):
    folder.mkdir()
    return folder, "is an empty folder"


def something_else(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("hello")
    return folder, "has no model_index.json.*notes.txt"


def one_too_high(folder):
    folder.mkdir()
    shutil.copytree(MINI.parent / MINI.name / "scheduler", folder / "inside" / "scheduler")
    (folder / "inside" / "model_index.json").write_text("{}")
    return folder, "Did you mean '.*inside'"


def another_pipeline(folder):
    folder.mkdir()
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder, "holds a FluxPipeline, which lacks"


def web_page(folder):
    folder.mkdir()
    (folder / "model_index.json").write_text(WEB_PAGE)
    return folder, "is a web page"


def pointer(folder):
    folder.mkdir()
    (folder / "model_index.json").write_text(LFS)
    return folder, "is a Git LFS pointer.*git lfs pull"


def broken_json(folder):
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": ')
    return folder, "is no JSON file"


def a_list(folder):
    folder.mkdir()
    (folder / "model_index.json").write_text("[1, 2]")
    return folder, "holds a list"


def a_file(folder):
    folder.write_text("x")
    return folder, "is a file"


WRONG = (
    empty,
    something_else,
    one_too_high,
    another_pipeline,
    web_page,
    pointer,
    broken_json,
    a_list,
    a_file,
)


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", ["diffusion", "default"])
def test_wrong_folders_are_named(make, kind, tmp_path):
    folder, words = make(tmp_path / "given")
    with pytest.raises(CheckpointError, match=words):
        open_with(kind).from_pretrained(folder)


DAMAGE = {
    "web page": lambda path: path.write_text(WEB_PAGE),
    "Git LFS pointer": lambda path: path.write_text(LFS),
    "file of 0 bytes": lambda path: path.write_bytes(b""),
    "ends after": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "no safetensors file": lambda path: path.write_bytes(b"\xff" * 400),
}


@pytest.mark.parametrize("words", DAMAGE)
@pytest.mark.parametrize(
    ("kind", "part"),
    [("diffusion", "unet"), ("default", "model"), ("model", ".")],
    ids=["diffusion", "pipeline", "model"],
)
def test_damaged_weights_are_named(words, kind, part, saved, tmp_path):
    folder = shutil.copytree(saved / kind, tmp_path / "copy")
    DAMAGE[words](folder / part / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=f"diffusion_pytorch_model.safetensors: .*{words}"):
        open_with(kind).from_pretrained(folder)


@pytest.mark.parametrize("words", ["absent", "empty", "config.json"])
def test_damaged_components_are_named(words, saved, tmp_path):
    folder = shutil.copytree(saved / "diffusion", tmp_path / "copy")
    if words == "config.json":
        (folder / "vae" / "config.json").write_text(WEB_PAGE)
    else:
        shutil.rmtree(folder / "vae")
    if words == "empty":
        (folder / "vae").mkdir()
    with pytest.raises(CheckpointError, match=f"vae.*{words}"):
        StableDiffusionHarmonizationPipeline.from_pretrained(folder)


def test_each_pipeline_names_the_class_for_the_folder_of_the_other(saved):
    with pytest.raises(CheckpointError, match="lacks model.*`StableDiffusionHarmonizationPipeline."):
        HarmonizationPipeline.from_pretrained(saved / "diffusion")
    with pytest.raises(CheckpointError, match="lacks .*unet.*`HarmonizationPipeline.from_pretrained`"):
        StableDiffusionHarmonizationPipeline.from_pretrained(saved / "default")
    with pytest.raises(CheckpointError, match="single ColorGrid"):
        StableDiffusionHarmonizationPipeline.from_pretrained(saved / "model")
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        HarmonizationPipeline.from_pretrained(saved / "diffusion" / "unet")


def test_a_model_of_another_architecture_is_refused_with_its_extra_part(saved, tmp_path):
    folder = shutil.copytree(saved / "diffusion", tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "_class_name": "StableDiffusionXLInpaintPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="StableDiffusionXLInpaintPipeline, which has text_encoder_2"):
        StableDiffusionHarmonizationPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("default", "defualt", "Did you mean 'default'"),
        ("default", "color-grid", "Did you mean 'color_grid'"),
        ("default", "nothing like it", "Known names: default, identity"),
        ("default", "hdnet", "no weights come with it"),
        ("default", "path/to/a/pipeline", "there is no folder"),
        ("diffusion", "defualt", "no folder of this name"),
        ("diffusion", "default", "`HarmonizationPipeline.from_pretrained\\('default'\\)`"),
        ("diffusion", "no-such-owner/no-such-pipeline", "nor reachable on the Hub"),
        ("default", "no-such-owner/no-such-pipeline", "nor reachable on the Hub"),
    ],
)
def test_typing_errors_are_answered(kind, name, words):
    with pytest.raises(CheckpointError, match=words):
        open_with(kind).from_pretrained(name)


def test_a_misspelt_folder_is_answered_with_its_neighbour(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    with pytest.raises(CheckpointError, match="Did you mean '.*diffusion'"):
        StableDiffusionHarmonizationPipeline.from_pretrained(f"{saved.name}/difusion")


@pytest.mark.parametrize("kind", ["diffusion", "default"])
def test_saving_again_replaces_the_entry_and_keeps_the_settings(kind, saved, tmp_path):
    pipe = open_with(kind).from_pretrained(saved / kind)
    for _ in range(2):
        pipe.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {"model_index.json", "pipeline.py"}
    again = open_with(kind).from_pretrained(tmp_path)
    settings = {name: value for name, value in pipe.config.items() if not name.startswith("_")}
    assert {name: again.config[name] for name in settings} == settings
