import math

import pytest
import torch
from hdnet_plain import HDNetPlain, PlainLocalDynamics
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    picture_and_mask,
)
from official_cases import assert_layer_matches_official, assert_matches_official, load_case
from oracles.oracle_weights import fill_state_dict, make_inputs
from overfit import overfit
from torch.utils._python_dispatch import TorchDispatchMode

from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models.hdnet import HDNet, LocalDynamics, MaskAwareDynamics


def test_small_network_equals_the_official_one():
    assert_matches_official(HDNet(base_channels=8), load_case("hdnet_ngf8_s11_192x320"), blended=True)


@pytest.mark.parametrize("base_channels", [8, 32])
@pytest.mark.parametrize("size", ["192x320", "256x256"])
def test_network_equals_the_official_one(shared, base_channels, size):
    case = load_case(f"hdnet_ngf{base_channels}_s11_{size}", shared / "oracles" / "dev")
    assert_matches_official(HDNet(base_channels), case, blended=True)


def test_local_dynamics_equals_the_official_one():
    assert_layer_matches_official(LocalDynamics(8), "part_ld_s11")


def test_foreground_unlike_all_background_is_matched_with_nothing():
    # The official support holds the foreground as zero vectors, nearer than vectors of the opposite sign.
    torch.manual_seed(0)
    layer, plain = LocalDynamics(4), PlainLocalDynamics(4)
    layer.linear.weight.data, layer.linear.bias.data = (
        plain.linear.weight.data[..., 0],
        plain.linear.bias.data,
    )
    mask = torch.zeros(2, 1, 6, 5)
    mask[0, :, 2:4, 1:4] = 1
    mask[1, :, 1:6, 1:4] = 1
    x = torch.rand(2, 4, 6, 5) * (2 * mask - 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, mask), plain(x, mask), rtol=0, atol=1e-6)


def test_mask_aware_dynamics_equals_the_official_one():
    names = {"conv_kernel.1": "squeeze", "conv_kernel.3": "expand"}

    def rename(key):
        name, _, kind = key.rpartition(".")
        return None if name == "conv_guide" else f"{names[name]}.{kind}"

    assert_layer_matches_official(MaskAwareDynamics(8), "part_mgd_s11", rename)


@pytest.mark.parametrize(("base_channels", "official"), [(32, 10_414_389), (8, 652_893)])
def test_has_the_official_parameters_but_the_unused_ones(base_channels, official):
    unused = sum(2 * factor * base_channels + 2 for factor in (8, 4, 2))  # conv_guide: 1x1, to 2 regions
    assert HDNet(base_channels).num_parameters() + unused == official
    assert sum(p.numel() for p in HDNetPlain(base_channels).parameters()) == official


def both(base_channels):
    """The plain network and ours with the same lively weights, of the oracles' gain."""
    plain, fast = HDNetPlain(base_channels).eval(), HDNet(base_channels).eval()
    kernels, output = (0.1, 0.4) if base_channels == 32 else (0.25, 0.5)
    gain = {"model_layer*att.conv_kernel.3.*": kernels, "model_out.1.weight": output}
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    plain.load_state_dict(fill_state_dict(shapes, 3, gain))
    fast.load_state_dict(HDNet.convert_official(plain.state_dict()))
    return plain, fast


