"""An accelerator for tests: its tensors lie on another device, and cannot be mixed with the processor's.

Within `fake_accelerator()` the device "meta" holds data: `tensor.to("meta")` wraps the tensor, `.cpu()` takes
it out again, and an operation on tensors of both devices raises an error, as on a real accelerator.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")


class OnAccelerator(torch.Tensor):
    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), dtype=data.dtype, device=DEVICE
        )

    def __init__(self, data):
        self.data_on_processor = data

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def run(function, args, kwargs):
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, OnAccelerator)]
    target = torch.device(kwargs.get("device") or (DEVICE if away else "cpu"))
    if (
        away
        and function is not torch.ops.aten._to_copy.default
        and function is not torch.ops.aten.copy_.default
    ):
        # As on a real accelerator, single numbers and indices may lie on the processor.
        stray = [
            tensor
            for tensor in tensors
            if not isinstance(tensor, OnAccelerator) and tensor.ndim and tensor.is_floating_point()
        ]
        if stray:
            raise RuntimeError(f"{function}: expected all tensors on one device, found two")

    def bring(one):
        return one.data_on_processor if isinstance(one, OnAccelerator) else one

    args, kwargs = tree_map(bring, (args, kwargs))
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*args, **kwargs)
    if target.type != DEVICE.type:
        return result
    originals = {id(bring(tensor)): tensor for tensor in away}

    def send(one):
        if not isinstance(one, torch.Tensor):
            return one
        return originals.get(id(one)) if id(one) in originals else OnAccelerator(one)

    return tree_map(send, result)


class _Moves(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


@contextmanager
def fake_accelerator():
    with _Moves():
        yield DEVICE
