import pytest
import torch
from tiny_training import save_photographs
from torch.utils.data import default_collate

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.training_set import KeyedView, numbers_item, photograph_item
from harmony_diffusion.diffusion.control_settings import ControlSettings, load_control_settings
from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.training.diffusion_data import PrecomputedSet, open_data, precompute
from harmony_diffusion.training.diffusion_run import Conditioner
from harmony_diffusion.training.diffusion_step import encode_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return save_photographs(tmp_path_factory.mktemp("photographs"))


def batch_of(data, count=4):
    view = KeyedView(data.samples, 0)
    return default_collate([view[index] for index in range(count)])


def test_perturbation_changes_the_foreground_of_the_condition_and_not_the_target(photographs):
    plain, perturbed = (open_data(photographs, "train", 64, perturb=perturb) for perturb in (False, True))
    same, other = plain.images(batch_of(plain, 6), CPU), perturbed.images(batch_of(perturbed, 6), CPU)
    assert torch.equal(same.composite, same.real) and torch.equal(other.real, same.real)
    outside = (other.mask == 0).expand_as(other.real)
    assert torch.equal(other.composite[outside], other.real[outside])
    differs = ((other.composite - other.real).abs() * other.mask).amax((1, 2, 3)) > 0.05
    assert differs.sum() >= 3  # some pairs are left untouched on purpose
    low = ControlSettings("low", sigma=2)
    assert not torch.equal(low.draw(other.composite, other.mask), low.draw(other.real, other.mask))


def test_prompts_are_of_their_photographs_and_dropped_by_key(photographs):
    data = open_data(photographs, "train", 64, caption_column="label")
    assert data.prompts == [f"thing {number}" for number in range(6)]
    models, items = random_components(), batch_of(data)
    some, none, every = (
        Conditioner(data, models, "masked", None, share, CPU)(items).text for share in (0.5, 0.0, 1.0)
    )
    assert torch.equal(every[0], every[1]) and not torch.equal(none[0], none[1])
    for place in range(4):
        assert any(torch.equal(some[place], whole[place]) for whole in (none, every))
    assert not torch.equal(some, none) and not torch.equal(some, every)


def test_precomputed_samples_are_those_of_a_step(photographs, tmp_path):
    data = open_data(photographs, "train", 64, caption_column="label", perturb=True)
    models = random_components()
    # Two processes share the work; what is there is not computed again.
    work = {"variants": 2, "image_channel": "masked", "batch_size": 3}
    assert precompute(tmp_path, data, models, **work, processes=2) == 4 + 6
    assert precompute(tmp_path, data, models, **work) == 3 + 6
    assert precompute(tmp_path, data, models, **work) == 0
    stored = PrecomputedSet(tmp_path, data.samples, 2)
    for epoch, index in ((0, 2), (1, 5), (2, 1)):
        item = stored.sample_at(7, epoch, index)
        source = int(item["source"])
        assert source == data.samples.order(7, epoch, index) and int(item["key"]) == sample_key(
            7, epoch, index
        )
        key = sample_key(0, epoch % 2, source)
        crop = photograph_item(data.samples.photographs[source], 64, key) | numbers_item(key=key)
        images = data.images(default_collate([crop]), CPU)
        expected = encode_images(models["vae"], images, "masked")
        for name, value in zip(("latents", "latent_mask", "image_latents"), expected, strict=True):
            torch.testing.assert_close(item[name][None], value, rtol=1e-4, atol=1e-4)
        draw = ControlSettings("low").draw
        given = Conditioner(data, models, "masked", draw, 0.0, CPU)(default_collate([item]))
        torch.testing.assert_close(given.control, draw(images.composite, images.mask))
    with pytest.raises(InputError, match="other image_channel"):
        precompute(tmp_path, data, models, **work | {"image_channel": "composite"})
    with pytest.raises(InputError, match="other perturbed"):
        precompute(tmp_path, open_data(photographs, "train", 64, caption_column="label"), models, **work)
    other = random_components(seed=1)
    with pytest.raises(InputError, match="other vae"):
        precompute(tmp_path, data, other, **work)


@pytest.mark.parametrize("role", ["high", "low"])
def test_control_settings_survive_saving_and_reach_the_pipeline(role, tmp_path):
    settings = ControlSettings(role, "unet_input", (50, 60), False, 3.5, False)
    settings.save(tmp_path)
    assert load_control_settings(tmp_path) == settings
    own = {"high": {"canny_thresholds": (50, 60), "silhouette": False}}
    own["low"] = {"sigma": 3.5, "premultiplied": False}
    assert settings.of_pipeline() == {"control_input": "unet_input", **own[role]}
    (tmp_path / "control.json").write_text('{"role": "high", "canny_thresholds": [1, 2], "colour": 1}')
    with pytest.raises(CheckpointError, match="colour"):
        load_control_settings(tmp_path)
    with pytest.raises(InputError, match="role"):
        ControlSettings("middle")
