import pytest

from harmony_diffusion.training.order import BatchPositions, TwoStreams


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
