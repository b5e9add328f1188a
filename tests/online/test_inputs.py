import pytest
import torch

from fptt._online.inputs import RunningMoments, standardize


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
