"""What callers may rely on without asking: attributes, the one `forward`, precision of stored weights."""

import re
from pathlib import Path

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from models.network_checks import picture_and_mask
from small_configs import SMALL

from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models import MODELS, create_model, model_class
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.layers import blend

ROOT = Path(__file__).parents[2]
CLASSICAL = ("identity", "reinhard", "mkl", "idt", "histogram_matching", "poisson")
NETWORKS = [name for name in MODELS if name not in CLASSICAL]

every_model = pytest.mark.parametrize("name", MODELS)


def build(name):
    torch.manual_seed(0)
    return create_model(name, **SMALL.get(name, {})).eval()


@every_model
def test_class_inherits_the_contract_and_names_what_diffusers_looks_for(name):
    cls = model_class(name)
    assert issubclass(cls, HarmonyModel)
    namespace = vars(__import__(cls.__module__, fromlist=["_"]))
    assert namespace["ModelMixin"] is ModelMixin and namespace["ConfigMixin"] is ConfigMixin


@every_model
def test_there_is_one_forward_and_one_blend_of_it(name):
    cls = model_class(name)
    assert cls.forward is HarmonyModel.forward
    assert (cls.apply_filters is HarmonyModel.apply_filters) == (cls.__name__ != "Harmonizer")


@every_model
def test_forward_is_the_blend_of_the_clamped_frame(name):
    model, (composite, mask) = build(name), picture_and_mask()
    with torch.no_grad():
        frame = model.predict_frame(composite, mask)
        predicted = model.predict(composite, mask)
        harmonized = model(composite, mask)
    assert frame.shape == predicted.shape == composite.shape
    assert torch.equal(harmonized, blend(frame.clamp(0, 1), composite, mask))
    if name in ("pct_net_vit", "s2cr_net", "s2cr_net_vgg", "cdt_net_sim"):
        assert torch.equal(predicted, blend(frame, composite, mask))
    else:
        assert torch.equal(predicted, frame)


@every_model
def test_declared_attributes_agree_with_what_the_model_does(name):
    model, (composite, mask) = build(name), picture_and_mask()
    if not model.predicts_filters:
        assert model.filter_upsampling is None and not model.needs_frame_statistics
        for call in (model.predict_filters, model.apply_filters):
            with pytest.raises(NotImplementedError, match="predicts no filters"):
                call(composite, *[mask] * (1 if call == model.predict_filters else 2))
        return
    with torch.no_grad():
        filters = model.predict_filters(composite, mask)
        assert filters.ndim == (2 if model.filter_upsampling is None else 4)
        everywhere = torch.ones_like(mask)
        frame = model.transform(composite, filters, everywhere).clamp(0, 1)
        applied = model.apply_filters(composite, filters, everywhere)
        torch.testing.assert_close(applied, frame, rtol=0, atol=1e-6)
        if model.needs_frame_statistics:
            statistics = model.frame_statistics(composite, filters)
            part = model.apply_filters(composite[..., :9], filters, mask[..., :9], statistics)
            whole = model.apply_filters(composite, filters, mask)
            torch.testing.assert_close(part, whole[..., :9], rtol=0, atol=1e-6)
        if model.filter_names:
            assert len(model.filter_stages(composite, filters, mask)) == len(model.filter_names)


@every_model
def test_reference_is_used_or_refused(name, tiny_sample):
    model, (composite, mask) = build(name), tiny_sample
    reference = torch.zeros_like(mask)
    reference[..., :10] = 1
    if name not in CLASSICAL:
        assert not model.takes_reference
        with pytest.raises(InputError, match=f"reference: is not used by {type(model).__name__}"):
            model(composite, mask, reference)
        return
    assert model.takes_reference
    changed = not torch.equal(model(composite, mask, reference), model(composite, mask))
    assert changed == (name != "identity")


@pytest.mark.parametrize("name", CLASSICAL)
def test_methods_without_official_weights_refuse_to_convert(name):
    with pytest.raises(CheckpointError, match="no official checkpoint"):
        model_class(name).convert_official({})


def test_models_return_a_tensor_and_refuse_return_dict(tiny_sample):
    model = build("hdnet_lite")
    assert isinstance(model(*tiny_sample), torch.Tensor)
    with pytest.raises(TypeError, match="return_dict"):
        model(*tiny_sample, return_dict=False)


def test_base_class_says_what_to_implement():
    composite, mask = picture_and_mask()
    with pytest.raises(NotImplementedError, match="must implement `predict`"):
        HarmonyModel()(composite, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_layerwise_casting_stores_float8_and_computes_close_results(name, dtype):
    composite, mask = picture_and_mask()
    with torch.no_grad():
        exact = build(name)(composite, mask)
        # Module.to, since that of ModelMixin warns about modules in float32, of which there are none.
        model = torch.nn.Module.to(build(name), dtype)
        model.enable_layerwise_casting(torch.float8_e4m3fn, dtype)
        stored = [p.numel() for p in model.parameters() if p.dtype == torch.float8_e4m3fn]
        harmonized = model(composite.to(dtype), mask.to(dtype))
    assert model.dtype == harmonized.dtype == dtype
    assert sum(stored) > 0.8 * model.num_parameters()
    # A float8 of this kind has 3 bits after the point; deep fresh networks amplify its rounding.
    assert (harmonized - exact).abs().mean() < 0.02
    outside = (mask == 0).expand_as(composite)
    assert torch.equal(harmonized[outside], composite.to(dtype)[outside])


def test_nobody_asks_what_a_model_can_do():
    pattern = re.compile(r"(has|get)attr\(\s*(\w+\.)*(model|network|model_class\(\w+\))\b")
    asked = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("harmony_diffusion", "train", "eval", "pipelines", "comfyui", "examples", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not asked, asked
    assert pattern.search("if not has" + 'attr(self.model, "apply_filters"):')
