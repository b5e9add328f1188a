"""Series of chunks in recorded blocks: the structure of the recording, on the processor.

There a block is not replayed by a device but run anew, with the same tensors in the same places; everything else is
what runs on a GPU. `tests/test_cuda.py` has the recordings themselves.
"""

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt._engine.compiled import cuda_graph, engine
from fptt._engine.compiled.cuda_graph import CUDAGraphs
from tests.engine.compiled.agreement import (
    FORMS,
    assert_equal_memory,
    assert_equal_results,
    batch,
    make_method,
    make_model,
    make_pair,
    train_both,
)
from tests.engine.compiled.test_staggered import C, D, H, Learned, batches, number_of_steps


def record_on_cpu(graphs: CUDAGraphs, in_place: Sequence[Tensor], size: int) -> Any:
    """Record a block as `CUDAGraphs` does, by a function that runs it anew and leaves its outputs in one place."""
    changed = [*in_place, *graphs.state]
    before = [tensor.clone() for tensor in changed]
    outputs = [tensor.clone() for tensor in graphs._run_block(in_place, size)]
    for tensor, old in zip(changed, before, strict=True):
        tensor.copy_(old)
    recorded.append(size)

    def replay() -> None:
        replayed.append(size)
        for place, tensor in zip(outputs, graphs._run_block(in_place, size), strict=True):
            place.copy_(tensor)

    return cuda_graph._Recorded(replay, outputs)


recorded: list[int] = []
replayed: list[int] = []


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch, float64: None, interpreted: None) -> None:
    recorded.clear()
    replayed.clear()
    monkeypatch.setattr(engine, "RECORDED_ON", ("cpu",))
    monkeypatch.setattr(CUDAGraphs, "_record", record_on_cpu)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_eager(form: str) -> None:
    methods = make_pair(make_model("lstm"), "adam", max_norm=0.5, **FORMS[form])
    for size in (3, 3, 2, 3):
        train_both(methods, *batch(size=size))
    assert_equal_memory(methods, 1e-10)
    assert recorded == [4, 1] * 3  # of two sizes of batches; the second moves the buffers of the first
    assert replayed == [4, 1, 1] * 4


def test_blocks_of_four_sizes_make_up_any_number_of_chunks() -> None:
    methods = make_pair(make_model("rnn"), "sgd", num_chunks=None, chunk_length=1, alpha=0.3)
    for length in (91, 16, 85, 7):
        train_both(methods, *batch(length))
    assert_equal_memory(methods, 1e-10)
    assert recorded == [64, 16, 4, 1]
    assert replayed == [64, 16, 4, 4, 1, 1, 1, 16, 64, 16, 4, 1, 4, 1, 1, 1]


def test_blocks_of_large_chunks_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk_bytes = 3 * (2 * D + 1) * 8 + 100  # inputs of two steps, labels, numbers
    monkeypatch.setattr(CUDAGraphs, "MOST_BYTES", 4 * chunk_bytes)
    methods = make_pair(make_model("rnn"), "sgd", num_chunks=20, alpha=0.3)
    train_both(methods, *batch(40))
    assert replayed == [4] * 5
    monkeypatch.setattr(CUDAGraphs, "MOST_BYTES", 1)
    methods = make_pair(make_model("rnn"), "sgd", num_chunks=20, alpha=0.3)
    train_both(methods, *batch(40))
    assert replayed == [4] * 5 + [1] * 20


@pytest.mark.parametrize("learned", [False, True])
def test_a_horizon_equals_eager(*, learned: bool) -> None:
    methods = make_pair(Learned() if learned else fptt.nn.LSTM(D, H, C), "adam", num_chunks=8, horizon=3, alpha=0.3)
    for _ in range(3):
        given = torch.randn(16, 3, D), torch.randint(C, (3,))
        assert_equal_results([method.train_batch(*given) for method in methods], 1e-10)
    assert_equal_memory(methods, 1e-10)


