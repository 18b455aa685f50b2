import pytest
import torch

from harmony_diffusion.models import create_model
from harmony_diffusion.models.layers import blend, clamp_unit
from harmony_diffusion.training.distillation import Teachers


@pytest.fixture
def folders(tmp_path):
    for seed, (name, config) in enumerate((("harmonizer", {}), ("idih", {"depth": 4, "base_channels": 4}))):
        torch.manual_seed(seed)
        create_model(name, **config).save_pretrained(tmp_path / name)
    return [tmp_path / "harmonizer", tmp_path / "idih"]


def test_target_is_the_mean_of_the_results(folders):
    torch.manual_seed(0)
    composite = torch.rand(2, 3, 64, 64)
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 16:48, 16:48] = 1
    each = [Teachers([folder])(composite, mask, mask) for folder in folders]
    for target, model in zip(each, (Teachers([folder]).models[0] for folder in folders), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(target, model(composite, mask))
    torch.testing.assert_close(Teachers(folders)(composite, mask, mask), (each[0] + each[1]) / 2)
    twice = Teachers([*folders, folders[0]])(composite, mask, mask)
    torch.testing.assert_close(twice, (2 * each[0] + each[1]) / 3)
    assert torch.equal(twice[..., :16, :], composite[..., :16, :])


def test_filters_act_on_all_of_the_object_when_the_given_mask_is_too_small(folders):
    torch.manual_seed(0)
    composite = torch.rand(1, 3, 64, 64)
    exact, given = torch.zeros(2, 1, 1, 64, 64)
    exact[..., 16:48, 16:48] = 1
    given[..., 24:40, 24:40] = 1
    teachers = Teachers(folders[:1])
    target = teachers(composite, given, exact)
    with torch.no_grad():
        filters = teachers.models[0].predict_filters(composite, given)
        frame = clamp_unit(teachers.models[0].transform(composite, filters, exact))
    assert torch.equal(target, blend(frame, composite, exact))
    assert (target != composite)[..., 16:24, 16:48].any()


def test_teachers_are_frozen_and_leave_out_the_mirrored_view():
    model = Teachers(["default"]).models[0]
    assert not model.training and not model.average_mirrored
    assert not any(parameter.requires_grad for parameter in model.parameters())
