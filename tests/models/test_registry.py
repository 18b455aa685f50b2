"""The contract every registry model keeps."""

import pytest
import torch
from small_configs import SMALL

from harmony_diffusion.models import (
    MODELS,
    create_model,
    has_weights,
    list_models,
    load_model,
    model_class,
)
from harmony_diffusion.models.origin import Origin

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def build():
    cache = {}

    def get(name):
        if name not in cache:
            torch.manual_seed(0)
            cache[name] = create_model(name, **SMALL.get(name, {})).eval()
        return cache[name]

    return get


@every_model
def test_output_has_shape_and_range_and_is_finite(name, build, tiny_sample):
    composite, mask = tiny_sample
    with torch.no_grad():
        harmonized = build(name)(composite, mask)
    assert harmonized.shape == composite.shape and harmonized.dtype == composite.dtype
    assert torch.isfinite(harmonized).all()
    assert harmonized.min() >= 0 and harmonized.max() <= 1


@every_model
def test_background_is_unchanged_and_input_not_mutated(name, build, tiny_sample):
    composite, mask = tiny_sample
    before = composite.clone(), mask.clone()
    with torch.no_grad():
        harmonized = build(name)(composite, mask)
    background = (mask == 0).expand_as(composite)
    assert torch.equal(harmonized[background], composite[background])
    assert torch.equal(composite, before[0]) and torch.equal(mask, before[1])


@every_model
@pytest.mark.parametrize("size", [(32, 32), (37, 61)])
def test_odd_sizes(name, build, size):
    generator = torch.Generator().manual_seed(1)
    composite = torch.rand(1, 3, *size, generator=generator)
    mask = torch.zeros(1, 1, *size)
    mask[..., 8:20, 10:25] = 1
    with torch.no_grad():
        assert build(name)(composite, mask).shape == composite.shape


@every_model
@pytest.mark.parametrize("kind", ["empty", "full", "one_pixel", "constant"])
def test_finite_on_degenerate_input(name, build, kind, tiny_sample):
    composite, mask = (t[:1].clone() for t in tiny_sample)
    if kind == "constant":
        composite.fill_(0.0)
    else:
        mask.fill_(1.0 if kind == "full" else 0.0)
        mask[..., 20, 20] = 1.0 if kind != "empty" else 0.0
    with torch.no_grad():
        assert torch.isfinite(build(name)(composite, mask)).all()


@every_model
def test_same_input_gives_same_output_and_batch_equals_loop(name, build, tiny_sample):
    composite, mask = tiny_sample
    with torch.no_grad():
        both = build(name)(composite, mask)
        again = build(name)(composite, mask)
        single = torch.cat([build(name)(composite[i : i + 1], mask[i : i + 1]) for i in range(2)])
    assert torch.equal(both, again)
    torch.testing.assert_close(both, single, rtol=0, atol=2e-5)


@every_model
def test_gradient_reaches_every_parameter(name, tiny_sample):
    torch.manual_seed(0)
    model = create_model(name, **SMALL.get(name, {})).train()
    if model.num_parameters() == 0:
        pytest.skip("has no parameters")
    composite, mask = tiny_sample
    model(composite, mask).sub(0.3).square().sum().backward()
    dead = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not dead
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@every_model
def test_saved_model_loads_and_gives_identical_output(name, build, tiny_sample, tmp_path):
    build(name).save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(*tiny_sample), build(name)(*tiny_sample))


@every_model
def test_white_box_models_agree_with_forward(name, build, tiny_sample):
    model = build(name)
    if not model.predicts_filters:
        pytest.skip("not a white-box model")
    composite, mask = tiny_sample
    with torch.no_grad():
        filters = model.predict_filters(composite, mask)
        assert filters.ndim in (2, 4) and len(filters) == len(composite)
        rendered = model.apply_filters(composite, filters, mask)
        torch.testing.assert_close(rendered, model(composite, mask), rtol=0, atol=1e-5)


@every_model
def test_states_its_origin_and_working_size(name):
    cls = model_class(name)
    assert isinstance(cls.origin, Origin) and cls.origin.title
    assert cls.working_size >= 32
    assert cls.__doc__ and cls.__module__.startswith("harmony_diffusion.models.")


def test_models_are_listed_by_whether_weights_come_along():
    assert list_models() == list(MODELS)
    shipped = list_models(has_weights=True)
    assert shipped and all(has_weights(name) for name in shipped)
    assert list_models(has_weights=False) == [name for name in MODELS if name not in shipped]
