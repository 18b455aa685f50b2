import argparse

import pytest

from harmony_diffusion.errors import InputError
from harmony_diffusion.training.launching import make_accelerator

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "LOCAL_RANK": "0"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("asked", "arguments", "told"),
    [
        (FSDP, {"mixed_precision": "fp16"}, "bf16"),
        (FSDP, {"use_8bit_adam": True}, "8bit"),
        (FSDP | {"FSDP_VERSION": "1"}, {}, "fsdp_version: must be 2"),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {}, "zero_stage: must be 1 or 2"),
        (DEEPSPEED | {"ACCELERATE_USE_CPU": "true"}, {}, "CUDA_VISIBLE_DEVICES"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {}, "accelerate launch"),
    ],
)
def test_what_does_not_go_with_shards_is_refused_before_anything_starts(asked, arguments, told, monkeypatch):
    for name in {*FSDP, *DEEPSPEED, "ACCELERATE_USE_CPU"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    args = argparse.Namespace(mixed_precision="no", use_8bit_adam=False, gradient_accumulation_steps=1)
    with pytest.raises(InputError, match=told):
        make_accelerator(argparse.Namespace(**vars(args) | arguments))
