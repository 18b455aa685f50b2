import json

import pytest
import torch
from diffusers import PNDMScheduler, UniPCMultistepScheduler

from harmony_diffusion.diffusion.base_models import BASE_MODELS, ENVIRONMENT_VARIABLE, load_base_components
from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder with the layout and the scheduler of Stable Diffusion 2 inpainting, and no ControlNets."""
    folder = tmp_path_factory.mktemp("base")
    components = random_components()
    published = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    components["scheduler"] = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **published)
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        components[name].save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.mark.parametrize("by_variable", [False, True])
def test_base_loads_from_a_folder_with_a_fast_scheduler(by_variable, repository, monkeypatch):
    if by_variable:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(repository))
    components = load_base_components(None if by_variable else repository, dtype=torch.bfloat16)
    pipe = StableDiffusionHarmonizationPipeline(**components)
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    assert pipe.scheduler.config.beta_schedule == "scaled_linear" and pipe.scheduler.config.steps_offset == 1
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.bfloat16


def test_an_argument_wins_over_the_variable(repository, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "/no/such/folder")
    assert load_base_components(repository)["unet"].config.in_channels == 9
    with pytest.raises(CheckpointError, match="/no/such/folder: there is no such folder"):
        load_base_components()


@pytest.mark.parametrize("name", ["2-inpainting", "2", "2-base", "2-1", "2-1-base"])
def test_ids_that_are_gone_are_explained(name):
    with pytest.raises(CheckpointError, match="November 2025.*sd2-community"):
        load_base_components(f"stabilityai/stable-diffusion-{name}")


def test_without_network_every_candidate_is_named():
    with pytest.raises(CheckpointError) as error:
        load_base_components()
    for model in BASE_MODELS:
        assert model.repository in str(error.value)
    assert ENVIRONMENT_VARIABLE in str(error.value)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("unet/config.json", {"in_channels": 4}, "4 input channels"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "sample.*velocity"),
    ],
)
def test_another_kind_of_model_is_refused(file, change, words, tmp_path):
    components = random_components()
    if "in_channels" in change:
        components["unet"].conv_in = torch.nn.Conv2d(4, 32, 3, padding=1)
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        components[name].save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=words):
        load_base_components(tmp_path)


def test_parts_of_a_folder_in_half_precision_have_one_type(tmp_path):
    components = random_components("tiny", dtype=torch.float16)
    components |= {"controlnet_high": None, "controlnet_low": None}
    StableDiffusionHarmonizationPipeline(**components).save_pretrained(tmp_path)
    for dtype, expected in ((None, torch.float32), (torch.float16, torch.float16)):
        found = load_base_components(tmp_path, dtype=dtype)
        assert {found[name].dtype for name in ("unet", "vae", "text_encoder")} == {expected}
