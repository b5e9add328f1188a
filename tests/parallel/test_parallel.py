"""Several processes equal one on the whole batch; with updates of their own they meet at the means."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fptt
from tests.parallel.problem import NUM_UPDATES, SETTINGS, K, Model, batch, difference, everything, make_method, train
from tests.parallel.processes import run_in_processes
from tests.parallel.work import (
    CHUNKED,
    TwoReadouts,
    compiled,
    compiled_all,
    sparse_gradient,
    steps_of_several_targets,
    work,
    work_traced,
)

pytestmark = pytest.mark.xdist_group("parallel")  # its processes start once


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_in_processes(work, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_in_processes(work_traced, tmp_path_factory.mktemp("traced"))


def compare(found: dict[str, Any], alone: fptt.Method, *, staggered: bool = False) -> None:
    """Train alone on the same batches, and compare with what two processes have found together."""
    results = train(alone, found["batches"], staggered=staggered)
    assert found["updates"] == alone.updates
    assert difference(found["tensors"], everything(alone)) < 1e-10
    for together, one in zip(found["results"], results, strict=True):
        assert together.updates == one.updates
        for field in ("loss", "chunk_losses", "penalty", "gradient_norm"):
            torch.testing.assert_close(getattr(together, field), getattr(one, field), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one_on_the_whole_batch(found: list[dict[str, Any]], name: str) -> None:
    """After 100 updates, all of them with the same bits in both."""
    alone = make_method(SETTINGS[name])
    compare(found[0][name], alone, staggered="staggered" in SETTINGS[name])
    assert alone.updates >= 0.9 * NUM_UPDATES
    assert_same_bits(found[0][name], found[1][name])


@pytest.mark.parametrize("name", CHUNKED)
def test_traced_steps_equal_one_process_on_the_whole_batch(traced: list[dict[str, Any]], name: str) -> None:
    """After 40 updates."""
    alone = make_method(SETTINGS[name])
    compare(traced[0][name], alone, staggered="staggered" in SETTINGS[name])
    assert alone.updates >= 0.9 * 40
    assert_same_bits(traced[0][name], traced[1][name])


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert difference(one["tensors"], other["tensors"]) == 0
    for own, its in zip(one["results"], other["results"], strict=True):
        assert torch.equal(own.chunk_losses, its.chunk_losses)


def average_(methods: list[fptt.Method]) -> None:
    for tensors in zip(*(shared(method) for method in methods), strict=True):
        mean = torch.stack(list(tensors)).mean(0)
        for tensor in tensors:
            tensor.copy_(mean)


def shared(method: fptt.Method) -> list[Tensor]:
    assert method.regularizer is not None
    return [*(param.data for param in method.model.parameters()), *method.regularizer.named_tensors().values()]


def test_updates_of_ones_own_meet_at_the_means(found: list[dict[str, Any]]) -> None:
    """The same in one process: chunk by chunk, with means of weights, averages and duals after every third."""
    losses = [ScaledLoss().double() for _ in range(2)]
    methods = [make_method({**SETTINGS["FPTT"], "num_chunks": 1, "loss": loss}) for loss in losses]
    count = 0
    for index in range(6):
        inputs, targets, _ = batch(index, per_step=False)
        states: list[Any] = [None, None]
        for k, chunk in enumerate(inputs.split(2)):
            for number, method in enumerate(methods):
                losses[number].number = k
                result = method.train_batch(chunk[:, number::2], targets[number::2], states[number])
                states[number] = result.state
            count += 1
            if count % 3 == 0:
                average_(methods)
        for number, method in enumerate(methods):
            assert difference(found[number]["local"][index], everything(method)) < 1e-12
    assert difference(found[0]["local"][2], found[1]["local"][2]) == 0  # 12 updates
    assert difference(found[0]["local"][3], found[1]["local"][3]) > 1e-3  # 16


class ScaledLoss(fptt.TerminalLoss):
    """The loss of chunk k of K, as the loss of a whole batch."""

    def __init__(self) -> None:
        super().__init__(nn.functional.cross_entropy, "uniform")
        self.number = 0

    def split(self, targets: Tensor, mask: Tensor | None, lengths: Any, batch_size: int) -> list[Any]:
        (part,) = super().split(targets, mask, lengths, batch_size)
        return [part._replace(position=float(self.number + 1), num_chunks=float(K))]


def test_results_of_local_updates_are_the_same_in_all_processes(found: list[dict[str, Any]]) -> None:
    """The gradient's norm is the mean over the updates of all, here by hand, and the number that of the most."""
    one, other = (process["local results"] for process in found)
    for own, its in zip(one, other, strict=True):
        assert own.updates == its.updates == K
        for field in ("loss", "chunk_losses", "penalty", "gradient_norm"):
            assert torch.equal(getattr(own, field).nan_to_num(-1.0), getattr(its, field).nan_to_num(-1.0))
    assert [(own.skipped, its.skipped) for own, its in zip(one, other, strict=True)] == [(0, 0), (0, 0), (0, 1)]
    assert one[2].chunk_losses.isnan().tolist() == [False, False, True, False]
    assert torch.equal(one[2].loss, one[2].chunk_losses.nanmean())

    # of each chunk of each process, at weights that do not move
    inputs, targets, _ = batch(1, per_step=True)
    torch.manual_seed(0)
    model, norms = Model().double(), torch.zeros(2, K, dtype=torch.float64)
    masks = [torch.ones(8, dtype=torch.bool), torch.arange(8) < 1]
    for number in (0, 1):
        state: Any = None
        for k in range(K):
            chunk, own = slice(2 * k, 2 * k + 2), slice(number, None, 2)
            outputs, state = model(inputs[chunk, own], state)
            state = tuple(tensor.detach() for tensor in state)
            kept = masks[number][chunk]
            if kept.any():
                model.zero_grad()
                share = K * kept.sum() / masks[number].sum()  # the chunk's weight in the mean over the process's steps
                (share * nn.functional.mse_loss(outputs[kept], targets[chunk, own][kept])).backward()
                gradients = [param.grad.flatten() for param in model.parameters() if param.grad is not None]
                norms[number, k] = torch.cat(gradients).norm()
    expected = norms.sum() / (norms > 0).sum()
    assert (norms > 0).sum() == K + 1
    torch.testing.assert_close(one[1].gradient_norm, expected, check_dtype=False)


