"""FPTT as one writes it down from the paper, parameter by parameter: what the library's speed is measured against."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import fptt


class LiteralFPTT:
    """The equations of FPTT in plain Python, for classes and a uniform Q.

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
        total = torch.zeros((), device=next(iter(self.averages.values())).device)
        for name, param in self.model.named_parameters():
            distance = param - self.averages[name] - self.duals[name] / (2 * self.alpha)
            total = total + self.alpha / 2 * (distance**2).sum()
        return total

    @torch.no_grad()
    def _advance(self) -> None:
        for name, param in self.model.named_parameters():
            dual = self.duals[name] - self.alpha * (param - self.averages[name])
            self.averages[name] = (self.averages[name] + param) / 2 - dual / (2 * self.alpha)
            self.duals[name] = dual


def _chunk_loss(output: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Return b · cross entropy with the labels + (1 − b) · cross entropy with the uniform distribution."""
    log_probabilities = functional.log_softmax(output, dim=-1)
    to_uniform = -log_probabilities.mean(-1).mean()
    return weight * functional.nll_loss(log_probabilities, targets) + (1 - weight) * to_uniform
