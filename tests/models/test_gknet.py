import itertools

import pytest
import torch
from gknet_plain import make_plain, peak_in_own_process
from overfit import overfit
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models.gknet import GKNet
from harmony_diffusion.models.gknet_kernels import (
    HarmonyKernel,
    KernelPredictionBlock,
    LongDistanceReference,
    SelectiveCorrelationFusion,
    TransformerLayer,
)

BASELINE = {"kpb": False, "lre": False, "scf": False}
TINY = {"base_channels": 8, "lre_layers": 1}


def randomized(module):
    """Give every parameter and running statistic a value of its own, so that none can hide."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                scale = 0.3 if tensor.ndim < 2 else (2 / tensor[0].numel()) ** 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return module


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "config, count",
    [
        ({}, 11_592_935),
        ({"lre_layers": 4}, 10_013_415),
        ({"lre_layers": 9}, 13_962_215),
        # iS2AM (2,185,340) without its fusion head (33), with a second attention at 128 channels (157,464).
        (BASELINE, 2_342_771),
    ],
)
def test_parameter_count(config, count):
    assert parameters(GKNet(**config)) == count


def test_arithmetic_of_one_picture():
    model = GKNet().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 256, 256), torch.ones(1, 1, 256, 256))
    # The counter misses the CPU's fused attention: two products of 1024 x 1024 x 256 in each of 6 layers.
    gmacs = counter.get_total_flops() / 2e9 + 6 * 2 * 1024**2 * 256 / 1e9
    assert gmacs == pytest.approx(34.71, abs=0.005)


def test_modulation_weighs_the_nine_neighbours_of_every_pixel_and_channel():
    generator = torch.Generator().manual_seed(0)
    kernel = randomized(HarmonyKernel(2))
    features, reference = torch.randn(2, 2, 2, 3, 4, generator=generator)
    weight, bias = kernel.weight[:, :, 0, 0], kernel.bias
    expected = torch.zeros_like(features)
    for b, c, y, x, i, j in itertools.product(range(2), range(2), range(3), range(4), range(3), range(3)):
        entry = weight[c * 9 + i * 3 + j] @ reference[b, :, y, x] + bias[c * 9 + i * 3 + j]
        if 0 <= y + i - 1 < 3 and 0 <= x + j - 1 < 4:
            expected[b, c, y, x] += entry * features[b, c, y + i - 1, x + j - 1]
    for kernel.training in (True, False):
        torch.testing.assert_close(kernel(features, reference), expected)


def test_fresh_kernels_are_close_to_the_identity():
    torch.manual_seed(0)
    kernel = HarmonyKernel(32)
    features, reference = torch.randn(1, 32, 20, 20), torch.randn(1, 32, 20, 20).relu()
    change = kernel(features, reference) - features
    assert 0 < change.std() / features.std() < 0.05
    nn.init.zeros_(kernel.weight)
    assert torch.equal(kernel(features, reference), features)


def test_lean_modules_give_outputs_and_gradients_of_the_plain_ones(tiny_sample):
    composite, mask = (t.double() for t in tiny_sample)
    results = []
    for change in (lambda model: model, make_plain, lambda model: model.enable_gradient_checkpointing()):
        torch.manual_seed(0)
        model = randomized(GKNet(**TINY)).double().train()
        change(model)
        output = model.predict(composite, mask)
        output.square().mean().backward()
        results.append(
            (output.detach(), {k: p.grad for k, p in model.named_parameters()}, model.state_dict())
        )
    (output, gradients, state), *others = results
    assert not [k for k, gradient in gradients.items() if gradient.abs().max() == 0]
    for other_output, other_gradients, other_state in others:
        torch.testing.assert_close(other_output, output)
        torch.testing.assert_close(other_gradients, gradients)
        torch.testing.assert_close(other_state, state)  # running statistics moved once


def held_bytes(model, composite, mask):
    """Bytes of the tensors, other than weights, that the forward pass keeps for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = {}

    def hold(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage  # keeps it alive: no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        output = model(composite, mask)
    assert output.requires_grad
    return sum(storage.nbytes() for pointer, storage in held.items() if pointer not in weights)


def test_training_holds_less_than_60_percent_of_the_plain_memory():
    torch.manual_seed(0)
    composite, mask = torch.rand(1, 3, 128, 128), torch.ones(1, 1, 128, 128)
    model = GKNet().train()
    lean = held_bytes(model, composite, mask)
    assert lean < 0.6 * held_bytes(make_plain(model), composite, mask)


@pytest.mark.slow
def test_peak_memory_of_training_is_less_than_60_percent_of_the_plain_one(monkeypatch):
    # Small blocks would stay with the allocator after they are freed, and count as used.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")
    lean, plain = (peak_in_own_process(kind, size=256, batch=4) for kind in ("lean", "plain"))
    assert lean < 0.6 * plain


def reference_fusion(scf, encoder, reference):
    """SCF written out, one picture and one entry at a time."""
    e, r = scf.encoder(encoder), scf.reference(reference)
    fused = []
    for b in range(len(e)):
        alpha_e, alpha_r = (
            mlp[2].weight @ (mlp[0].weight @ x[b].mean((1, 2)) + mlp[0].bias).clamp_min(0) + mlp[2].bias
            for mlp, x in ((scf.encoder_mlp, e), (scf.reference_mlp, r))
        )
        channels, n = len(alpha_e), 8
        m = channels // n
        factors = scf.correlate.bias.clone()
        for i, j in itertools.product(range(n), range(n)):
            relation = sum(alpha_r[i * m + k] * alpha_e[j * m + k] for k in range(m))
            factors = factors + scf.correlate.weight[:, 0, i, j] * relation
        s_e = (alpha_e + scf.strength * scf.encoder_fc(factors[channels:])).sigmoid()
        s_r = (alpha_r + scf.strength * scf.reference_fc(factors[:channels])).sigmoid()
        gated = (s_r.view(-1, 1, 1) * r[b])[None]
        up = functional.interpolate(gated, e.shape[-2:], mode="bilinear")[0]
        fused.append(s_e.view(-1, 1, 1) * e[b] + up)
    return torch.stack(fused)


def test_fusion_follows_equations_2_to_4():
    generator = torch.Generator().manual_seed(0)
    scf = randomized(SelectiveCorrelationFusion(16, 24))
    encoder, reference = (
        torch.randn(2, 16, 6, 8, generator=generator),
        torch.randn(2, 24, 3, 4, generator=generator),
    )
    torch.testing.assert_close(scf(encoder, reference), reference_fusion(scf, encoder, reference))
    assert SelectiveCorrelationFusion(16, 24).strength == 0


def test_fusion_without_selection_is_a_sum():
    generator = torch.Generator().manual_seed(0)
    scf = randomized(SelectiveCorrelationFusion(16, 16, select=False))
    encoder, reference = torch.randn(2, 1, 16, 6, 8, generator=generator)
    expected = functional.conv2d(encoder, scf.encoder.weight, scf.encoder.bias, padding=1)
    expected += functional.conv2d(reference, scf.reference.weight, scf.reference.bias, padding=1)
    torch.testing.assert_close(scf(encoder, reference), expected)
    assert {name.split(".")[0] for name, _ in scf.named_parameters()} == {"encoder", "reference"}


def test_prediction_block_refines_what_it_fuses():
    generator = torch.Generator().manual_seed(0)
    block = randomized(KernelPredictionBlock(8, 16)).eval()
    encoder, reference = (
        torch.randn(2, 8, 6, 8, generator=generator),
        torch.randn(2, 16, 3, 4, generator=generator),
    )
    fused = functional.conv2d(block.fuse(encoder, reference), block.conv.weight, block.conv.bias, padding=1)
    norm = block.norm
    scale = (norm.weight / (norm.running_var + 1e-5).sqrt()).view(-1, 1, 1)
    expected = ((fused - norm.running_mean.view(-1, 1, 1)) * scale + norm.bias.view(-1, 1, 1)).clamp_min(0)
    torch.testing.assert_close(block(encoder, reference), expected, rtol=1e-4, atol=1e-5)


def as_torch_layer(layer):
    """The same layer by PyTorch's own implementation."""
    channels = layer.norm1.normalized_shape[0]
    twin = nn.TransformerEncoderLayer(
        channels, layer.heads, 4 * channels, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    pairs = {
        "norm1": "norm1",
        "norm2": "norm2",
        "proj": "self_attn.out_proj",
        "mlp.0": "linear1",
        "mlp.2": "linear2",
    }
    state = {"self_attn.in_proj_weight": layer.qkv.weight, "self_attn.in_proj_bias": layer.qkv.bias}
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            state[f"{theirs}.{kind}"] = getattr(layer.get_submodule(ours), kind)
    twin.load_state_dict(state)
    return twin


def test_transformer_layer_equals_pytorchs():
    layer = randomized(TransformerLayer(32))
    tokens = torch.randn(2, 15, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(tokens), as_torch_layer(layer)(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_long_distance_reference_has_a_token_for_every_pixel(size):
    extractor = randomized(LongDistanceReference(32, layers=2, grid=4))
    features = torch.randn(2, 32, *size, generator=torch.Generator().manual_seed(0))
    position = extractor.position
    if size != (4, 4):
        position = functional.interpolate(position, size, mode="bicubic")
    tokens = torch.stack(
        [features[:, :, y, x] + position[:, :, y, x] for y in range(size[0]) for x in range(size[1])]
    )
    for layer in extractor.layers:
        tokens = as_torch_layer(layer)(tokens.transpose(0, 1)).transpose(0, 1)
    grid = torch.zeros_like(features)
    for k, (y, x) in enumerate(itertools.product(range(size[0]), range(size[1]))):
        grid[:, :, y, x] = tokens[k]
    torch.testing.assert_close(extractor(features), extractor.post(grid), rtol=1e-4, atol=1e-4)


def test_every_level_is_modulated_in_turn(tiny_sample):
    composite, mask = (t.double() for t in tiny_sample)
    model, shapes = randomized(GKNet(**TINY)).double().eval(), []
    for block in model.kpbs:
        block.kernel.register_forward_hook(
            lambda module, inputs, output: shapes.append(tuple(output.shape[1:]))
        )
        with torch.no_grad():
            block.kernel.weight.zero_()
            block.kernel.bias.copy_(torch.eye(9)[4].repeat(block.kernel.in_channels))
    with torch.no_grad():
        unmodulated = model.predict(composite, mask)
        assert shapes == [(64, 8, 6), (32, 16, 12), (16, 32, 24), (8, 64, 48)]
        # With identity kernels the U-Net is left.
        baseline = GKNet(**BASELINE, base_channels=8).double().eval()
        weights = {k: v for k, v in model.state_dict().items() if k.startswith(("unet.", "to_rgb."))}
        baseline.load_state_dict(weights)
        torch.testing.assert_close(unmodulated, baseline.predict(composite, mask))
        for block in model.kpbs:
            block.kernel.bias.mul_(0.9)
            assert (model.predict(composite, mask) - unmodulated).abs().max() > 1e-8
            block.kernel.bias.div_(0.9)


@pytest.mark.parametrize(
    "config",
    [BASELINE, {"lre": False, "scf": False}, {"scf": False}, {}],
    ids=["baseline", "kpb", "kpb+lre", "kpb+lre+scf"],
)
def test_rows_of_the_ablation_run_and_train(config, tiny_sample):
    model = GKNet(**TINY, **config)
    model(*tiny_sample).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert [name for name, on in config.items() if model.config[name] != on] == []


def test_each_row_of_the_ablation_adds_its_module():
    rows = [BASELINE, {"lre": False, "scf": False}, {"scf": False}, {}]
    counts = [parameters(GKNet(**row)) for row in rows]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("config", [{"kpb": False}, {"kpb": False, "lre": False}])
def test_switches_that_feed_nothing_are_refused(config):
    with pytest.raises(InputError, match="kpb"):
        GKNet(**TINY, **config)


def test_half_precision_forward_is_close(tiny_sample):
    torch.manual_seed(0)
    model = GKNet().eval()
    with torch.no_grad():
        full = model(*tiny_sample)
        half = model.to(torch.bfloat16)(*(t.bfloat16() for t in tiny_sample))
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().mean() < 0.01


def test_training_under_autocast_gives_finite_gradients(tiny_sample):
    model = GKNet(**TINY).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*tiny_sample).square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_own_keys_are_converted_and_others_refused():
    state = GKNet(lre_layers=9).state_dict()
    for prefix in ("", "module.", "module._orig_mod."):
        converted = GKNet.convert_official({prefix + key: tensor for key, tensor in state.items()})
        assert {k for k in state if not k.endswith("num_batches_tracked")} <= converted.keys() <= state.keys()
        assert all(converted[key] is state[key] for key in converted)
    GKNet(lre_layers=9).load_state_dict(converted, strict=True)
    for stranger in ("unet.encoder.0.0.0.wieght", "discriminator.0.weight"):
        with pytest.raises(CheckpointError, match="do not belong"):
            GKNet.convert_official({**state, stranger: torch.zeros(1)})


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiles_as_one_graph(training, tiny_sample):
    model = GKNet(**TINY).train(training)
    explanation = torch._dynamo.explain(model)(*tiny_sample)
    assert explanation.graph_break_count == 0, explanation.break_reasons


@pytest.mark.slow
def test_overfits_one_picture(shared):
    torch.manual_seed(0)
    before, reached, steps = overfit(GKNet(), size=64, steps=600, shared=shared)
    assert before < 25 and reached > 40, (before, reached, steps)
