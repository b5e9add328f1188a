"""Predictions are those of each sequence alone, however they are padded, packed and cut."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence

import fptt

LENGTHS = [5, 1, 9, 4]
SEQUENCES = [torch.randn(length, 3, generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
MASK = fptt.length_mask(LENGTHS, 9)


@pytest.fixture
def model() -> nn.Module:
    return fptt.nn.LSTM(3, 6, 2, num_layers=2, dropout=0.5)


def alone(model: nn.Module) -> list[Tensor]:
    """Return the outputs of each sequence by itself, (T_i, 2), without dropout."""
    model.eval()
    with torch.no_grad():
        outputs = [model(sequence.unsqueeze(1))[0][:, 0] for sequence in SEQUENCES]
    model.train()
    return outputs


def test_within_a_block_of_autocast_the_weights_are_those_of_now(model: nn.Module) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert fptt.predict(model, SEQUENCES).any()  # pyright: ignore[reportAttributeAccessIssue]
        for param in model.parameters():
            param.zero_()
        assert not fptt.predict(model, SEQUENCES).any()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("chunk_length", [1, 4, 9, 100])
def test_outputs_of_ragged_sequences_are_those_of_each_alone(model: nn.Module, chunk_length: int) -> None:
    expected = alone(model)
    padded = pad_sequence(SEQUENCES, padding_value=torch.nan).nan_to_num(50.0)  # what stands there does not matter
    packed = pack_sequence(SEQUENCES, enforce_sorted=False)
    options: dict[str, Any] = {"chunk_length": chunk_length}
    for found in (
        fptt.predict(model, SEQUENCES, **options),
        fptt.predict(model, packed, **options),
        fptt.predict(model, padded, MASK, **options),
    ):
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, torch.stack([steps[-1] for steps in expected]))
    for ragged in (SEQUENCES, packed):
        for own, steps in zip(fptt.predict(model, ragged, per_step=True, **options), expected, strict=True):
            torch.testing.assert_close(own, steps)
    found = fptt.predict(model, padded, MASK, per_step=True, **options)
    assert isinstance(found, Tensor)
    assert found[4, 0].tolist() == pytest.approx(expected[0][-1].tolist(), abs=1e-6)
    assert not any(tensor.requires_grad for tensor in (fptt.predict(model, SEQUENCES),) if isinstance(tensor, Tensor))


def test_batch_first_and_last_only_are_the_same_numbers(model: nn.Module) -> None:
    expected = fptt.predict(model, SEQUENCES, chunk_length=2)
    turned = fptt.nn.LSTM(3, 6, 2, num_layers=2, batch_first=True)
    turned.load_state_dict(model.state_dict())
    padded = pad_sequence(SEQUENCES, batch_first=True)
    torch.testing.assert_close(fptt.predict(turned, SEQUENCES, batch_first=True, chunk_length=2), expected)
    torch.testing.assert_close(fptt.predict(turned, padded, MASK.T, batch_first=True, chunk_length=3), expected)
    steps = fptt.predict(turned, SEQUENCES, batch_first=True, per_step=True)
    assert [len(own) for own in steps] == LENGTHS
    whole = torch.randn(7, 4, 3)
    every = fptt.predict(model, whole)
    last = fptt.nn.LSTM(3, 6, 2, num_layers=2, last_only=True)
    last.load_state_dict(model.state_dict())
    torch.testing.assert_close(fptt.predict(last, whole, chunk_length=3), every)
    # as well as ragged sequences that are not, and a mask that leaves nothing out
    sequences = list(whole.unbind(1))
    for given in (sequences, pack_sequence(sequences)):
        torch.testing.assert_close(fptt.predict(last, given, chunk_length=3), every)
    torch.testing.assert_close(fptt.predict(last, whole, torch.ones(7, 4, dtype=torch.bool), chunk_length=3), every)
    with pytest.raises(ValueError, match=r"output for each of 7 steps \(last_only=False\), got shape \(1, 4, 2\)"):
        fptt.predict(last, whole, per_step=True)
    with pytest.raises(ValueError, match="last_only=False"):
        fptt.predict(last, SEQUENCES)


class Flat(nn.Module):
    """Returns the numbers of the last step, or one number of every step."""

    def __init__(self, *, batch_first: bool, per_step: bool) -> None:
        super().__init__()
        self.lstm, self.readout = nn.LSTM(3, 6, batch_first=batch_first), nn.Linear(6, 1 if per_step else 2)
        self.batch_first, self.per_step = batch_first, per_step

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = self.lstm(inputs, state)
        if self.per_step:
            return self.readout(hidden).squeeze(-1), state
        return self.readout(hidden[:, -1] if self.batch_first else hidden[-1]), state


@pytest.mark.parametrize(("num_steps", "batch_size"), [(7, 5), (5, 5), (7, 2)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_outputs_of_the_last_step_without_a_time_dimension_are_refused(
    batch_first: bool, num_steps: int, batch_size: int
) -> None:
    inputs = torch.randn(batch_size, num_steps, 3) if batch_first else torch.randn(num_steps, batch_size, 3)
    found = rf"with T, B = \({num_steps}, {batch_size}\), .*, got \({batch_size}, 2\): the output of the last step"
    with pytest.raises(ValueError, match=found):
        fptt.predict(Flat(batch_first=batch_first, per_step=False), inputs, batch_first=batch_first)
    model = Flat(batch_first=batch_first, per_step=True)
    assert torch.as_tensor(fptt.predict(model, inputs, batch_first=batch_first)).shape == (batch_size,)


@pytest.mark.parametrize("inputs", [SEQUENCES, torch.zeros(5, 9, 3)])
def test_a_layout_other_than_the_models_is_refused(inputs: Any) -> None:
    for own in (False, True):
        model = fptt.nn.LSTM(3, 6, 2, batch_first=own)
        with pytest.raises(ValueError, match=f"batch_first must be that of the model, {own}, got {not own}"):
            fptt.predict(model, inputs, batch_first=not own)


@pytest.mark.parametrize("inputs", [SEQUENCES, torch.zeros(300, 4, 3), torch.zeros(5, 4, 3)])
def test_a_bidirectional_model_is_refused(inputs: Any) -> None:
    model = fptt.nn.Recurrent(nn.LSTM(3, 6, bidirectional=True), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="must read forward in time, got the bidirectional LSTM 'rnn'"):
        fptt.predict(model, inputs)


def test_modules_stay_in_their_modes(model: nn.Module) -> None:
    frozen = model.get_submodule("readout").eval()
    first, second = fptt.predict(model, SEQUENCES), fptt.predict(model, SEQUENCES)
    assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))  # without dropout
    assert model.training
    assert not frozen.training


@pytest.mark.parametrize(
    ("inputs", "mask", "message"),
    [
        ([], None, "at least one sequence"),
        ([torch.zeros(0, 3)], None, "at least one sequence"),
        ([torch.zeros(3, 3), torch.zeros(2, 4)], None, r"same shape a step in every sequence, got \[\(3,\), \(4,\)\]"),
        (SEQUENCES, MASK, "mask must be None with ragged sequences"),
        (torch.zeros(9, 4, 3), MASK.T, r"mask must be boolean with the first two dims of inputs, \(9, 4\), got"),
        (torch.zeros(9, 4, 3), MASK.int(), "mask must be boolean"),
        (torch.zeros(9, 4, 3), MASK & (torch.arange(4) > 0), "at least one real step"),
        (torch.zeros(0, 4, 3), None, "inputs must have a T and a B of at least 1"),
    ],
)
def test_what_is_no_sequence_is_refused(model: nn.Module, inputs: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fptt.predict(model, inputs, mask)
    with pytest.raises(ValueError, match="chunk_length must be a positive integer, got 0"):
        fptt.predict(model, inputs, mask, chunk_length=0)


def test_a_mask_that_is_no_tensor_is_named(model: nn.Module) -> None:
    with pytest.raises(TypeError, match="mask must be a tensor, got a list"):
        fptt.predict(model, torch.zeros(2, 1, 3), [[True], [False]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="mask must be a tensor, got a list"):
        fptt.last_output(torch.zeros(2, 1, 3), [[True], [False]])  # pyright: ignore[reportArgumentType]
