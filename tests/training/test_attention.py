import importlib.util
import sys
import types

import pytest
import torch
from tiny_diffusion import call, make_pipe

from harmony_diffusion.errors import InputError, MissingDependencyError
from harmony_diffusion.training.attention import FLAG, enable_xformers


def has_xformers():
    return importlib.util.find_spec("xformers") is not None


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
    with pytest.raises(MissingDependencyError, match=rf"{FLAG} .*harmony-diffusion\[xformers\]"):
        enable_xformers([])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_without_cuda_the_flag_is_refused(monkeypatch):
    if not has_xformers():  # the check of the device comes after that of the package
        package = types.ModuleType("xformers")
        package.ops = types.ModuleType("xformers.ops")
        monkeypatch.setitem(sys.modules, "xformers", package)
        monkeypatch.setitem(sys.modules, "xformers.ops", package.ops)
    with pytest.raises(InputError, match="needs a CUDA device"):
        enable_xformers([])


@pytest.mark.skipif(has_xformers(), reason="is about environments without xformers")
def test_the_method_of_the_pipeline_says_what_is_missing(tiny_sd2_components):
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        make_pipe(tiny_sd2_components).enable_xformers_memory_efficient_attention()


@pytest.mark.parametrize("script", ["train_controlnet", "train_inpainting"])
def test_the_scripts_have_the_flag_of_diffusers_and_use_it(script):
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "train" / f"{script}.py").read_text()
    assert "if args.enable_xformers_memory_efficient_attention:\n        enable_xformers(" in text
    assert FLAG == "--enable_xformers_memory_efficient_attention"


@pytest.mark.gpu
@pytest.mark.skipif(not (has_xformers() and torch.cuda.is_available()), reason="needs xformers and CUDA")
def test_results_with_xformers_are_close_on_a_gpu(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components).to("cuda", torch.float16)
    usual = call(pipe, output_type="pt").images
    pipe.enable_xformers_memory_efficient_attention()
    assert any("XFormers" in type(p).__name__ for p in pipe.unet.attn_processors.values())
    assert (call(pipe, output_type="pt").images - usual).abs().max() < 0.05
