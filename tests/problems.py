"""Small problems, and the optimizers of the contract."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fptt

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.05),
}

FORMS: list[dict[str, Any]] = [
    {"form": "paper", "coupling": "coupled", "alpha": 0.3},
    {"form": "paper", "coupling": "decoupled", "alpha": 0.6},
    {"form": "released", "coupling": "coupled", "alpha": 0.2, "beta": 0.7, "mu": 2.0},
    {"form": "released", "coupling": "decoupled", "alpha": 0.25, "beta": 0.4},
]


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def data(step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(step)).to(dtype)


def loss_of(model: nn.Module, step: int) -> Tensor:
    dtype = next(model.parameters()).dtype
    return (model(data(step, dtype)) - 1).square().mean()


def run_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> fptt.DynamicRegularizer:
    return fptt.DynamicRegularizer(model.parameters(), **settings).attach(optimizer)


class DecayingCell(nn.Module):
    """A cell of D inputs that halves them and the state (B, H) that it is given, in place or not."""

    def __init__(self, input_size: int, hidden_size: int, *, in_place: bool) -> None:
        super().__init__()
        self.layer, self.in_place = nn.Linear(input_size, hidden_size), in_place

    def initial_state(self, inputs: Tensor) -> Tensor:
        return inputs.new_zeros(inputs.shape[1], self.layer.out_features)

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = self.initial_state(inputs) if state is None else state
        inputs, state = ((own.mul_(0.5) if self.in_place else own * 0.5) for own in (inputs, state))
        outputs = []
        for step in self.layer(inputs):
            state = torch.tanh(state + step)
            outputs.append(state)
        return torch.stack(outputs), state
