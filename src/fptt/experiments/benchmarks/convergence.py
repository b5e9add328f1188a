"""`fptt bench convergence`: what the theory of FPTT promises about gradients, and what it does not.

Kag & Saligrama (2021) prove that where the weights converge, they are stationary for the average of the ℓ_t. What is
behind it is a sum: every update moves the weights by −η ∇ℓ_k(W) and by what the penalty adds, so that

    (1/N) Σ_n ∇ℓ(W_n) = (W_0 − W_N)/(ηN) + what the penalties add up to,

the *average of the gradients along the way*, vanishes as 1/N wherever weights and duals stay bounded. It does so for
TBPTT, which has no penalty, as well. It is not the gradient of the mean loss *at* the weights, which one would like to
vanish; and the gradients of chunks are cut, so that their mean is not BPTT's.

Two problems in float64, by plain gradient descent: linear regression over the steps of a sequence, whose minimizer is
known exactly, and a small LSTM that must remember for longer than a chunk.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

import fptt
from fptt.experiments.process.console import make_display
from fptt.experiments.process.machine import environment

T, B = 40, 8
NUM_CHUNKS = 10
POINTS_A_DECADE = 12
GAMMA = 0.1
"""The strength of the penalty, γ = ηα, that of the recipes."""


class Problem(NamedTuple):
    """A model, and one batch that it learns again and again.

    Attributes:
        name: For the tables.
        make_model: Returns the model with its first weights.
        inputs: (T, B, D).
        targets: (T, B, 1).
        lr: η.
        answer: The minimizer of the mean loss, flat; None if unknown.
    """

    name: str
    make_model: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    lr: float
    answer: Tensor | None


class Contestant(NamedTuple):
    """A method, and whether its rate falls, as η / (1 + 100 n/N) at pass n of N."""

    name: str
    make: Callable[..., fptt.Method]
    falls: bool = False


class Regression(nn.Module):
    """Returns the inner product of each step's input and the weights; it has no state."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(input_size, dtype=torch.float64))

    def forward(self, inputs: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Return outputs, (T, B, 1), and no state."""
        return (inputs @ self.weight).unsqueeze(-1), state


def contestants() -> list[Contestant]:
    """Return the methods: descent on the mean, and K updates a pass without and with each form of the penalty."""

    def make_fptt(**options: Any) -> Callable[..., fptt.Method]:
        return lambda *given: fptt.FPTT(*given, num_chunks=NUM_CHUNKS, alpha=GAMMA, **options)

    def make_recomputed(model: nn.Module, optimizer: torch.optim.Optimizer, loss: fptt.ChunkLoss) -> fptt.Method:
        alpha = GAMMA / optimizer.param_groups[0]["lr"]  # coupled, which with plain SGD is the same method
        options: dict[str, Any] = {"coupling": "coupled", "previous_gradient": "recomputed"}
        return fptt.FPTT(model, optimizer, loss, num_chunks=NUM_CHUNKS, alpha=alpha, **options)

    def make_tbptt(*given: Any) -> fptt.Method:
        return fptt.TBPTT(*given, num_chunks=NUM_CHUNKS)

    return [
        Contestant("SGD on the mean", fptt.BPTT),
        Contestant("TBPTT", make_tbptt),
        Contestant("FPTT paper", make_fptt(form="paper")),
        Contestant("FPTT released", make_fptt(form="released")),
        Contestant("FPTT paper, recomputed", make_recomputed),
        Contestant("TBPTT, falling rate", make_tbptt, falls=True),
        Contestant("FPTT paper, falling rate", make_fptt(form="paper"), falls=True),
    ]


def problems(seed: int) -> list[Problem]:
    """Return the convex problem and the small LSTM."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    inputs = normal(T, B, 5)
    # much noise: what is best for one chunk is not for another, so that none of the gradients vanishes at the answer
    targets = (inputs @ normal(5)).unsqueeze(-1) + normal(T, B, 1)
    answer = torch.linalg.lstsq(inputs.flatten(0, 1), targets.flatten(0, 1)).solution.flatten()
    signal = normal(T, B, 1)
    before = torch.cat([torch.zeros(11, B, 1, dtype=torch.float64), signal])
    mean_of_last = torch.stack([before[step : step + 12].mean(0) for step in range(T)])

    def make_lstm() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return fptt.nn.LSTM(1, 8, 1).double()

    return [
        Problem("linear regression", lambda: Regression(5), inputs, targets, lr=0.02, answer=answer),
        Problem("LSTM, 8 units", make_lstm, signal, 3 * mean_of_last, lr=0.03, answer=None),
    ]


class ConvergenceBench:
    """Trains each method on each problem, and collects a report: environment, settings, rows.

    Args:
        num_passes: Passes over the batch, N.
        seed: Of data and weights.
    """

    def __init__(self, num_passes: int, *, seed: int) -> None:
        self.num_passes, self.seed = num_passes, seed

    def run(self, console: Console) -> dict[str, Any]:
        """Measure everything and return the report."""
        studied = problems(self.seed)
        pairs = [(problem, contestant) for problem in studied for contestant in contestants()]
        rows: list[dict[str, Any]] = []
        with closing(make_display(console)) as display:
            for done, (problem, contestant) in enumerate(pairs):
                display.show(done / len(pairs), f"{problem.name}: {contestant.name}")
                rows += measure(problem, contestant, self.num_passes)
        settings = {"passes": self.num_passes, "T": T, "batch_size": B, "num_chunks": NUM_CHUNKS, "gamma": GAMMA}
        lrs = {problem.name: problem.lr for problem in studied}
        return {
            "environment": environment(torch.device("cpu")),
            "settings": {**settings, "lr": lrs, "optimizer": "sgd", "dtype": "float64", "seed": self.seed},
            "rows": rows,
        }


def measure(problem: Problem, contestant: Contestant, num_passes: int) -> Iterator[dict[str, Any]]:
    """Yield a row after each of some passes, about evenly spaced on a logarithmic axis.

    In each `average_norm` is the norm of the average of all gradients along the way so far; `gradient_norm` that of the
    gradient of the mean loss at the weights, by BPTT; `cut_norm` that of the mean of the chunks' gradients there, each
    cut at its beginning; `distance` from the answer, if there is one.
    """
    model, loss = problem.make_model(), fptt.SequenceLoss(functional.mse_loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    params = list(model.parameters())
    total, num_gradients = torch.zeros_like(parameters_to_vector(params)), 0

    def add_gradient(*_: Any) -> None:
        nonlocal num_gradients
        total.add_(parameters_to_vector(param.grad for param in params if param.grad is not None))
        num_gradients += 1

    optimizer.register_step_pre_hook(add_gradient)  # before the method's own, which may add the penalty's
    method = contestant.make(model, optimizer, loss)
    points = set(_points(num_passes))
    for done in range(1, num_passes + 1):
        if contestant.falls:
            optimizer.param_groups[0]["lr"] = problem.lr / (1 + 100 * (done - 1) / num_passes)
        method.train_batch(problem.inputs, problem.targets)
        if done in points:
            weights = parameters_to_vector(params).detach()
            yield {
                "problem": problem.name,
                "method": contestant.name,
                "passes": done,
                "updates": num_gradients,
                "average_norm": (total / num_gradients).norm().item(),
                "gradient_norm": mean_gradient(problem, model, loss, 1).norm().item(),
                "cut_norm": mean_gradient(problem, model, loss, NUM_CHUNKS).norm().item(),
                "distance": None if problem.answer is None else (weights - problem.answer).norm().item(),
            }


def mean_gradient(problem: Problem, model: nn.Module, loss: fptt.ChunkLoss, num_chunks: int) -> Tensor:
    """Return (1/K) Σ_k ∇ℓ_k(W) at the weights as they are, each cut where its chunk begins; with K = 1 BPTT's."""
    lengths = fptt.chunk_lengths(T, num_chunks)
    parts = loss.split(problem.targets, None, lengths, B)
    params = list(model.parameters())
    total, state = torch.zeros_like(parameters_to_vector(params)), None
    for inputs, part in zip(problem.inputs.split(lengths), parts, strict=True):
        outputs, state = model(inputs, state)
        total += parameters_to_vector(torch.autograd.grad(loss(outputs, part), params))
        state = fptt.detach_state(state)
    return total / num_chunks


def slope(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return d log(value) / d log(passes) over the last decade of a run's rows, by least squares."""
    last = [row for row in rows if row["passes"] * 10 >= rows[-1]["passes"] and row[name] > 0]
    points = torch.tensor([[math.log(row["passes"]), math.log(row[name])] for row in last], dtype=torch.float64)
    x, y = (points - points.mean(0)).unbind(1)
    return ((x * y).sum() / x.square().sum()).item()


def _points(num_passes: int) -> list[int]:
    decades = math.log10(num_passes)
    steps = range(round(decades * POINTS_A_DECADE) + 1)
    return sorted({round(10 ** min(step / POINTS_A_DECADE, decades)) for step in steps} | {num_passes})
