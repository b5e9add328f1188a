"""Several processes equal one on the whole batch; with updates of their own they meet at the means."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fptt
from tests.processes import run_in_processes

K = 4
NUM_UPDATES = 100

SETTINGS: dict[str, dict[str, Any]] = {
    "BPTT": {"kind": fptt.BPTT},
    "TBPTT": {"kind": fptt.TBPTT, "num_chunks": K},
    "FPTT": {"kind": fptt.FPTT, "num_chunks": K},
    "FPTT coupled": {"kind": fptt.FPTT, "num_chunks": K, "form": "released", "coupling": "coupled"},
    "FPTT recomputed": {
        "kind": fptt.FPTT,
        "num_chunks": K,
        "coupling": "coupled",
        "previous_gradient": "recomputed",
    },
    "FPTT masked steps": {"kind": fptt.FPTT, "num_chunks": K, "loss": "steps"},
    "FPTT running prior": {"kind": fptt.FPTT, "num_chunks": K, "loss": "running"},
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.readout = nn.LSTM(3, 6), nn.Linear(6, 4)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.layer(inputs, state)
        return self.readout(outputs), state


def batch(number: int, *, per_step: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return inputs, targets and mask of 4 or 5 sequences; some batches have chunks without a real step."""
    generator = torch.Generator().manual_seed(number)
    size = 5 if number % 3 else 4
    inputs = torch.randn(12, size, 3, generator=generator, dtype=torch.float64)
    if not per_step:
        return inputs, torch.randint(4, (size,), generator=generator), None
    mask = torch.rand(12, size, generator=generator) < 0.7
    mask[3:6, 1::2] = False  # chunk 1 of process 1
    if number % 5 == 0:
        mask[:, ::2] = False  # all of process 0
    return inputs, torch.randn(12, size, 4, generator=generator, dtype=torch.float64), mask


def make_loss(name: str) -> fptt.ChunkLoss:
    if name == "steps":
        return fptt.SequenceLoss(nn.functional.mse_loss)
    prior = fptt.RunningPrior(4, 0.9) if name == "running" else "uniform"
    return fptt.TerminalLoss(nn.functional.cross_entropy, prior).double()


def make_method(setting: dict[str, Any], parallel: fptt.DataParallel | None = None, seed: int = 0) -> fptt.Method:
    options = {name: value for name, value in setting.items() if name not in ("kind", "loss")}
    torch.manual_seed(seed)
    model = Model().double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loss = make_loss(setting.get("loss", "uniform"))
    return setting["kind"](model, optimizer, loss, max_norm=0.5, parallel=parallel, **options)


def train(method: fptt.Method, batches: range, number: int = 0, size: int = 1) -> list[fptt.BatchResult]:
    """Train on every `size`-th sequence of each batch, from `number` on."""
    results = []
    for index in batches:
        inputs, targets, mask = batch(index, per_step=method.loss.per_step)
        own = slice(number, None, size)
        targets = targets[:, own] if method.loss.per_step else targets[own]
        result = method.train_batch(inputs[:, own], targets, mask=None if mask is None else mask[:, own])
        results.append(result._replace(state=None))
    return results


def everything(method: fptt.Method) -> list[Tensor]:
    memory = {} if method.regularizer is None else method.regularizer.named_tensors()
    return [tensor.detach().clone() for tensor in (*method.model.parameters(), *memory.values())]


