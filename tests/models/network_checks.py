"""Checks that every network passes, called from the test file of each."""

import pytest
import torch
from torch import Tensor, nn

from harmony_diffusion.errors import CheckpointError


def picture_and_mask(batch=2, height=64, width=48):
    """Return textured composites and masks with an exact 0, an exact 1 and a soft region, all different."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(batch, 3, 8, 6, generator=generator)
    composite = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    composite = (0.8 * composite + 0.2 * torch.rand(composite.shape, generator=generator)).clamp(0, 1)
    mask = torch.zeros(batch, 1, height, width)
    for i in range(batch):
        mask[i, :, height // 4 : height // 2 + 4 * i, width // 3 : width - 6 - 5 * i] = 1
        mask[i, :, height // 4 : height // 4 + 9, width // 3 : width // 2] = 0.4
    return composite, mask


def assert_converter_is_strict(model: nn.Module, official: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="surprise"):
        model.convert_official({**official, "surprise.weight": torch.zeros(1)})
    incomplete = dict(list(official.items())[1:])
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(model.convert_official(incomplete), strict=True)


def saved_megabytes(model, composite, mask):
    """Return the size of what a training step keeps for its backward pass, without the parameters."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(composite, mask)
    return sum(size for size, _ in kept.values()) / 2**20


def assert_checkpointing_changes_memory_only(model, composite, mask, saving):
    """The same output, gradients and running statistics; at most 1 / `saving` of the memory."""
    results = []
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for checkpointing in (False, True):
        model.load_state_dict(start)
        model.train()
        model.enable_gradient_checkpointing() if checkpointing else model.disable_gradient_checkpointing()
        torch.manual_seed(0)
        harmonized = model(composite, mask)
        model.zero_grad()
        (harmonized - 0.3).square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        results.append([harmonized.detach(), *gradients, *(b.clone() for b in model.buffers())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)
    small = saved_megabytes(model, composite, mask)
    model.disable_gradient_checkpointing()
    assert saving * small < saved_megabytes(model, composite, mask)


def assert_bfloat16_is_close(model, composite, mask, atol):
    """Weights and input in bfloat16, and autocast, give the float32 result to within `atol`."""
    model.eval()
    with torch.no_grad():
        exact = model(composite, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(composite, mask)
        low = model.to(torch.bfloat16)(composite.bfloat16(), mask.bfloat16())
    assert mixed.dtype == torch.float32 and low.dtype == torch.bfloat16
    torch.testing.assert_close(mixed, exact, rtol=0, atol=atol)
    torch.testing.assert_close(low.float(), exact, rtol=0, atol=atol)


def assert_compiles_without_graph_breaks(model, composite, mask):
    """One graph in evaluation and in training mode, with the eager result."""
    for training in (True, False):
        torch._dynamo.reset()
        explanation = torch._dynamo.explain(model.train(training))(composite, mask)
        assert explanation.graph_break_count == 0, explanation.break_reasons
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(composite, mask)
        torch.testing.assert_close(compiled, model(composite, mask), rtol=0, atol=1e-5)
