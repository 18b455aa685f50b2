import pytest
import torch

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.layers import clamp_unit, crop_padding, init_gaussian_xavier_, pad_to_multiple
from harmony_diffusion.models.official_keys import rename_keys


def test_clamp_passes_the_gradient_inward_only():
    x = torch.tensor([-0.5, -0.5, 0.5, 0.5, 1.5, 1.5], requires_grad=True)
    clamped = clamp_unit(x)
    assert torch.equal(clamped, x.detach().clamp(0, 1))
    # Descent moves against the gradient: -1 moves up, +1 moves down.
    clamped.backward(torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]))
    assert x.grad.tolist() == [-1.0, 0.0, -1.0, 1.0, 0.0, 1.0]


def test_padding_is_zero_symmetric_and_undone():
    image = torch.ones(1, 2, 5, 8)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 2, 8, 8)
    assert padded[0, 0, :, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]  # three rows: one above, two below
    assert torch.equal(crop_padding(padded, (5, 8)), image)


def test_initialisation_has_the_variance_of_the_mean_fan():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(64, 192, 3)
    init_gaussian_xavier_(layer, magnitude=2)
    expected = (2 / ((64 * 9 + 192 * 9) / 2)) ** 0.5
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert not layer.bias.any()


def test_renaming_refuses_two_keys_of_one_name():
    tensor = torch.zeros(1)
    with pytest.raises(CheckpointError, match="Two keys"):
        rename_keys({"a.weight": tensor, "b.weight": tensor}, [(r"[ab]\.(.+)", r"\1")], "demo")
    assert rename_keys({"a.blur": tensor}, [(r"a\.blur", None)], "demo") == {}
