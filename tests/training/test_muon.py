"""Muon and AdamW as one optimizer, and which parameters of a network each of them trains."""

import copy

import pytest
import torch

from harmony_diffusion.errors import InputError
from harmony_diffusion.models import create_model
from harmony_diffusion.training.muon import MuonWithAdamW
from harmony_diffusion.training.optimizers import parameter_groups


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 6), (5,))]


def make_optimizer(parameters):
    matrix, vector = parameters
    groups = [{"params": [vector]}, {"params": [matrix], "matrices": True}]
    return MuonWithAdamW(groups, lr=1e-2, weight_decay=0.1, eps=1e-8)


def do_steps(parameters, *optimizers):
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = parameter.detach().sin()
        for optimizer in optimizers:
            optimizer.step()


def test_equals_both_optimizers_of_torch():
    ours, theirs = make_parameters(), make_parameters()
    do_steps(ours, make_optimizer(ours))
    muon = torch.optim.Muon(theirs[:1], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    do_steps(theirs, muon, torch.optim.AdamW(theirs[1:], lr=1e-2, weight_decay=0.1, fused=True))
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_learning_rate_of_each_group_counts():
    parameters = make_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = make_optimizer(parameters)
    optimizer.param_groups[1]["lr"] = 0.0
    do_steps(parameters, optimizer)
    assert torch.equal(parameters[0], before[0]) and not torch.equal(parameters[1], before[1])


def test_loaded_state_goes_on_with_the_same_bits():
    first = make_parameters()
    optimizer = make_optimizer(first)
    do_steps(first, optimizer)
    second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
    other = make_optimizer(second)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    do_steps(first, optimizer)
    do_steps(second, other)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert len(other.state) == 2


def test_only_matrices_of_the_named_layers_use_muon():
    model = create_model("color_grid", encoder_size=64, channels=32, depth=1, heads=2)
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model, muon_layers=["layers.", "embed"], muon_factor=4.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_kind = {g["matrices"]: {names[parameter] for parameter in g["params"]} for g in groups}
    assert {g["matrices"]: g["factor"] for g in groups} == {True: 4.0, False: 1.0}
    layers = ("qkv", "project", "expand", "reduce")
    expected = {"embed.weight", "embed_statistics.0.weight", "embed_statistics.2.weight"}
    assert by_kind[True] == expected | {f"layers.0.{layer}.weight" for layer in layers}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert by_kind[False] == trained - by_kind[True]


@pytest.mark.parametrize("layers", [["nothing"], [""]], ids=["none", "all"])
def test_layers_that_leave_one_optimizer_without_parameters_are_refused(layers):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    with pytest.raises(InputError, match="muon_layers"):
        parameter_groups(model, muon_layers=layers)
