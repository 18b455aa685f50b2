"""Compare a model with a case computed by the official implementation, see tests/oracles/README.md."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

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


def load_part(name: str, folder: Path = ORACLES) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Return the official weights of a case, and the arrays stored with it (for a layer, inputs too)."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        stored = dict(archive)
    shapes = {
        str(key): tuple(int(d) for d in shape if d >= 0)
        for key, shape in zip(stored["keys"], stored["shapes"], strict=True)
    }
    return fill_state_dict(shapes, int(stored["seed"]), json.loads(str(stored["gain"]))), stored


def load_case(name: str, folder: Path = ORACLES) -> Case:
    official, stored = load_part(name, folder)
    size = (int(stored[key]) for key in ("seed", "height", "width", "batch"))
    return Case(official, *make_inputs(*size), stored)


def load_official(model: torch.nn.Module, case: Case) -> torch.nn.Module:
    """Load the case's weights strictly, and return the model in evaluation mode."""
    model.load_state_dict(model.convert_official(case.official), strict=True)
    return model.eval()


def assert_close(ours: Tensor, stored: np.ndarray, stride: int = 1, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(ours[..., ::stride, ::stride].numpy(), stored, rtol=0, atol=atol)


def forward_with(model: torch.nn.Module, case: Case, **known: object) -> Tensor:
    """Run `forward` with results of the model's methods that were computed before from the same inputs.

    The networks of the cases have full size, and a second pass would take as long as the first.
    """
    with ExitStack() as stack:
        for method, result in known.items():
            stack.enter_context(patch.object(model, method, return_value=result))
        return model(case.composite, case.mask)


def assert_matches_official(model: torch.nn.Module, case: Case, blended: bool = False) -> None:
    """`predict` is the official output; `forward` is that, clamped and pasted on the composite.

    Args:
        model: With any weights.
        case: See `load_case`.
        blended: The official output is pasted already, so that `forward` is compared with it.
    """
    load_official(model, case)
    with torch.no_grad():
        predicted = model.predict(case.composite, case.mask)
        harmonized = forward_with(model, case, predict=predicted)
    assert_close(harmonized if blended else predicted, case.stored["output"], int(case.stored["stride"]))
    if "extra_raw" in case.stored:
        assert_close(predicted, case.stored["extra_raw"], 4)
    inside = (case.mask > 0).expand_as(case.composite)  # the masks of the cases are hard
    assert torch.equal(harmonized[~inside], case.composite[~inside])
    torch.testing.assert_close(harmonized[inside], predicted.clamp(0, 1)[inside], rtol=0, atol=1e-6)


def assert_layer_matches_official(
    layer: torch.nn.Module, name: str, rename: Callable[[str], str | None] = lambda key: key
) -> None:
    """Load a single layer's official weights strictly (`rename` returns None for unused keys) and compare."""
    official, stored = load_part(name)
    weights = {ours: tensor for key, tensor in official.items() if (ours := rename(key)) is not None}
    shapes = {key: parameter.shape for key, parameter in layer.state_dict().items()}
    layer.load_state_dict({key: tensor.view(shapes[key]) for key, tensor in weights.items()}, strict=True)
    x, mask = torch.from_numpy(stored["x"]), torch.from_numpy(stored["mask"])
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            output = layer(x.contiguous(memory_format=memory_format), mask)
        assert_close(output, stored["output"], atol=1e-5)
