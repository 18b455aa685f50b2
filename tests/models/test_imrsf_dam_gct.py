import math

import numpy as np
import pytest
import torch
from official_cases import assert_close, load_case, load_part
from overfit import overfit
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models.idih import IDIH
from harmony_diffusion.models.imrsf_blocks import (
    AntiAliasedDownsampling,
    Downsample,
    DualAttention,
    GatedChannelTransformation,
    MultiResolutionAttention,
    SelectiveFusion,
    Upsample,
)
from harmony_diffusion.models.imrsf_dam_gct import IMRSFDAMGCT, FusedDecoding

PLAIN = {"dam": False, "gct": False, "i_structure": False}
ROWS = [PLAIN, {**PLAIN, "dam": True}, {"i_structure": False}, {}]


def part(name):
    """Inputs, weights and output of a single-layer case."""
    weights, stored = load_part(f"part_{name}_s11")
    inputs = [torch.from_numpy(stored[key]) for key in sorted(stored) if key.startswith("x")]
    return inputs, weights, torch.from_numpy(stored["output"])


def randomized(module):
    """Give every parameter and running statistic a value of its own, so that none can hide."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                scale = 0.3 if tensor.ndim < 2 or name.endswith(("alpha", "beta", "gamma")) else 1
                fan_in = tensor[0].numel() if tensor.ndim > 1 and scale == 1 else 1
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale * (2 / fan_in) ** 0.5)
    return module


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(size=256, batch=1):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(batch, 1, size, size)
    mask[..., size // 4 : size // 2, size // 3 : 2 * size // 3] = 1
    return torch.rand(batch, 3, size, size, generator=generator), mask


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / 2**0.5))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def array(tensor):
    return tensor.detach().double().numpy()


@pytest.mark.parametrize(
    "config, count",
    [
        (ROWS[0], 8_301_284),  # iDIH
        (ROWS[1], 8_528_860),
        (ROWS[2], 8_535_868),
        (ROWS[3], 8_911_144),
        ({"streams": 1}, 8_715_132),
        ({"streams": 3}, 10_255_636),
    ],
)
def test_parameter_count(config, count):
    assert sum(p.numel() for p in IMRSFDAMGCT(**config).parameters()) == count


@pytest.mark.parametrize("config, gmacs", [(ROWS[0], 1.657), (ROWS[3], 8.942)])
def test_arithmetic_of_one_picture(config, gmacs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        IMRSFDAMGCT(**config).eval()(*picture())
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.001)


def test_gated_channels_equal_the_reference():
    (x,), weights, output = part("gct")
    gate = GatedChannelTransformation(x.shape[1])
    gate.load_state_dict(weights)
    torch.testing.assert_close(gate(x), output, rtol=0, atol=1e-5)


def test_gated_channels_by_hand():
    gate = GatedChannelTransformation(2)
    x = torch.tensor([3.0, 0.0, 0.0, 4.0]).view(1, 2, 1, 2)  # norms 3 and 4, together 5
    with torch.no_grad():
        gate.gamma.copy_(torch.tensor([0.5, -0.5]).view(1, 2, 1, 1))
        gate.beta.copy_(torch.tensor([0.1, 0.2]).view(1, 2, 1, 1))
    first, second = 1 + math.tanh(0.5 * 2**0.5 * 3 / 5 + 0.1), 1 + math.tanh(-0.5 * 2**0.5 * 4 / 5 + 0.2)
    expected = torch.tensor([3 * first, 0, 0, 4 * second]).view(1, 2, 1, 2)
    torch.testing.assert_close(gate(x), expected)


def test_fresh_gate_is_the_identity():
    x = noise(2, 8, 5, 6)
    assert torch.equal(GatedChannelTransformation(8)(x), x)
    assert torch.isfinite(GatedChannelTransformation(8)(torch.zeros(1, 8, 4, 4))).all()


def test_blurred_downsampling_equals_the_reference():
    (x,), weights, output = part("blurpool_k3")
    down = AntiAliasedDownsampling()
    torch.testing.assert_close(down.kernel, weights["filt"][:1])
    torch.testing.assert_close(down(x), output, rtol=0, atol=1e-5)
    assert not down.state_dict()


@pytest.mark.parametrize("inputs", [2, 3])
def test_selective_fusion_equals_the_reference(inputs):
    features, weights, output = part(f"skff_h{inputs}")
    fusion = SelectiveFusion(32, inputs)
    fusion.squeeze[1] = nn.PReLU()  # the reference's activation, where the paper has GELU
    names = {"conv_du": "squeeze", "fcs": "expand"}
    fusion.load_state_dict({names[k.split(".")[0]] + k[k.index(".") :]: v for k, v in weights.items()})
    torch.testing.assert_close(fusion(features), output, rtol=0, atol=1e-5)


def test_selective_fusion_follows_equations_3_to_6():
    fusion = randomized(SelectiveFusion(8, 3))
    features = [noise(2, 8, 4, 5, seed=k) + k for k in range(3)]
    squeeze = array(fusion.squeeze[0].weight)[:, :, 0, 0]
    expand = [array(e.weight)[:, :, 0, 0] for e in fusion.expand]
    result = array(fusion(features))
    for b in range(2):
        s = sum(array(x[b]) for x in features).mean((1, 2))
        v = np.stack([e @ gelu(squeeze @ s) for e in expand])
        a = np.exp(v) / np.exp(v).sum(0)
        expected = sum(a[i][:, None, None] * array(x[b]) for i, x in enumerate(features))
        np.testing.assert_allclose(result[b], expected, atol=1e-5)


def test_dual_attention_gates_channels_then_pixels():
    attention = randomized(DualAttention(16)).eval()
    x = noise(2, 16, 5, 6)
    first, second = attention.channel[0], attention.channel[2]
    conv, norm = attention.spatial
    result = array(attention(x))
    for b in range(2):
        features = array(x[b])
        logits = np.zeros(16)
        for statistic in (features.mean((1, 2)), features.max((1, 2))):
            hidden = np.maximum(array(first.weight)[:, :, 0, 0] @ statistic + array(first.bias), 0)
            logits += array(second.weight)[:, :, 0, 0] @ hidden + array(second.bias)
        features = features * sigmoid(logits)[:, None, None]
        summary = np.pad(np.stack([features.max(0), features.mean(0)]), ((0, 0), (3, 3), (3, 3)))
        gate = np.zeros((5, 6))
        for y in range(5):
            for x_ in range(6):
                value = (array(conv.weight)[0] * summary[:, y : y + 7, x_ : x_ + 7]).sum()
                value = (value - norm.running_mean.item()) / math.sqrt(norm.running_var.item() + 1e-5)
                gate[y, x_] = sigmoid(value * norm.weight.item() + norm.bias.item())
        np.testing.assert_allclose(result[b], features * gate, atol=1e-5)


def convolve(x, weight):
    """`CG` of the paper."""
    return functional.gelu(functional.conv2d(x, weight, padding=weight.shape[-1] // 2))


def blur(x):
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    padded = nn.ReflectionPad2d(1)(x)
    rows = sum(w * padded[:, :, k : k + x.shape[2]] for k, w in enumerate(row))
    return sum(w * rows[:, :, :, k : k + x.shape[3]] for k, w in enumerate(row))[:, :, ::2, ::2]


def test_upsampling_follows_equation_1():
    up = randomized(Upsample(8))
    x = noise(2, 8, 5, 6)
    one, three, transposed, last, direct = (p for _, p in up.named_parameters())
    learned = convolve(convolve(x, one), three)
    learned = functional.conv_transpose2d(learned, transposed, stride=2, padding=1, output_padding=1)
    enlarged = functional.interpolate(x, size=(10, 12), mode="bilinear")
    expected = convolve(learned, last) + convolve(enlarged, direct)
    assert expected.shape == (2, 4, 10, 12)
    torch.testing.assert_close(up(x), expected)


def test_downsampling_follows_equation_2():
    down = randomized(Downsample(8))
    x = noise(2, 8, 6, 10)
    one, three, last, direct = (p for _, p in down.named_parameters())
    expected = convolve(blur(convolve(convolve(x, one), three)), last) + convolve(blur(x), direct)
    assert expected.shape == (2, 16, 3, 5)
    torch.testing.assert_close(down(x), expected)


def test_two_streams_are_wired_as_in_figure_2():
    module = randomized(MultiResolutionAttention(8)).eval()
    x1 = noise(2, 8, 8, 12)
    x2 = module.down[0](x1)
    (_, up), (down, _) = module.exchange
    y1 = module.attention[0](module.fuse[0]([x1, up(x2)]))
    y2 = module.attention[1](module.fuse[1]([down(x1), x2]))
    z = module.last_fuse([y1, module.last_up[1](y2)])
    expected = x1 + functional.conv2d(z, module.out.weight, module.out.bias)
    torch.testing.assert_close(module(x1), expected)
    fusions, attentions = (
        sum(isinstance(m, kind) for m in module.modules()) for kind in (SelectiveFusion, DualAttention)
    )
    assert (fusions, attentions) == (3, 2)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_every_stream_reaches_the_result(streams):
    module = randomized(MultiResolutionAttention(8, streams))
    x = noise(2, 8, 8, 12)
    module(x).square().sum().backward()
    assert [attention.channel[0].in_channels for attention in module.attention] == [8, 16, 32][:streams]
    assert not [name for name, p in module.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


def test_fused_decoding_lifts_fuses_and_attends():
    module = randomized(FusedDecoding([16, 8], extra=1)).eval()
    layers, extra = [noise(1, 16, 2, 3), noise(1, 8, 4, 6, seed=1)], [noise(1, 32, 8, 12, seed=2)]
    lifted = []
    for x, lift in zip(layers, module.lift, strict=True):
        convolutions = [m for m in lift if not isinstance(m, nn.GELU)]
        x = convolutions[0](x)
        for transposed in convolutions[1:]:
            x = functional.gelu(transposed(x))
        lifted.append(x)
    expected = module.attention(module.fuse([*extra, *lifted]))
    assert expected.shape == (1, 32, 8, 12)
    torch.testing.assert_close(module(layers, extra), expected)


def test_network_is_assembled_as_in_figure_1():
    model = randomized(IMRSFDAMGCT()).eval()
    composite, mask = picture()
    with torch.no_grad():
        image = model.normalize(composite)
        first = x = model.multi_resolution(functional.gelu(model.stem[0](torch.cat([image, mask], 1))))
        encoded, decoded = [], []
        for i, block in enumerate(model.backbone.encoder):
            x = block[0](model.gates[i](x))
            x = functional.elu(block[1](x) if i >= 2 else x)
            encoded.append(x)
        for i, block in enumerate(model.backbone.decoder):
            x = functional.gelu(block[1](block[0](model.gates[7 + i](x))))
            decoded.append(x)
            x = x + encoded[5 - i] if i < 6 else x
        x = x + model.fused_decoding(decoded[:6], [first])
        share = torch.sigmoid(model.to_mask(x))
        expected = model.normalize.inverse(share * model.to_rgb(x) + (1 - share) * image)
        torch.testing.assert_close(model.predict(composite, mask), expected)
        assert [block[0].kernel_size for block in model.backbone.encoder] == [(4, 4)] * 7


def as_idih(model):
    """Use iDIH's activation in the decoder, the only difference of the plain network."""
    for block in model.backbone.decoder:
        block[-1] = nn.ELU()
    return model.eval()


