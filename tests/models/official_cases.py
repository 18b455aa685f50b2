"""Compare a model with a case computed by the official implementation, see tests/oracles/README.md."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from oracles.oracle_weights import fill_state_dict, make_inputs
from torch import Tensor

ORACLES = Path(__file__).resolve().parents[1] / "oracles"


@dataclass
class Case:
    """One case: official weights, inputs, and the stored arrays (`output`, `stride`, `extra_*`)."""

    official: dict[str, Tensor]
    composite: Tensor
    mask: Tensor
    stored: dict[str, np.ndarray]


def load_case(name: str, folder: Path = ORACLES) -> Case:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        stored = dict(archive)
    shapes = {
        str(key): tuple(int(d) for d in shape if d >= 0)
        for key, shape in zip(stored["keys"], stored["shapes"], strict=True)
    }
    seed, height, width, batch = (int(stored[key]) for key in ("seed", "height", "width", "batch"))
    official = fill_state_dict(shapes, seed, json.loads(str(stored["gain"])))
    return Case(official, *make_inputs(seed, height, width, batch), stored)


def load_official(model: torch.nn.Module, case: Case) -> torch.nn.Module:
    """Load the case's weights strictly, and return the model in evaluation mode."""
    model.load_state_dict(model.convert_official(case.official), strict=True)
    return model.eval()


def assert_close(ours: Tensor, stored: np.ndarray, stride: int = 1) -> None:
    np.testing.assert_allclose(ours[..., ::stride, ::stride].numpy(), stored, rtol=0, atol=1e-4)


def assert_matches_official(model: torch.nn.Module, case: Case) -> None:
    """`predict` is the official output; `forward` is that, clamped and pasted on the composite."""
    load_official(model, case)
    with torch.no_grad():
        predicted = model.predict(case.composite, case.mask)
        harmonized = model(case.composite, case.mask)
    assert_close(predicted, case.stored["output"], int(case.stored["stride"]))
    pasted = torch.where(
        case.mask > 0, predicted.clamp(0, 1), case.composite
    )  # the masks of the cases are hard
    torch.testing.assert_close(harmonized, pasted, rtol=0, atol=1e-6)
