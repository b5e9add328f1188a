"""Models in the wrappers of torch, which add up gradients themselves, train as one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fptt
from tests.parallel.problem import K, difference, make_loss, train
from tests.parallel.processes import run_in_processes


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


def train_cells(kind: Any, wrap: Any, number: int, size: int) -> list[Tensor]:
    torch.manual_seed(0)
    model = wrap(Cells().double())
    options: dict[str, Any] = {} if kind is fptt.BPTT else {"num_chunks": K}
    method = kind(model, torch.optim.Adam(model.parameters(), 1e-2), make_loss("uniform"), max_norm=0.5, **options)
    train(method, range(0, 75, 3), number, size)  # of 4 sequences: two each
    return [param.full_tensor() if hasattr(param, "full_tensor") else param.detach() for param in model.parameters()]


class Begins(nn.Module):
    """A batch-first GRU that learns where its sequences begin, with the batch in dim 0 of its state, too."""

    batch_first, state_batch_dim = True, 0

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.begin = nn.GRU(3, 4), nn.Parameter(torch.ones(1, 1, 4))

    def initial_state(self, inputs: Tensor) -> Tensor:
        return self.begin.expand(len(inputs), 1, 4)

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = self.initial_state(inputs) if state is None else state
        outputs, last = self.rnn(inputs.transpose(0, 1), state.transpose(0, 1).contiguous())
        return outputs.transpose(0, 1), last.transpose(0, 1)


def train_begins(wrap: Any, number: int, size: int) -> list[Tensor]:
    """Let one of two sequences begin anew in the second chunk, in each process."""
    torch.manual_seed(0)
    model = wrap(Begins().double())
    optimizer, loss = torch.optim.SGD(model.parameters(), 0.1), fptt.SequenceLoss(nn.functional.mse_loss)
    method = fptt.TBPTT(model, optimizer, loss, num_chunks=2, batch_first=True)
    inputs, targets = torch.randn(4, 6, 3).double(), torch.randn(4, 6, 4).double()
    is_first = torch.zeros(4, 6, dtype=torch.bool)
    is_first[::2, 3] = True
    inputs, targets, is_first = (data.chunk(size)[number] for data in (inputs, targets, is_first))
    for _ in range(3):
        method.train_batch(inputs, targets, is_first=is_first)
    return list(model.parameters())


def bare(model: nn.Module) -> nn.Module:
    return model


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
    found["DDP begins"] = train_begins(nn.parallel.DistributedDataParallel, number, 2)
    return {name: [tensor.detach().clone() for tensor in tensors] for name, tensors in found.items()}


def test_models_in_the_wrappers_of_torch_train_as_one(tmp_path: Path) -> None:
    found = run_in_processes(shard, tmp_path)
    for name, tensors in found[0].items():
        kind = name.split()[1]
        alone = train_begins(bare, 0, 1) if kind == "begins" else train_cells(getattr(fptt, kind), bare, 0, 1)
        assert difference(tensors, [tensor.detach() for tensor in alone]) < 1e-10