def test_plain_network_with_weights_of_idih_gives_its_output():
    idih, model = randomized(IDIH()).eval(), IMRSFDAMGCT(**PLAIN)
    assert model.start_from_idih(idih.state_dict()) == []
    with torch.no_grad():
        torch.testing.assert_close(as_idih(model).predict(*picture()), idih.predict(*picture()))
        assert (model(*picture()) - picture()[0]).abs().max() > 0.05


@pytest.mark.parametrize("size", ["256x256", "256x512"])
def test_plain_network_with_official_weights_of_idih_gives_the_official_output(size, shared):
    case, model = load_case(f"idih256_s11_{size}", shared / "oracles" / "dev"), IMRSFDAMGCT(**PLAIN)
    assert model.start_from_idih(case.official) == []
    with torch.no_grad():
        output = as_idih(model).predict(case.composite, case.mask)
    assert_close(output, case.stored["output"], int(case.stored["stride"]))


def test_start_from_idih_keeps_only_added_modules_fresh():
    idih = randomized(IDIH())
    wrapped = {f"module.{key}": tensor for key, tensor in idih.state_dict().items()}
    gated = IMRSFDAMGCT(dam=False, i_structure=False)
    assert all(name.startswith("gates.") for name in gated.start_from_idih(wrapped))
    model = IMRSFDAMGCT()
    fresh = model.start_from_idih(wrapped)
    roots = {name.split(".")[0] for name in fresh} - {"backbone"}
    assert roots == {"stem", "multi_resolution", "gates", "fused_decoding"}
    assert {name for name in fresh if name.startswith("backbone")} == {
        "backbone.encoder.0.0.weight",
        "backbone.encoder.0.0.bias",
    }
    torch.testing.assert_close(model.to_mask.weight, -3 * idih.attention.weight)
    torch.testing.assert_close(model.backbone.decoder[6][0].weight, idih.backbone.decoder[6][0].weight)