def test_going_on_keeps_the_updates_since_the_last_sync(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert difference(process["resumed"], process["local"][5]) == 0


def test_a_gradient_that_only_one_process_has_counts_by_its_share(found: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model = TwoReadouts().double()
    loss, targets = nn.CrossEntropyLoss(), torch.tensor([0, 1])
    total = sum(
        (0.5 * loss(model(torch.full((3, 2, 3), value, dtype=torch.float64))[0][-1], targets) for value in (-1.0, 1.0)),
        torch.zeros(()),
    )
    total.backward()
    expected = [(param - 0.5 * param.grad).detach() for param in model.parameters() if param.grad is not None]
    for process in found:
        assert difference(process["gradients"][: len(expected)], expected) < 1e-12


def test_a_step_of_several_targets_counts_by_its_share(found: list[dict[str, Any]]) -> None:
    expected = steps_of_several_targets(slice(None))
    for process in found:
        assert difference(process["shares"], expected) < 1e-12


def test_sparse_gradients_are_added_up(found: list[dict[str, Any]]) -> None:
    expected = sparse_gradient(slice(None))
    for process in found:
        assert difference(process["sparse"], expected) < 1e-12


def test_buffers_of_floating_point_become_their_means(found: list[dict[str, Any]]) -> None:
    assert [process["buffers"] for process in found] == [[1.0, 1], [1.0, 1]]


@pytest.mark.parametrize("sync_every", [1, 3])
def test_a_bad_batch_in_one_process_stops_both_and_changes_nothing(
    found: list[dict[str, Any]], sync_every: int
) -> None:
    said = [process["errors"] for process in found]
    for name, kinds in {
        "inputs": ("OtherProcessError", "FloatingPointError"),
        "targets": ("RuntimeError", "ValueError"),
        "empty": ("RuntimeError", "ValueError"),
        "state": ("RuntimeError", "TypeError"),
    }.items():
        for (text, updates, is_same), kind in zip((one[f"{name} {sync_every}"] for one in said), kinds, strict=True):
            assert text.startswith(kind)
            assert (updates, is_same) == (0, True)
        assert "process 1 cannot learn its batch" in said[0][f"{name} {sync_every}"][0]


def test_a_bad_loss_is_seen_by_all_at_the_same_chunk(found: list[dict[str, Any]]) -> None:
    for process in found:
        text, updates, is_finite = process["errors"]["loss 1"]
        assert text.startswith("FloatingPointError: the loss is ")
        assert "in chunk 2 of batch 0" in text
        assert (updates, is_finite) == (2, True)


def test_a_bad_loss_of_ones_own_stops_the_others_at_the_next_sync(found: list[dict[str, Any]]) -> None:
    first, second = (process["errors"]["loss 3"] for process in found)
    assert first[0].startswith("OtherProcessError: process 1 has met NaN or Inf")
    assert "in chunk 2 of batch 0" in second[0]
    assert (first[1], second[1]) == (3, 2)
    assert first[2]
    assert second[2]


def test_what_does_not_fit_together_is_told(found: list[dict[str, Any]]) -> None:
    for process in found:
        said = process["errors"]
        assert said["drift"].startswith("RuntimeError: the processes have drifted apart in layer.weight_ih_l0")
        assert said["lengths"] == (
            "ValueError: inputs must be cut into as many chunks in every process, got [4, 3] of them."
        )
        assert said["sizes"].startswith("ValueError: model must be the same in all processes, got [")


def test_there_must_be_processes() -> None:
    with pytest.raises(ValueError, match=r"group must be one of torch\.distributed, or None .* init_process_group"):
        fptt.DataParallel()


def test_a_chunk_that_is_bad_in_one_process_is_skipped(found: list[dict[str, Any]]) -> None:
    """By all of them where they make updates together, by that one where each makes its own."""
    first, second = (process["skips"] for process in found)
    assert first["skipped 1"] == second["skipped 1"] == [0, 1, 0]
    assert (first["skipped 3"], second["skipped 3"]) == ([0, 0, 0], [0, 1, 0])
    for sync_every in (1, 3):
        tensors = [part[f"tensors {sync_every}"] for part in (first, second)]
        assert difference(*tensors) == 0
        assert all(tensor.isfinite().all() for tensor in tensors[0])


@pytest.mark.parametrize("name", ["raise 1", "raise 2", "skip 2", "skip 0"])
@pytest.mark.parametrize("engine", ["found", "traced"])
def test_local_updates_go_on_together_after_a_bad_loss_in_one_process(
    request: pytest.FixtureRequest, engine: str, name: str
) -> None:
    """Whether the error was caught or the chunk was skipped: the others have counted more updates than that process."""
    (said, skipped, tensors), (its, its_skipped, its_tensors) = (
        process["bad losses"][name] for process in request.getfixturevalue(engine)
    )
    raises = name.startswith("raise")
    assert said[2:] == its[2:] == ["no error"] * 3
    assert said[1].startswith("OtherProcessError: process 1 has met NaN or Inf" if raises else "no error")
    assert its[1].startswith(f"FloatingPointError: the loss is inf in chunk {name[-1]} of" if raises else "no error")
    assert (skipped, its_skipped) == (0, 0 if raises else 1)
    assert difference(tensors, its_tensors) == 0
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_a_process_that_skips_all_stops_the_others(found: list[dict[str, Any]]) -> None:
    (said, tensors), (its, its_tensors) = (process["skips for ever"] for process in found)
    assert said[0].startswith("OtherProcessError: process 1 has met NaN or Inf")
    assert its[0].startswith("FloatingPointError: on_bad_number='skip' has skipped 4 chunks in a row")
    assert said[1:] == its[1:] == ["no error"] * 2
    assert difference(tensors, its_tensors) == 0


@pytest.mark.parametrize("name", ["skip 2", "skip 0"])
def test_traced_steps_of_ones_own_skip_what_the_eager_engine_skips(
    found: list[dict[str, Any]], traced: list[dict[str, Any]], name: str
) -> None:
    for process, eager in zip(traced, found, strict=True):
        assert difference(process["bad losses"][name][2], eager["bad losses"][name][2]) < 1e-10


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_traced_step_that_is_bad_in_one_process_is_so_in_both(traced: list[dict[str, Any]], policy: str) -> None:
    (said, skipped, updates, tensors), other = (process["errors"][policy] for process in traced)
    assert (said, skipped, updates) == (other[0], other[1], other[2])
    assert difference(tensors, other[3]) == 0
    assert all(tensor.isfinite().all() for tensor in tensors)
    if policy == "raise":
        assert said[1].startswith("FloatingPointError: the loss is inf in chunk 2 of batch 1")
        assert updates == K + 2
    else:
        assert said == ["no error", "no error"]
        assert (skipped, updates) == ([0, 1], 2 * K - 1)


def test_traced_steps_must_use_the_same_parameters(traced: list[dict[str, Any]]) -> None:
    for process in traced:
        assert process["gradients"].startswith("ValueError: model must use the same parameters in all processes")


def test_traced_steps_of_ones_own_meet_at_the_same_means(
    found: list[dict[str, Any]], traced: list[dict[str, Any]]
) -> None:
    for process, eager in zip(traced, found, strict=True):
        for one, other in zip(process["local"], eager["local"], strict=True):
            assert difference(one, other) < 1e-10


@pytest.mark.slow
@pytest.mark.machine_code
def test_compiled_steps_equal_one_process_on_the_whole_batch(tmp_path: Path) -> None:
    first, second = run_in_processes(compiled, tmp_path)
    compare(first, make_method(SETTINGS["FPTT running prior"]))
    assert difference(first["tensors"], second["tensors"]) == 0


@pytest.mark.slow
def test_compiled_steps_do_so_in_all_settings(found: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second = run_in_processes(compiled_all, tmp_path)
    for name in CHUNKED:
        alone = make_method(SETTINGS[name])
        compare(first[name], alone, staggered="staggered" in SETTINGS[name])
        assert alone.updates >= 0.9 * NUM_UPDATES
        assert difference(first[name]["tensors"], second[name]["tensors"]) == 0
    for process, eager in zip((first, second), found, strict=True):
        for one, other in zip(process["local"], eager["local"], strict=True):
            assert difference(one, other) < 1e-10
