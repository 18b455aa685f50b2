"""Offloaded models: their hooks run for every way a model is called, and no tensors of two devices meet."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from fake_accelerator import OnAccelerator, fake_accelerator
from small_configs import SMALL
from tiny_diffusion import object_mask, picture

from harmony_diffusion.highres.offload import execution_device, is_offloaded
from harmony_diffusion.models import MODELS, create_model
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

# The fake accelerator knows no autocast (RainNet's statistics) and no `tolist` (Harmonizer's filters).
UNKNOWN_TO_THE_FAKE = {"rain_net", "hdnet", "hdnet_lite", "harmonizer", "harmonizer_lite"}
WAYS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
    "group": lambda pipe: pipe.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level"
    ),
}


def make_pipe(name):
    torch.manual_seed(0)
    pipe = HarmonizationPipeline(create_model(name, **SMALL.get(name, {})))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def harmonize(pipe):
    composite = picture((96, 80))
    return pipe(composite, object_mask((96, 80)), output_type="array").images[0]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in UNKNOWN_TO_THE_FAKE])
def test_an_offloaded_model_computes_on_the_accelerator_and_gives_the_same(name):
    pipe = make_pipe(name)
    # In the other format, kernels for tensors of two kinds round one pixel of IDIHHRNet differently.
    pipe.model.to(memory_format=torch.contiguous_format)
    expected = harmonize(pipe)
    if next(pipe.model.parameters(), None) is None:
        pipe.enable_model_cpu_offload(device="cpu")  # nothing to move, and nothing fails
        assert np.array_equal(harmonize(pipe), expected)
        return
    with fake_accelerator() as device:
        _, hook = cpu_offload_with_hook(pipe.model, execution_device=device)
        assert execution_device(pipe.model) == device
        result = harmonize(pipe)
        assert all(isinstance(weight, OnAccelerator) for weight in pipe.model.parameters())
        hook.offload()
        assert not any(isinstance(weight, OnAccelerator) for weight in pipe.model.parameters())
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("name", sorted(UNKNOWN_TO_THE_FAKE))
def test_hooks_run_around_the_methods_of_white_box_models(name):
    pipe = make_pipe(name)
    expected = harmonize(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    (hook,), runs = pipe._all_hooks, []
    before = hook.hook.pre_forward
    hook.hook.pre_forward = lambda *arguments, **keywords: (runs.append(1), before(*arguments, **keywords))[1]
    assert np.array_equal(harmonize(pipe), expected)
    assert runs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["color_grid", "harmonizer", "idih", "gknet"])
def test_every_kind_of_offload_gives_the_same_twice(way, name):
    pipe = make_pipe(name)
    expected = harmonize(pipe)
    WAYS[way](pipe)
    assert is_offloaded(pipe.model)
    for _ in range(2):
        assert np.array_equal(harmonize(pipe), expected)


def test_the_fake_accelerator_refuses_tensors_of_two_devices():
    with fake_accelerator() as device:
        away = torch.ones(3).to(device)
        assert torch.equal((away + away).cpu(), torch.full((3,), 2.0))
        with pytest.raises(RuntimeError, match="one device"):
            away + torch.ones(3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_offload_on_a_gpu(name):
    pipe = make_pipe(name)
    expected = harmonize(pipe).astype(int)
    pipe.enable_model_cpu_offload(device="cuda")
    for _ in range(2):
        assert np.abs(harmonize(pipe) - expected).max() <= 1