def test_start_from_idih_refuses_other_weights():
    state = IDIH().state_dict()
    with pytest.raises(CheckpointError, match="do not belong"):
        IMRSFDAMGCT().start_from_idih({**state, "refine.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="missing"):
        IMRSFDAMGCT().start_from_idih({k: v for k, v in state.items() if k != "to_rgb.bias"})
    with pytest.raises(CheckpointError, match="do not fit"):
        IMRSFDAMGCT().start_from_idih(IDIH(base_channels=8).state_dict())
    with pytest.raises(CheckpointError, match="do not fit"):
        IMRSFDAMGCT().start_from_idih(IDIH(depth=8).state_dict())


@pytest.mark.parametrize(
    "config",
    [
        *ROWS,
        {**PLAIN, "i_structure": True},
        {"streams": 1},
        pytest.param({"streams": 3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_rows_of_both_ablations_run_and_train(config):
    composite, mask = picture(size=48, batch=2)
    model = IMRSFDAMGCT(**config)
    model(composite, mask).sub(0.3).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_no_stream_is_refused():
    with pytest.raises(InputError, match="streams"):
        IMRSFDAMGCT(streams=0)


def test_sizes_that_the_bottleneck_accepts_are_not_padded():
    model, seen = IMRSFDAMGCT(**PLAIN).eval(), []
    model.backbone.encoder[0].register_forward_hook(
        lambda m, inputs, output: seen.append(inputs[0].shape[-2:])
    )
    with torch.no_grad():
        for size in ((256, 384), (40, 300)):
            assert model(torch.rand(1, 3, *size), torch.ones(1, 1, *size)).shape[-2:] == size
    assert seen == [(256, 384), (256, 384)]


def test_gradient_checkpointing_changes_nothing():
    composite, mask = picture(batch=2)
    results = []
    for enable in (False, True):
        model = randomized(IMRSFDAMGCT()).train()
        if enable:
            model.enable_gradient_checkpointing()
        output = model.predict(composite, mask)
        output.square().mean().backward()
        gradients = {k: p.grad for k, p in model.named_parameters()}
        statistics = {k: v for k, v in model.state_dict().items() if "running" in k}
        results.append((output.detach(), gradients, statistics))
    torch.testing.assert_close(*results)
    dead = [key for key, gradient in results[0][1].items() if gradient.abs().max() == 0]
    assert not dead


def test_half_precision_forward_is_close():
    torch.manual_seed(0)
    model = IMRSFDAMGCT().eval()
    with torch.no_grad():
        full = model(*picture())
        half = model.to(torch.bfloat16)(*(t.bfloat16() for t in picture()))
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().mean() < 0.01


def test_own_keys_are_converted_and_others_refused():
    model = IMRSFDAMGCT(streams=3)
    wrapped = {f"module._orig_mod.{key}": tensor for key, tensor in model.state_dict().items()}
    IMRSFDAMGCT(streams=3).load_state_dict(IMRSFDAMGCT.convert_official(wrapped), strict=True)
    with pytest.raises(CheckpointError, match="do not belong"):
        IMRSFDAMGCT.convert_official({**wrapped, "discriminator.0.weight": torch.zeros(1)})


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiles_as_one_graph(training):
    model = IMRSFDAMGCT().train(training)
    explanation = torch._dynamo.explain(model)(*picture(batch=2))
    assert explanation.graph_break_count == 0, explanation.break_reasons


@pytest.mark.slow
def test_overfits_one_picture(shared):
    torch.manual_seed(0)
    before, reached, steps = overfit(IMRSFDAMGCT(), size=256, steps=300, shared=shared)
    assert before < 25 and reached > 40, (before, reached, steps)
