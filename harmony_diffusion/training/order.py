"""Order of the samples of a run: a function of the seed and the step alone."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.training_set import Item, TrainingSet


class BatchPositions(Sampler[list[int]]):
    """Positions of the samples of one process in the order of the run: a batch sampler that starts anywhere.

    The samples of a step follow one another; the step is cut into micro-batches, and each of these into one
    part a process. So the samples of a step depend on its size alone, not on how it is shared out.

    Args:
        batch_size: Samples of one micro-batch of one process.
        accumulation: Micro-batches of a step.
        start: First step.
        stop: Step before which to stop.
        rank: Number of this process.
        processes: Number of processes.

    Example:
        >>> list(BatchPositions(2, 1, start=3, stop=5, rank=1, processes=2))
        [[14, 15], [18, 19]]
    """

    def __init__(
        self, batch_size: int, accumulation: int, start: int, stop: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.batch_size, self.processes, self.rank = batch_size, processes, rank
        self.first, self.last = start * accumulation, stop * accumulation

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return max(0, self.last - self.first)

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over the positions of each micro-batch."""
        for number in range(self.first, self.last):
            begin = (number * self.processes + self.rank) * self.batch_size
            yield list(range(begin, begin + self.batch_size))


class TwoStreams:
    """A training set whose even and odd positions are two passes through the same samples.

    Harmonizer trains on a fine and a coarse stream, half of a batch each.

    Args:
        training_set: What both streams draw from.
    """

    def __init__(self, training_set: TrainingSet) -> None:
        self.training_set = training_set

    def __len__(self) -> int:
        """Return the samples in an epoch: all, once in each stream."""
        return 2 * len(self.training_set)

    def sample_at(self, seed: int, epoch: int, index: int) -> Item:
        """Return a sample of the fine stream at an even index, of the coarse stream at an odd one."""
        stream_seed = sample_key(seed, 0, index % 2)
        return self.training_set.sample_at(stream_seed, epoch, index // 2)
