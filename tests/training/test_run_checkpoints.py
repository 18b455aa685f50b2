import pytest
import torch

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models import create_model, load_model
from harmony_diffusion.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from harmony_diffusion.training.ema import MovingAverage


def make_run(seed=0):
    torch.manual_seed(seed)
    model = create_model("idih", depth=4, base_channels=4).train()
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), MovingAverage(model, 0.9)


def train(run, start, stop):
    model, optimizer, average = run
    for step in range(start, stop):
        torch.manual_seed(step)
        loss = model(torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step)


def all_tensors(run):
    model, optimizer, average = run
    moments = {f"{i}{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    return {f"model {k}": v for k, v in model.state_dict().items()} | moments | average.average


def test_run_from_a_checkpoint_has_the_same_bits(tmp_path):
    whole, cut = make_run(), make_run()
    train(whole, 0, 4)
    train(cut, 0, 2)
    path = save_checkpoint(tmp_path, 2, *cut, {"seed": 0})
    fresh = make_run(seed=9)
    assert load_checkpoint(path, *fresh, {"seed": 0}) == 2
    train(fresh, 2, 4)
    expected, found = all_tensors(whole), all_tensors(fresh)
    assert expected.keys() == found.keys()
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]


def test_checkpoint_holds_the_averaged_weights_as_a_model(tmp_path):
    run = make_run()
    train(run, 0, 2)
    path = save_checkpoint(tmp_path, 2, *run, {})
    loaded = load_model(path / "model").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in run[2].average.items())
    assert not all(torch.equal(loaded[key], value) for key, value in run[0].state_dict().items())


def test_checkpoints_are_limited_and_listed_by_number(tmp_path):
    run = make_run()
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, *run, {}, limit=2)
    save_checkpoint(tmp_path, 11, *run, {}, limit=2)  # again, after a restart
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-11"}


def test_checkpoint_of_other_settings_and_no_checkpoint_are_refused(tmp_path):
    run = make_run()
    path = save_checkpoint(tmp_path, 1, *run, {"seed": 0, "batch": 4})
    with pytest.raises(CheckpointError, match="batch 4 there and 8 here"):
        load_checkpoint(path, *run, {"seed": 0, "batch": 8})
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "checkpoint-7", *run, {})
