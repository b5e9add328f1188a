"""Checks of values that several places share."""

import pytest
import torch

from fptt._checks import all_finite, are_finite


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", [(0, 0), (1, 6), (2, 3)])
def test_one_bad_number_anywhere_is_seen(bad: float, place: tuple[int, int]) -> None:
    tensors = [torch.randn(size, dtype=dtype) for size, dtype in ((5, torch.float32), (7, torch.float64), (9, None))]
    assert are_finite([*tensors, torch.empty(0)])
    tensors[place[0]][place[1]] = bad
    assert not are_finite(tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("shape", [(), (1, 1), (2, 3)])
def test_a_single_bad_number_is_seen(bad: float, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.full(shape, torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(tensor)
    tensor.view(-1)[-1] = bad
    assert not all_finite(tensor)
    assert all_finite(torch.ones(shape, dtype=torch.int64))


@pytest.mark.parametrize("bad", [complex(torch.inf, 0), complex(0, -torch.inf), complex(1, torch.nan)], ids=str)
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_bad_complex_numbers_are_seen(bad: complex, shape: tuple[int, ...]) -> None:
    """Also beside real ones, whose type has no imaginary part."""
    tensor = torch.full(shape, 1 + 2j)
    assert all_finite(tensor)
    assert are_finite([torch.ones(2), tensor])
    tensor.view(-1)[-1] = torch.tensor(bad)
    assert not all_finite(tensor)
    assert not are_finite([torch.ones(2), tensor])
    assert not are_finite([tensor, torch.ones(2)])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_bad_numbers_beside_integers_are_seen(dtype: torch.dtype) -> None:
    """In whose type there is no NaN."""
    integers, bad = torch.ones(3, dtype=dtype), torch.tensor([torch.nan, 1.0])
    assert are_finite([integers, torch.ones(2)])
    assert not are_finite([integers, bad])
    assert not are_finite([bad, integers])


def test_bad_numbers_of_both_signs_do_not_cancel() -> None:
    assert not are_finite([torch.tensor([torch.inf, -torch.inf])])
    assert not are_finite([torch.tensor([torch.inf]), torch.tensor([-torch.inf])])


def test_finite_numbers_whose_sum_is_not_are_finite() -> None:
    largest = torch.finfo(torch.float32).max
    assert are_finite([torch.full((4,), largest)])
    assert are_finite(
        [torch.zeros(1), torch.tensor([1e300], dtype=torch.float64)]
    )  # too large for the first one's type
    assert not are_finite([torch.full((4,), largest), torch.tensor([torch.nan])])


def test_no_numbers_are_finite() -> None:
    assert are_finite([])
    assert are_finite([torch.empty(0)])
