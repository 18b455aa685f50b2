"""Checks that every network passes, called from the test file of each."""

import copy

import pytest
import torch
from torch import Tensor, nn

from harmony_diffusion.errors import CheckpointError


def sample(size: int = 64, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(batch, 3, 8, 8, generator=generator)
    composite = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    mask = torch.zeros(batch, 1, size, size)
    mask[..., size // 4 : size // 2, size // 4 : 3 * size // 4] = 1
    return composite, mask


def check_converter_is_strict(model: nn.Module, official: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="surprise"):
        model.convert_official({**official, "surprise.weight": torch.zeros(1)})
    incomplete = dict(list(official.items())[1:])
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(model.convert_official(incomplete), strict=True)


def check_bfloat16(model: nn.Module, tolerance: float = 0.1, size: int = 64) -> None:
    composite, mask = sample(size)
    model = model.eval()
    with torch.no_grad():
        expected = model(composite, mask)
        half = copy.deepcopy(model).bfloat16()(composite.bfloat16(), mask.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(composite, mask)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().mean() < tolerance * expected.std()
    assert (mixed.float() - expected).abs().mean() < tolerance * expected.std()


def check_gradient_checkpointing(model: nn.Module, size: int = 64) -> None:
    """The same gradients and running statistics with and without, and fewer activations kept."""
    composite, mask = sample(size)
    results = []
    for checkpointing in (False, True):
        twin = copy.deepcopy(model).train()
        if checkpointing:
            twin.enable_gradient_checkpointing()
            assert twin.is_gradient_checkpointing
        kept: set[int] = set()

        def keep(tensor: Tensor, kept: set[int] = kept) -> Tensor:
            kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = (twin(composite, mask) - 0.3).square().sum()
        loss.backward()
        gradients = [p.grad for p in twin.parameters() if p.requires_grad]
        statistics = [b for name, b in twin.named_buffers() if "running" in name]
        results.append((gradients, statistics, len(kept)))
    (gradients, statistics, kept_plain), (gradients_again, statistics_again, kept_less) = results
    for a, b in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(statistics, statistics_again, strict=True):
        assert torch.equal(a, b)
    assert kept_less < kept_plain


def check_no_graph_break(model: nn.Module, size: int = 64) -> None:
    composite, mask = sample(size)
    torch._dynamo.reset()
    with torch.no_grad():
        explanation = torch._dynamo.explain(model.eval())(composite, mask)
    assert explanation.graph_break_count == 0, explanation.break_reasons
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(model.train())(composite, mask)
    assert explanation.graph_break_count == 0, explanation.break_reasons
