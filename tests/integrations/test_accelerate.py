"""The helper for Accelerate against a regularizer attached by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fptt
from tests.problems import assert_same_weights, run_steps, small_model, weights

accelerate = pytest.importorskip("accelerate")
from accelerate.state import AcceleratorState, GradientState  # noqa: E402

from fptt.integrations.accelerate import attach_regularizer  # noqa: E402

SETTINGS: dict[str, Any] = {"alpha": 0.3, "coupling": "coupled", "max_norm": 0.5}


@pytest.fixture
def accelerator() -> Iterator[Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield accelerate.Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_steps_are_those_of_a_regularizer_attached_by_hand_and_averages_are_saved(
    accelerator: Any, tmp_path: Path
) -> None:
    bare, model = small_model(), small_model()
    model.load_state_dict(bare.state_dict())
    optimizer = torch.optim.Adam(bare.parameters(), lr=0.01)
    fptt.DynamicRegularizer.for_optimizer(optimizer, **SETTINGS)
    run_steps(bare, optimizer, range(6))
    model, prepared = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01))
    regularizer = attach_regularizer(accelerator, prepared, **SETTINGS)
    run_steps(model, prepared, range(3))
    accelerator.save_state(str(tmp_path))
    run_steps(model, prepared, range(3, 6))
    assert_same_weights(bare, model)
    expected = [entry.dual.clone() for entry in regularizer.state.values()]
    accelerator.load_state(str(tmp_path))
    run_steps(model, prepared, range(3, 6))
    assert all(torch.equal(*pair) for pair in zip(weights(bare), model.parameters(), strict=True))
    for entry, dual in zip(regularizer.state.values(), expected, strict=True):
        assert torch.equal(entry.dual, dual)


def test_a_checkpoint_without_averages_is_refused(accelerator: Any, tmp_path: Path) -> None:
    """By Accelerate itself, since the regularizer is registered."""
    model = small_model()
    model, prepared = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    accelerator.save_state(str(tmp_path))
    attach_regularizer(accelerator, prepared)
    with pytest.raises(RuntimeError, match=r"Found checkpoints: 0\s+Registered objects: 1"):
        accelerator.load_state(str(tmp_path))


def test_an_optimizer_that_was_not_prepared_is_refused(accelerator: Any) -> None:
    with pytest.raises(TypeError, match=r"optimizer must be what accelerator.prepare returned, got a Adam of its own"):
        attach_regularizer(accelerator, torch.optim.Adam(small_model().parameters()))


def test_a_method_is_refused_where_accelerate_holds_steps_back(accelerator: Any) -> None:
    """Every second batch would else be counted, and learn nothing."""
    accelerator.gradient_accumulation_steps = 2
    bare = fptt.nn.LSTM(3, 5, 4)
    model, prepared = accelerator.prepare(bare, torch.optim.SGD(bare.parameters(), lr=0.1))
    method = fptt.FPTT(model, prepared, fptt.SequenceLoss(torch.nn.functional.mse_loss), num_chunks=2)
    batch, before = (torch.randn(8, 6, 3), torch.randn(8, 6, 4)), weights(bare)
    with (
        accelerator.accumulate(model),
        pytest.raises(RuntimeError, match=r"optimizer must make every step, got Accelerate's inside .*accumulate"),
    ):
        method.train_batch(*batch)
    assert method.batches == 0
    assert all(torch.equal(*pair) for pair in zip(before, bare.parameters(), strict=True))
    with accelerator.accumulate(model):  # Accelerate steps here
        assert method.train_batch(*batch).updates == 2
