"""What several processes train on: models, batches and methods."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import fptt

K, T = 4, 8
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
    "FPTT horizon": {"kind": fptt.FPTT, "num_chunks": K, "horizon": 2},
    "FPTT staggered": {"kind": fptt.FPTT, "num_chunks": K, "staggered": True},
    "FPTT staggered steps": {"kind": fptt.FPTT, "num_chunks": K, "loss": "steps", "staggered": True},
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.readout = nn.LSTM(3, 6), nn.Linear(6, 4)

    def initial_state(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        zeros = inputs.new_zeros(1, inputs.shape[1], 6)
        return zeros, zeros

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.layer(inputs, state)
        return self.readout(outputs), state


def batch(number: int, *, per_step: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return inputs, targets and mask of 4 or 5 sequences; some batches have chunks without a real step."""
    generator = torch.Generator().manual_seed(number)
    size = 5 if number % 3 else 4
    inputs = torch.randn(T, size, 3, generator=generator, dtype=torch.float64)
    if not per_step:
        return inputs, torch.randint(4, (size,), generator=generator), None
    mask = torch.rand(T, size, generator=generator) < 0.7
    mask[2:4, 1::2] = False  # chunk 1 of process 1
    if number % 5 == 0:
        mask[:, ::2] = False  # all of process 0
    return inputs, torch.randn(T, size, 4, generator=generator, dtype=torch.float64), mask


def make_loss(name: str) -> fptt.ChunkLoss:
    if name == "steps":
        return fptt.SequenceLoss(nn.functional.mse_loss)
    prior = fptt.RunningPrior(4, 0.9) if name == "running" else "uniform"
    return fptt.TerminalLoss(nn.functional.cross_entropy, prior).double()


def make_method(setting: dict[str, Any], parallel: fptt.DataParallel | None = None, seed: int = 0) -> fptt.Method:
    options = {name: value for name, value in setting.items() if name not in ("kind", "loss", "staggered")}
    torch.manual_seed(seed)
    model = Model().double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    chosen = setting.get("loss", "uniform")
    loss = make_loss(chosen) if isinstance(chosen, str) else chosen
    return setting["kind"](model, optimizer, loss, max_norm=0.5, parallel=parallel, **options)


def train(
    method: fptt.Method, batches: range, number: int = 0, size: int = 1, *, staggered: bool = False
) -> list[fptt.BatchResult]:
    """Train on every `size`-th sequence, or lane, of each batch, from `number` on."""
    results = []
    if staggered:
        per_step = method.loss.per_step
        lanes = fptt.stagger(
            (batch(index, per_step=per_step)[:2] for index in batches), num_chunks=K, per_step=per_step
        )
        own = (tree_map_only(Tensor, lambda tensor: tensor[:, number::size], item) for item in lanes)
        return [result._replace(state=None) for result in method.train_stream(own)]
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
    except (FloatingPointError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def difference(ones: list[Tensor], others: list[Tensor]) -> float:
    return max((one - other).abs().max().item() for one, other in zip(ones, others, strict=True))
