import numpy as np
import pytest

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.cast_shadow import cast_shadow


@pytest.fixture
def mask():
    mask = np.zeros((80, 100), np.float32)
    mask[20:60, 45:55] = 1
    return mask


def centre(factor):
    """Return the centre of the shadow as (row, column), counted from the foot of the object."""
    rows, columns = np.nonzero(factor < 0.9)
    return rows.mean() - 59, columns.mean() - 49.5


@pytest.mark.parametrize(
    ("direction", "down", "right"), [(0, 0, 1), (60, -1, 1), (180, 0, -1), (270, 1, 0), (315, 1, 1)]
)
def test_it_falls_where_the_direction_says(mask, direction, down, right):
    row, column = centre(cast_shadow(mask, direction=direction, softness=0))
    assert np.sign(column) * (abs(column) > 5) == right
    assert down == 0 or np.sign(row) == down


def test_a_way_in_depth_looks_half_as_long(mask):
    # 40 rows, of which the sine goes into depth.
    factor = cast_shadow(mask, direction=60, length=1, softness=0)
    rows = np.flatnonzero((factor < 0.9).any(1))
    assert abs((60 - rows[0]) - 40 * 0.5 * np.sin(np.pi / 3)) <= 1.5


def test_it_is_as_dense_as_asked_and_never_on_the_object(mask):
    factor = cast_shadow(mask, density=0.25)
    assert factor.dtype == np.float32 and factor.min() >= 0.75 and (factor[mask == 1] == 1).all()
    assert (cast_shadow(mask, density=0) == 1).all() and (cast_shadow(mask * 0) == 1).all()


def test_its_far_end_is_softer(mask):
    hard, soft = (cast_shadow(mask, direction=0, length=1, softness=s) for s in (0, 1))
    assert np.abs(np.diff(soft, axis=1)).max() < np.abs(np.diff(hard, axis=1)).max()


@pytest.mark.parametrize("wrong", [{"length": -1}, {"softness": 2}, {"density": np.nan}, {"direction": 1e9}])
def test_values_out_of_range_are_refused(mask, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        cast_shadow(mask, **wrong)
