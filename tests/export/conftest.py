from functools import cache

import numpy as np
import pytest
import torch
from small_models import Dense, Gain, GainMap
from torch.onnx._internal.exporter._registration import ONNXRegistry

from harmony_diffusion.export.onnx import export_onnx

KINDS = {"gain": Gain, "gain_map": GainMap, "dense": Dense}


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators():
    """PyTorch builds its table of ONNX operators for each graph anew, which takes half of a small export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def models():
    return {name: make().eval() for name, make in KINDS.items()}


@pytest.fixture(scope="session")
def exported(models, tmp_path_factory):
    """Folders of three small exported models: filters for the frame, maps of filters, dense."""
    folder = tmp_path_factory.mktemp("exported")
    return {name: export_onnx(model, folder / name) for name, model in models.items()}


@pytest.fixture
def arrays():
    """A picture (1, 3, 90, 120) and a soft mask (1, 1, 90, 120) with an exact 0 and an exact 1 region."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 90, 120, generator=generator).numpy()
    mask = np.zeros((1, 1, 90, 120), np.float32)
    mask[..., 20:60, 30:80] = 1
    mask[..., 60:64, 30:80] = 0.4
    return image, mask
