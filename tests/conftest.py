import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

# The variable serves checkouts that do not lie beside the reference material.
SHARED = Path(os.environ.get("HARMONY_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the project's reference material; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("the reference material beside the checkout (../shared) is absent")
    return SHARED


@pytest.fixture
def tiny_sample() -> tuple[torch.Tensor, torch.Tensor]:
    """A composite (2, 3, 64, 48) and a soft mask (2, 1, 64, 48) with an exact 0 and an exact 1 region."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 8, 6, generator=generator)
    composite = torch.nn.functional.interpolate(coarse, size=(64, 48), mode="bilinear").clamp(0, 1)
    mask = torch.zeros(2, 1, 64, 48)
    mask[0, :, 16:48, 12:36] = 1
    mask[1, :, 8:30, 20:40] = 1
    mask[:, :, 24:28, 22:26] = 0.5
    return composite, mask


@pytest.fixture
def tiny_sd2_components() -> dict[str, Any]:
    """Real components of the diffusion pipeline at tiny size; the ControlNets act as if they were trained."""
    from tiny_diffusion import trained_like

    return trained_like()
