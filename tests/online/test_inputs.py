import pytest
import torch

from fptt._online.inputs import Features, RunningMoments, standardize


def test_rounding_is_no_variation() -> None:
    """After so many steps at one value the first step, at another, has no weight left in the sums."""
    value, num_steps = 0.1, 2**50
    one = torch.ones(1, dtype=torch.float64)
    moments = RunningMoments(num_steps, 0 * one, num_steps * value * one, num_steps * value**2 * (1 + 1e-15) * one)
    scaled, after = standardize(torch.tensor([[value + 1e-6]]), moments)
    assert scaled.item() == 0
    assert after.num_steps == num_steps + 1


@pytest.mark.parametrize("value", [1e-30, 0.1, 1e6])
def test_a_feature_that_stands_still_is_zero_and_one_that_hardly_varies_is_not(value: float) -> None:
    still = torch.full((50, 1), value, dtype=torch.float64)
    assert not standardize(still, None)[0].any()
    flicker = still * (1 + 1e-6 * torch.tensor([1.0, -1.0]).repeat(25)[:, None])
    assert standardize(flicker, None)[0][2:].abs().allclose(torch.ones(48, 1, dtype=torch.float64), atol=0.5)


def test_arrays_of_any_layout_are_rows() -> None:
    expected = torch.arange(6.0).view(3, 2)
    plain = expected.numpy()
    for array in (plain[::-1].copy()[::-1], plain.astype(">f4"), plain.astype("<f4")):
        features = Features(torch.zeros(1))
        assert torch.equal(features.rows(array), expected)
        assert torch.equal(features.row(array[1]), expected[1:2])


def test_rows_of_a_frame_are_mappings_of_its_columns() -> None:
    pandas = pytest.importorskip("pandas")
    features = Features(torch.zeros(1))
    assert torch.equal(features.row({"a": 1.0, "b": 2.0}), torch.tensor([[1.0, 2.0]]))
    features.fix()
    frame = pandas.DataFrame({"b": [4.0, 6.0], "a": [3.0, 5.0]}, index=[7, 7])
    assert torch.equal(features.rows(frame), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    assert torch.equal(features.row(frame.iloc[1]), torch.tensor([[5.0, 6.0]]))  # not in the frame's own order
    with pytest.raises(ValueError, match=r"\['a', 'b'\] missing, \['x', 'y'\] unknown"):
        features.row(pandas.Series({"x": 1.0, "y": 2.0}))
    with pytest.raises(ValueError, match=r"features of the first step: \['b'\] missing, \['c'\] unknown"):
        features.rows(frame.rename(columns={"b": "c"}))