def message(call: Any) -> str:
    try:
        call()
    except (FloatingPointError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# -- what the processes do ---------------------------------------------------------------------------------------------


def work(number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        method = make_method(setting, fptt.DataParallel(check=True), seed=number)
        num_batches = NUM_UPDATES if setting["kind"] is fptt.BPTT else NUM_UPDATES // K
        results = train(method, range(num_batches), number, 2)
        found[name] = {"tensors": everything(method), "results": results, "updates": method.updates}
    found["local"] = local_updates(number)
    found["resumed"] = resumed(number)
    found["gradients"] = missing_gradient(number)
    found["buffers"] = buffers(number)
    found["errors"] = errors(number)
    return found


def local_updates(number: int) -> list[list[Tensor]]:
    """Return everything after each of 6 batches of 4 chunks, averaged after every 3 updates."""
    method = make_method(SETTINGS["FPTT"], fptt.DataParallel(sync_every=3, check=True), seed=number)
    seen = []
    for index in range(6):
        train(method, range(index, index + 1), number, 2)
        seen.append(everything(method))
    return seen


def resumed(number: int) -> list[Tensor]:
    """Return everything after the same 6 batches, with a stop 8 updates after the beginning."""
    parallel = fptt.DataParallel(sync_every=3)
    method = make_method(SETTINGS["FPTT"], parallel, seed=number)
    train(method, range(2), number, 2)
    states = method.model.state_dict(), method.optimizer.state_dict(), method.state_dict()
    method = make_method(SETTINGS["FPTT"], parallel, seed=7)
    for part, state in zip((method.model, method.optimizer, method), states, strict=True):
        part.load_state_dict(state)
    train(method, range(2, 6), number, 2)
    return everything(method)


class TwoReadouts(Model):
    """Uses its second read-out for positive inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 4)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.layer(inputs, state)
        return (self.other if inputs.mean() > 0 else self.readout)(outputs), state


def missing_gradient(number: int) -> list[Tensor]:
    """Return the weights after an update in which each process uses a read-out of its own."""
    torch.manual_seed(0)
    model = TwoReadouts().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    method = fptt.FPTT(model, optimizer, make_loss("uniform"), num_chunks=1, parallel=fptt.DataParallel(check=True))
    inputs = torch.full((3, 2, 3), 1.0 if number else -1.0, dtype=torch.float64)
    method.train_batch(inputs, torch.tensor([0, 1]))
    return everything(method)


class Counting(Model):
    """Has a buffer of floating point, as BatchNorm, and one of whole numbers."""

    mean: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.mean += inputs[0, 0, 0]
        self.calls += 1
        return super().forward(inputs, state)


def buffers(number: int) -> list[float]:
    model = Counting().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = fptt.TBPTT(model, optimizer, make_loss("uniform"), num_chunks=1, parallel=fptt.DataParallel())
    method.train_batch(torch.full((3, 2, 3), 2.0 * number, dtype=torch.float64), torch.tensor([0, 1]))
    return [model.mean.item(), model.calls.item()]


def errors(number: int) -> dict[str, Any]:
    """Return what is said in this process when the first batch is wrong in process 1."""
    good = torch.zeros(12, 2, 3, dtype=torch.float64), torch.tensor([0, 1])
    nan = good[0].clone()
    nan[7] = float("nan")
    found: dict[str, Any] = {}
    for sync_every in (1, 3):
        parallel = fptt.DataParallel(sync_every=sync_every, check=True)

        def told(bad: Any, parallel: fptt.DataParallel = parallel, **options: Any) -> list[Any]:
            method = make_method({**SETTINGS["FPTT"], **options}, parallel)
            before = everything(method)
            text = message(lambda: method.train_batch(*(bad if number else good)))
            same = all(torch.equal(one, other) for one, other in zip(before, everything(method), strict=False))
            return [text, method.updates, same]

        found[f"inputs {sync_every}"] = told((nan, good[1]))
        found[f"targets {sync_every}"] = told((good[0], torch.tensor([0, 1, 2])))
        found[f"empty {sync_every}"] = told((good[0][:0], good[1]))
        found[f"loss {sync_every}"] = bad_loss(number, parallel)
    drifted = make_method(SETTINGS["TBPTT"], fptt.DataParallel(check=True))
    if number:
        with torch.no_grad():
            next(drifted.model.parameters())[0, 0] += 1e-12
    found["drift"] = message(lambda: drifted.train_batch(*good))
    found["lengths"] = message(
        lambda: make_method({"kind": fptt.TBPTT, "chunk_length": 3 + number}, fptt.DataParallel()).train_batch(*good)
    )
    found["sizes"] = message(lambda: fptt.TBPTT(model := nn.LSTM(3, 4 + number), torch.optim.SGD(model.parameters(), 0.1), make_loss("uniform"), num_chunks=1, parallel=fptt.DataParallel()))  # fmt: skip
    return found


class Overflowing(Model):
    """Gives outputs that are not finite at its third call in process 1."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.calls = number, 0

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.calls += 1
        outputs, state = super().forward(inputs, state)
        return outputs * (float("inf") if self.calls == 3 and self.number else 1.0), state


def bad_loss(number: int, parallel: fptt.DataParallel) -> list[Any]:
    torch.manual_seed(0)
    model = Overflowing(number).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = fptt.FPTT(model, optimizer, make_loss("uniform"), num_chunks=K, parallel=parallel)
    inputs, targets, _ = batch(0, per_step=False)
    text = message(lambda: method.train_batch(inputs[:, number::2], targets[number::2]))
    return [text, method.updates, bool(all(param.isfinite().all() for param in model.parameters()))]


# -- what must be so ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_in_processes(work, tmp_path_factory.mktemp("processes"))


def difference(ones: list[Tensor], others: list[Tensor]) -> float:
    return max((one - other).abs().max().item() for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one_on_the_whole_batch(found: list[dict[str, Any]], name: str) -> None:
    alone = make_method(SETTINGS[name])
    results = train(alone, range(len(found[0][name]["results"])))
    assert found[0][name]["updates"] == alone.updates >= 0.9 * NUM_UPDATES
    assert difference(found[0][name]["tensors"], everything(alone)) < 1e-10
    for together, one in zip(found[0][name]["results"], results, strict=True):
        assert together.updates == one.updates
        for field in ("loss", "chunk_losses", "penalty", "gradient_norm"):
            torch.testing.assert_close(getattr(together, field), getattr(one, field), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SETTINGS)
def test_both_processes_have_the_same_bits(found: list[dict[str, Any]], name: str) -> None:
    assert difference(found[0][name]["tensors"], found[1][name]["tensors"]) == 0
    for one, other in zip(found[0][name]["results"], found[1][name]["results"], strict=True):
        assert torch.equal(one.chunk_losses, other.chunk_losses)


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
    methods = [make_method({**SETTINGS["FPTT"], "num_chunks": 1}) for _ in range(2)]
    count = 0
    for index in range(6):
        inputs, targets, _ = batch(index, per_step=False)
        states: list[Any] = [None, None]
        for k, chunk in enumerate(inputs.split(3)):
            for number, method in enumerate(methods):
                method.loss = ScaledLoss(k)
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

    def __init__(self, number: int) -> None:
        super().__init__(nn.functional.cross_entropy, "uniform")
        self.number = number

    def split(self, targets: Tensor, mask: Tensor | None, lengths: Any, batch_size: int) -> list[Any]:
        (part,) = super().split(targets, mask, lengths, batch_size)
        return [part._replace(position=float(self.number + 1), num_chunks=float(K))]


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
    with pytest.raises(ValueError, match="group must be one of torch.distributed, or None .* init_process_group"):
        fptt.DataParallel()


# -- models that are sharded by others ---------------------------------------------------------------------------------


class Cells(nn.Module):
    """An LSTM that calls its cell as a module, which `fully_shard` needs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.readout = nn.LSTMCell(3, 6), nn.Linear(6, 4)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs = []
        for step in inputs:
            state = self.cell(step, state)
            outputs.append(self.readout(state[0]))
        return torch.stack(outputs), state


def train_cells(kind: type[fptt.Method], wrap: Any, number: int, size: int) -> list[Tensor]:
    torch.manual_seed(0)
    model = wrap(Cells().double())
    options = {} if kind is fptt.BPTT else {"num_chunks": K}
    method = kind(model, torch.optim.Adam(model.parameters(), 1e-2), make_loss("uniform"), max_norm=0.5, **options)
    train(method, range(0, 75, 3), number, size)  # of 4 sequences: two each
    return [param.full_tensor() if hasattr(param, "full_tensor") else param.detach() for param in model.parameters()]


def shard(number: int) -> dict[str, list[Tensor]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    kinds = {kind.__name__: kind for kind in (fptt.BPTT, fptt.TBPTT, fptt.FPTT)}
    found = {
        f"FSDP {name}": train_cells(kind, lambda model: fully_shard(model, mesh=mesh), number, 2)
        for name, kind in kinds.items()
    }
    for name in ("TBPTT", "FPTT"):
        found[f"DDP {name}"] = train_cells(kinds[name], nn.parallel.DistributedDataParallel, number, 2)
    return {name: [tensor.detach().clone() for tensor in tensors] for name, tensors in found.items()}


def test_models_in_the_wrappers_of_torch_train_as_one(tmp_path: Path) -> None:
    found = run_in_processes(shard, tmp_path)
    for name, tensors in found[0].items():
        alone = train_cells(getattr(fptt, name.split()[1]), lambda model: model, 0, 1)
        assert difference(tensors, [tensor.detach() for tensor in alone]) < 1e-10