@pytest.mark.parametrize("base_channels", [8, 32])
def test_equals_the_plain_network_at_full_size(base_channels):
    plain, fast = both(base_channels)
    composite, mask = make_inputs(3, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(fast(composite, mask), plain(composite, mask), rtol=0, atol=1e-5)


def test_equals_the_plain_network_for_soft_masks_of_different_area():
    plain, fast = both(8)
    composite, mask = picture_and_mask(3)
    mask[2] = 0
    with torch.no_grad():
        torch.testing.assert_close(fast(composite, mask), plain(composite, mask), rtol=0, atol=1e-5)


def test_gradients_equal_those_of_the_plain_network():
    plain, fast = both(8)
    composite, mask = picture_and_mask()
    for network in (plain, fast):
        (network(composite, mask) - 0.5).square().sum().backward()
    expected = {key: p.grad for key, p in plain.named_parameters() if "conv_guide" not in key}
    expected = HDNet.convert_official(expected)
    for key, parameter in fast.named_parameters():
        scale = expected[key].abs().max()
        torch.testing.assert_close(parameter.grad / scale, expected[key] / scale, rtol=0, atol=2e-3, msg=key)


def paper_mode_by_loops(layer, x, mask):
    """LD of the paper: every foreground position by its K nearest background positions."""
    result = x.clone()
    for b in range(len(x)):
        background = [(r, c) for r in range(x.shape[2]) for c in range(x.shape[3]) if mask[b, 0, r, c] == 0]
        for r in range(x.shape[2]):
            for c in range(x.shape[3]):
                if mask[b, 0, r, c] == 0:
                    continue
                query = x[b, :, r, c]
                scored = sorted(((float(query @ x[b, :, i, j]), i, j) for i, j in background), reverse=True)
                nearest = scored[: layer.neighbors]
                total = sum(math.exp(score - nearest[0][0]) for score, _, _ in nearest)
                fused = torch.zeros_like(query)
                for score, i, j in nearest:
                    fused += math.exp(score - nearest[0][0]) / total * x[b, :, i, j]
                result[b, :, r, c] = layer.linear(torch.cat((fused, query)))
    return result


@pytest.mark.parametrize("neighbors", [1, 3, 500])
def test_paper_mode_equals_loops(neighbors):
    torch.manual_seed(0)
    layer = LocalDynamics(4, "paper", neighbors)
    x = torch.randn(2, 4, 7, 9)
    mask = torch.zeros(2, 1, 7, 9)
    mask[0, :, 2:5, 3:8] = 1
    mask[1, :, 1:3, :2] = 1
    with torch.no_grad():
        expected = paper_mode_by_loops(layer, x, mask)
        torch.testing.assert_close(layer(x, mask), expected, rtol=0, atol=1e-5)


def test_paper_mode_without_background_fuses_nothing():
    torch.manual_seed(0)
    layer = LocalDynamics(4, "paper")
    x = torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        adjusted = layer(x, torch.ones(1, 1, 5, 6))
        alone = layer.linear(torch.cat((torch.zeros_like(x), x), 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(adjusted, alone)


def test_modes_differ_and_survive_saving(tmp_path):
    composite, mask = picture_and_mask()
    _, official = both(8)
    paper = HDNet(8, ld_mode="paper", neighbors=2).eval()
    paper.load_state_dict(official.state_dict())
    paper.save_pretrained(tmp_path)
    loaded = HDNet.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert not torch.allclose(paper(composite, mask), official(composite, mask), atol=1e-3)
        torch.testing.assert_close(loaded(composite, mask), paper(composite, mask), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arguments", [{"ld_mode": "plain"}, {"ld_mode": "paper", "neighbors": 0}])
def test_unusable_arguments_are_refused(arguments):
    with pytest.raises(InputError):
        HDNet(4, **arguments)


class LargestTensor(TorchDispatchMode):
    """Remember the size of the largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [
            t for t in (result if isinstance(result, (tuple, list)) else [result]) if torch.is_tensor(t)
        ]
        self.numel = max([self.numel, *(t.numel() for t in tensors)])
        return result


@pytest.mark.parametrize("mode", ["official", "paper"])
@pytest.mark.parametrize("rows", [8, 48])
def test_local_dynamics_compares_only_foreground_with_background_in_blocks(mode, rows):
    layer = LocalDynamics(4, mode)
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, :rows] = 1
    foreground, background = 64 * rows, 64 * (64 - rows)
    with torch.no_grad(), LargestTensor() as largest:
        layer(torch.randn(1, 4, 64, 64), mask)
    assert largest.numel == min(foreground, 1024) * (background + 1)
    reference = PlainLocalDynamics(4)
    with torch.no_grad(), LargestTensor() as largest:
        reference(torch.randn(1, 4, 64, 64), mask)
    assert largest.numel == 64**4


@pytest.mark.parametrize("batch", [1, 2])
def test_dynamic_layers_return_what_convolutions_take_without_a_copy(batch):
    mask = picture_and_mask(batch)[1]
    x = torch.randn(batch, 4, 12, 10).contiguous(memory_format=torch.channels_last)
    for layer in (LocalDynamics(4), LocalDynamics(4, "paper"), MaskAwareDynamics(4)):
        with torch.no_grad():
            # A stride of 4 between pictures of a batch of one would pass `is_contiguous`.
            assert layer(x, mask).stride() == (480, 1, 40, 4)


def test_checkpointing_saves_half_the_memory():
    _, fast = both(8)
    assert_checkpointing_changes_memory_only(fast, *picture_and_mask(), saving=2)


def test_bfloat16():
    assert_bfloat16_is_close(both(8)[1], *picture_and_mask(), atol=0.15)


def test_foreign_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="HDNet"):
        HDNet.convert_official({"model_layer14.1.weight": torch.zeros(1)})


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["official", "paper"])
def test_compiles_without_graph_breaks(mode):
    torch.manual_seed(0)
    assert_compiles_without_graph_breaks(HDNet(4, ld_mode=mode), *picture_and_mask())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["official", "paper"])
def test_learns_one_real_picture(shared, mode):
    torch.manual_seed(0)
    before, after, _ = overfit(HDNet(8, ld_mode=mode), size=64, steps=1000, shared=shared, lr=4e-3)
    assert before < 25 and after > 40
