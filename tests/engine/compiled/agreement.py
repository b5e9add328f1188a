"""Pairs of the same method with both engines, and what must be equal in them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt

T, B, D, H, C = 12, 3, 2, 5, 4

FORMS: dict[str, dict[str, Any]] = {
    "tbptt": {"alpha": 0},
    "paper-coupled": {"form": "paper", "coupling": "coupled", "alpha": 0.3},
    "paper-decoupled": {"form": "paper", "coupling": "decoupled", "alpha": 0.4, "beta": 0.6},
    "released-coupled": {"form": "released", "coupling": "coupled", "alpha": 0.2, "beta": 0.7, "mu": 2.0},
    "released-decoupled": {"form": "released", "coupling": "decoupled", "alpha": 0.15, "mu": 1.5},
}

RULES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, weight_decay=0.01),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.8, dampening=0.3),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, betas=(0.8, 0.95), weight_decay=0.02),
    "amsgrad": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "maximize": lambda params: torch.optim.Adam(params, lr=0.01, maximize=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1, eps=1e-5),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.005, alpha=0.9, weight_decay=0.01),
    "centered": lambda params: torch.optim.RMSprop(params, lr=0.005, centered=True, momentum=0.5),
}

# a coupled penalty is refused with an optimizer that maximizes
FORMS_AND_RULES = [
    (form, rule)
    for form, settings in FORMS.items()
    for rule in RULES
    if rule != "maximize" or settings.get("coupling") != "coupled"
]

CELLS = {"lstm": fptt.nn.LSTM, "gru": fptt.nn.GRU, "rnn": fptt.nn.RNN}


def make_model(cell: str, **options: Any) -> nn.Module:
    return CELLS[cell](D, H, C, last_only=True, **options)


def terminal_loss() -> fptt.TerminalLoss:
    return fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")


def make_method(model: nn.Module, rule: str, loss: fptt.ChunkLoss | None = None, **options: Any) -> fptt.FPTT:
    options = {"num_chunks": 6, **options}
    return fptt.FPTT(model, RULES[rule](model.parameters()), terminal_loss() if loss is None else loss, **options)


def make_pair(
    model: nn.Module, rule: str = "adam", loss: fptt.ChunkLoss | None = None, **options: Any
) -> list[fptt.FPTT]:
    """Return the method with the eager and with the compiled engine, on copies of a model and a loss."""
    return [
        make_method(copy.deepcopy(model), rule, copy.deepcopy(loss), engine=engine, **options)
        for engine in ("eager", "compiled")
    ]


def batch(length: int = T, size: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(length, size, D), torch.randint(C, (size,))


def assert_equal_results(results: list[fptt.BatchResult], tolerance: float) -> None:
    one, other = results
    for name in ("loss", "chunk_losses", "penalty", "gradient_norm"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance)
    assert one.updates == other.updates
    states = [state if isinstance(state, tuple) else (state,) for state in (one.state, other.state)]
    for first, second in zip(*states, strict=True):
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def train_both(methods: list[fptt.FPTT], *arguments: Any) -> list[fptt.BatchResult]:
    """Train both on the same batch with the same random numbers; the results must be equal."""
    random_state = torch.get_rng_state()
    results = []
    for method in methods:
        torch.set_rng_state(random_state)
        results.append(method.train_batch(*arguments))
    assert_equal_results(results, 1e-10)
    return results


def assert_equal_memory(methods: list[fptt.FPTT], tolerance: float) -> None:
    """Weights, moments, averages, duals, buffers and counters of both are equal."""
    one, other = methods
    close: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(
            tensor, other.model.state_dict()[name], msg=lambda text, n=name: f"{n}: {text}", **close
        )
    torch.testing.assert_close(one.loss.state_dict(), other.loss.state_dict(), **close)
    torch.testing.assert_close(one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"], **close)
    if one.regularizer is not None:
        assert other.regularizer is not None
        torch.testing.assert_close(
            one.regularizer.state_dict()["state"], other.regularizer.state_dict()["state"], **close
        )
    assert (one.updates, one.batches, one.timesteps) == (other.updates, other.batches, other.timesteps)
