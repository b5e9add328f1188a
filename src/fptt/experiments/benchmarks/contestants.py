"""The contestants of `fptt bench speed`: the library's methods, and FPTT written down literally."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import fptt
from fptt.experiments.benchmarks.grid import HIDDEN_SIZE, INPUT_SIZE, NUM_CLASSES, READOUT_SIZE, Spec, Workload
from fptt.nn.models import CELLS, plain_cells

LR = 1e-3
MAX_NORM = 1.0
ALPHA = 0.1

TrainBatch = Callable[[Tensor, Tensor], object]
"""Trains on inputs (T, B, 1) and labels (B,)."""


def make_model(
    cell: str, seed: int, device: torch.device, kernel: fptt.nn.Kernel = "fused"
) -> fptt.nn.LSTM | fptt.nn.GRU:
    """Return the recurrent network that all rows train, with the same weights for all."""
    torch.manual_seed(seed)
    model = CELLS[cell](
        INPUT_SIZE, HIDDEN_SIZE, NUM_CLASSES, readout_sizes=[READOUT_SIZE], last_only=True, kernel=kernel
    )
    return model.to(device)


def in_precision(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which everything of a workload runs."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def running_kernel(spec: Spec, workload: Workload, device: torch.device) -> str:
    """Return what runs the recurrent layers of a row, on its longest chunk."""
    model = make_model(workload.cell, 0, device, spec.layers)
    steps = max(fptt.chunk_lengths(workload.sequence_length, spec.num_chunks))
    chunk = torch.zeros(steps, workload.batch_size, INPUT_SIZE, device=device)
    compiling = plain_cells() if spec.engine == "compiled" else nullcontext()
    with in_precision(workload.precision, device), compiling:
        return model.kernel_for(chunk)


def make_data(workload: Workload, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random inputs (T, B, 1) and labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(workload.sequence_length, workload.batch_size, INPUT_SIZE, generator=generator)
    targets = torch.randint(NUM_CLASSES, (workload.batch_size,), generator=generator)
    return inputs.to(device), targets.to(device)


def make_contestant(spec: Spec, workload: Workload, seed: int, device: torch.device) -> TrainBatch:
    """Return the function that trains a batch with the method and engine of a row, on a model of its own."""
    train_batch = _make_method(spec, workload, seed, device)

    def train(inputs: Tensor, targets: Tensor) -> object:
        with in_precision(workload.precision, device):
            return train_batch(inputs, targets)

    return train


def _make_method(spec: Spec, workload: Workload, seed: int, device: torch.device) -> TrainBatch:
    model = make_model(workload.cell, seed, device, spec.layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    chunking = _chunking(spec, workload)
    if spec.method == "literal":
        return LiteralFPTT(model, optimizer, alpha=ALPHA, max_norm=MAX_NORM, **chunking).train_batch
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    options: dict[str, Any] = {"max_norm": MAX_NORM, **chunking}
    if spec.method == "bptt":
        return fptt.BPTT(model, optimizer, loss, **options).train_batch
    options["engine"] = spec.engine
    if spec.method == "tbptt":
        return fptt.TBPTT(model, optimizer, loss, **options).train_batch
    return fptt.FPTT(model, optimizer, loss, alpha=ALPHA, **options).train_batch


def warm_up_steps(spec: Spec, workload: Workload) -> int:
    """Return the time steps of a warm-up in which there are chunks of every length of the sequence."""
    length, remainder = divmod(workload.sequence_length, spec.num_chunks)
    return workload.sequence_length if remainder else min(2 * length, workload.sequence_length)


def _chunking(spec: Spec, workload: Workload) -> dict[str, int]:
    """Return how to cut: by length where all chunks are equal, so that the start of a sequence is cut alike."""
    length, remainder = divmod(workload.sequence_length, spec.num_chunks)
    return {"num_chunks": spec.num_chunks} if remainder else {"chunk_length": length}


class LiteralFPTT:
    """The equations of FPTT as one writes them down from the paper, in plain Python, for classes and a uniform Q.

        W⁺ = step(∇(ℓ + Σ_W (α/2) ‖W − W̄ − λ/(2α)‖²)),   λ⁺ = λ − α (W⁺ − W̄),   W̄⁺ = ½ (W̄ + W⁺) − λ⁺/(2α)

    (Kag & Saligrama 2021, Algorithm 1.) As in published code the penalty is part of the loss and autograd takes its
    gradient, which makes it coupled, and every parameter has its turn in a loop. The numbers are those of
    `fptt.FPTT(..., form="paper", coupling="coupled")`; the work of each update is about that of the default form.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`, outputs (T, B, C).
        optimizer: Over all parameters of the model.
        num_chunks: K; exactly one of the two is given.
        chunk_length: Longest chunk in time steps.
        alpha: Strength of the penalty, > 0.
        max_norm: Largest norm of the gradient of loss and penalty.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        num_chunks: int | None = None,
        chunk_length: int | None = None,
        alpha: float = 0.1,
        max_norm: float = 1.0,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.num_chunks, self.chunk_length = num_chunks, chunk_length
        self.alpha, self.max_norm = alpha, max_norm
        self.averages = {name: param.detach().clone() for name, param in model.named_parameters()}
        self.duals = {name: torch.zeros_like(param) for name, param in model.named_parameters()}

    def train_batch(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Make one update a chunk on inputs (T, B, D) and labels (B,); return the mean loss."""
        chunks = list(fptt.split_sequence(inputs, num_chunks=self.num_chunks, chunk_length=self.chunk_length))
        losses = []
        state = None
        for number, (chunk,) in enumerate(chunks):
            output, state = self.model(chunk, fptt.detach_state(state))
            loss = _chunk_loss(output[-1], targets, weight=(number + 1) / len(chunks))
            self.optimizer.zero_grad()
            (loss + self._penalty()).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
            self.optimizer.step()
            self._advance()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _penalty(self) -> Tensor:
        # part of the loss, so that autograd takes its gradient, and parameter by parameter: as in published code
        total = torch.zeros((), device=next(iter(self.averages.values())).device)
        for name, param in self.model.named_parameters():
            distance = param - self.averages[name] - self.duals[name] / (2 * self.alpha)
            total = total + self.alpha / 2 * (distance**2).sum()
        return total

    @torch.no_grad()
    def _advance(self) -> None:
        for name, param in self.model.named_parameters():
            # in the paper's order: the average of time t enters the dual, the new dual the new average
            dual = self.duals[name] - self.alpha * (param - self.averages[name])
            self.averages[name] = (self.averages[name] + param) / 2 - dual / (2 * self.alpha)
            self.duals[name] = dual


def _chunk_loss(output: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Return b · cross entropy with the labels + (1 − b) · cross entropy with the uniform distribution."""
    log_probabilities = functional.log_softmax(output, dim=-1)
    to_uniform = -log_probabilities.mean(-1).mean()
    return weight * functional.nll_loss(log_probabilities, targets) + (1 - weight) * to_uniform
