"""Order, schedules, averages, checkpoints, synchronised batch norm."""

import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch import nn

from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models import create_model, load_model
from harmony_diffusion.training.batch_norm import synchronize_batch_norms
from harmony_diffusion.training.checkpoints import (
    checkpoints,
    load_checkpoint,
    remove_unfinished,
    save_checkpoint,
    write_folder_atomically,
)
from harmony_diffusion.training.ema import MovingAverage
from harmony_diffusion.training.order import BatchPositions, TwoStreams
from harmony_diffusion.training.schedules import learning_rate_factor


def positions_of_a_step(step, batch_size, accumulation, processes):
    parts = [
        list(BatchPositions(batch_size, accumulation, step, step + 1, rank, processes))
        for rank in range(processes)
    ]
    return sorted(position for part in parts for micro_batch in part for position in micro_batch)


@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1)])
def test_samples_of_a_step_do_not_depend_on_how_they_are_shared_out(shape):
    assert positions_of_a_step(5, *shape) == list(range(40, 48))


def test_positions_go_on_where_they_stopped():
    whole = list(BatchPositions(3, 2, 0, 7))
    assert list(BatchPositions(3, 2, 0, 4)) + list(BatchPositions(3, 2, 4, 7)) == whole
    assert len(BatchPositions(3, 2, 4, 7)) == 6 and len(whole) == 14
    assert len(BatchPositions(3, 2, 7, 7)) == 0


class Recorder:
    def __len__(self):
        return 5

    def sample_at(self, seed, epoch, index):
        return seed, epoch, index


def test_two_streams_pass_through_all_samples_with_different_seeds():
    streams = TwoStreams(Recorder())
    seen = [streams.sample_at(3, 1, index) for index in range(len(streams))]
    even, odd = seen[::2], seen[1::2]
    assert [index for *_, index in even] == [index for *_, index in odd] == [0, 1, 2, 3, 4]
    assert len({seed for seed, *_ in even}) == len({seed for seed, *_ in odd}) == 1
    assert even[0][0] != odd[0][0] and {epoch for _, epoch, _ in seen} == {1}


def test_schedules_have_the_values_of_their_formulas():
    def factors(schedule, steps, **settings):
        return [learning_rate_factor(schedule, step, 100, **settings) for step in steps]

    assert factors("constant", (0, 99)) == [1, 1]
    assert factors("constant", (0, 1, 3, 4), warmup=4) == [0.25, 0.5, 1, 1]
    # HDNet's "target decay", counted from 0.
    assert factors("step", (9, 10, 19, 20), milestones=(10, 20)) == pytest.approx([1, 0.1, 0.1, 0.01])
    # PCT-Net's transformer: half constant, half linear to 0.
    assert factors("linear", (0, 50, 75, 100), hold=50) == [1, 1, 0.5, 0]
    cosine = [0.5 + 0.5 * math.cos(math.pi * done) for done in (0, 0.25, 1)]
    assert factors("cosine", (20, 40, 100), hold=20) == pytest.approx(cosine)
    with pytest.raises(InputError, match="lr_scheduler"):
        learning_rate_factor("sometimes", 0, 1)


def test_moving_average_is_the_weighted_sum_and_gives_the_weights_back():
    model = nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(1)
    average = MovingAverage(model, decay=0.15)
    for updates, value in enumerate((3.0, 5.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.num_batches_tracked.fill_(updates + 7)
        average.update(model, updates)
    # Decays are min(0.15, 1/10) and min(0.15, 2/11).
    expected = 0.15 * (0.1 * 1 + 0.9 * 3) + 0.85 * 5
    with average.in_place_of(model):
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
        assert model.num_batches_tracked.item() == 8
    assert model.weight.item() == 5


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


def test_folder_that_cannot_be_written_whole_leaves_the_one_before(tmp_path):
    write_folder_atomically(tmp_path / "model", lambda folder: (folder / "a").write_text("old") and None)

    def fail(folder):
        (folder / "a").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_folder_atomically(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "a").read_text() == "old"
    (tmp_path / ".unfinished-x" / "deep").mkdir(parents=True)
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def norm_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 1)).double()


def batch_of_four():
    return torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def half_a_batch(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network = norm_network()
    assert synchronize_batch_norms(network) == 1
    network(batch_of_four()[2 * rank : 2 * rank + 2]).square().mean().backward()
    for parameter in network.parameters():
        dist.all_reduce(parameter.grad)
    if rank == 0:
        gradients = {key: value.grad / 2 for key, value in network.named_parameters()}
        torch.save((gradients, dict(network.named_buffers())), results)
    dist.destroy_process_group()


def test_synchronised_batch_norm_equals_one_process(tmp_path):
    network = norm_network()
    network(batch_of_four()).square().mean().backward()
    context = multiprocessing.get_context("spawn")
    arguments = [(rank, tmp_path / "store", tmp_path / "results") for rank in range(2)]
    children = [context.Process(target=half_a_batch, args=args) for args in arguments]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    gradients, buffers = torch.load(tmp_path / "results", weights_only=True)
    for key, parameter in network.named_parameters():
        # The statistics are computed in float32, as the networks are.
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-6)
    for key, value in network.named_buffers():
        torch.testing.assert_close(buffers[key], value, rtol=1e-5, atol=1e-6)


def test_synchronised_batch_norm_keeps_keys_and_is_plain_in_one_process():
    plain, synced = norm_network(), norm_network()
    synchronize_batch_norms(synced)
    assert plain.state_dict().keys() == synced.state_dict().keys()
    assert torch.equal(plain(batch_of_four()), synced(batch_of_four()))