@pytest.mark.parametrize("learned", [False, True])
def test_staggered_lanes_equal_eager(*, learned: bool) -> None:
    loss = fptt.TerminalLoss(functional.cross_entropy, fptt.RunningPrior(C, 0.8)).double()
    methods = make_pair(Learned() if learned else fptt.nn.LSTM(D, H, C), "adam", loss, num_chunks=6, alpha=0.3)
    given = batches([9, 7, 6, 12], 4, per_step=False)
    runs = [method.train_stream(fptt.stagger(given, num_chunks=6)) for method in methods]
    for results in zip(*runs, strict=True):
        assert_equal_results(list(results), 1e-10)
    assert_equal_memory(methods, 1e-10)
    assert number_of_steps(methods[1]) == 1 + learned


def test_chunks_of_two_lengths_a_mask_and_a_given_state() -> None:
    methods = make_pair(fptt.nn.LSTM(D, H, C), "sgd", num_chunks=5, alpha=0.3)
    for _ in range(3):
        given = torch.randn(13, 3, D), torch.randint(C, (3,)), (torch.randn(1, 3, H), torch.randn(1, 3, H))
        mask = fptt.length_mask([13, 4, 7], 13)
        assert_equal_results([method.train_batch(*given, mask) for method in methods], 1e-10)
    assert_equal_memory(methods, 1e-10)


class LastStep(fptt.ChunkLoss):
    """A loss of one's own whose parts are the labels alone: they do not tell how long a chunk is."""

    def split(self, targets: Tensor, mask: Tensor | None, lengths: Sequence[int], batch_size: int) -> list[Tensor]:
        return [targets for _ in lengths]

    def forward(self, output: Tensor, part: Tensor) -> Tensor:
        return functional.cross_entropy(output[-1], part)


def test_chunks_of_two_lengths_whose_parts_are_alike() -> None:
    methods = make_pair(fptt.nn.LSTM(D, H, C), "sgd", LastStep(), num_chunks=5, alpha=0.3)
    for _ in range(3):
        train_both(methods, torch.randn(13, 3, D), torch.randint(C, (3,)))
    assert_equal_memory(methods, 1e-10)


class Normalized(nn.Module):
    """A cell with no initial state of its own, behind a layer with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.cell, self.readout = nn.BatchNorm1d(D), nn.RNNCell(D, H), nn.Linear(H, C)

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs = []
        for own in inputs:
            state = self.cell(self.norm(own), state)
            outputs.append(self.readout(state))
        assert state is not None
        return torch.stack(outputs), state


def test_buffers_that_the_model_moves_and_a_first_chunk_without_a_state() -> None:
    methods = make_pair(Normalized(), "adam", alpha=0.3)
    for _ in range(3):
        train_both(methods, *batch())
    assert_equal_memory(methods, 1e-10)
    assert replayed == [1, 4, 1] * 3


def test_nothing_changes_from_a_bad_number_inside_a_block_on() -> None:
    methods = make_pair(fptt.nn.GRU(D, H, C), "adam", fptt.SequenceLoss(functional.mse_loss), alpha=0.3)
    inputs, targets = torch.randn(12, 3, D), torch.randn(12, 3, C)
    too_large = targets.clone()
    too_large[5, 1, 2] = 1e200  # its square is Inf, in the third chunk of six
    train_both(methods, inputs, targets)
    for method in methods:
        with pytest.raises(FloatingPointError, match="chunk 2"):
            method.train_batch(inputs, too_large)
    assert methods[1].updates == 6 + 2
    assert_equal_memory(methods, 1e-10)
    train_both(methods, inputs, targets)


def test_a_step_is_recorded_again_when_its_tensors_have_moved() -> None:
    one, other = (make_method(make_model("lstm"), "adam", engine="compiled") for _ in range(2))
    other.model.load_state_dict(one.model.state_dict())
    given = batch()
    one.train_batch(*given)
    saved = io.BytesIO()
    torch.save([one.state_dict(), one.optimizer.state_dict(), one.model.state_dict()], saved)
    one.train_batch(*given)
    other.train_batch(*given)
    recorded.clear()
    method, optimizer, model = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    other.load_state_dict(method)
    other.optimizer.load_state_dict(optimizer)
    other.model.load_state_dict(model)
    other.train_batch(*given)
    assert recorded == [4, 1]
    assert_equal_memory([one, other], 0)
