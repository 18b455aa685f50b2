import math

import pytest

from harmony_diffusion.errors import InputError
from harmony_diffusion.training.schedules import learning_rate_factor


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
