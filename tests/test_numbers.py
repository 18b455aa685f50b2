import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from harmony_diffusion.errors import InputError
from harmony_diffusion.numbers import check_integer, check_number


@pytest.mark.parametrize(
    "value", [0, 1, 0.5, np.float32(0.5), np.float16(1), np.int64(1), np.uint8(0), Fraction(1, 2)]
)
def test_every_kind_of_number_is_taken_and_becomes_a_float(value):
    number = check_number("strength", value, 0, 1)
    assert type(number) is float and number == value


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_every_kind_of_integer_is_taken_and_becomes_an_int(value):
    assert type(check_integer("steps", value, 1)) is int


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, np.float32("nan"), -1e-9, 1 + 1e-9, 10**400, -(10**400), 10**5000]
    + [True, np.True_, "0.5", b"1", None, [0.5], 1j, np.array(0.5), torch.tensor(0.5), object()],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_with_its_name_on_one_short_line(value):
    with pytest.raises(InputError, match="^strength: must be a number from 0 to 1, got ") as caught:
        check_number("strength", value, 0, 1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 120
    with pytest.raises(InputError, match="^steps: must be an integer from 1 to 9, got "):
        check_integer("steps", value, 1, 9)


def test_bounds_are_told_as_they_are():
    for low, high, text in (
        (-math.inf, math.inf, "a number, got"),
        (0, math.inf, "a number of 0 or more, got"),
        (-math.inf, 3, "a number of 3 or less, got"),
    ):
        with pytest.raises(InputError, match=text):
            check_number("scale", None, low, high)
    with pytest.raises(InputError, match="must be a number, got"):
        check_number("scale", 10**400)
    assert check_integer("label", 10**30) == 10**30
