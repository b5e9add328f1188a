"""From a row of `fptt bench speed` to what trains one batch for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt.experiments.benchmarks.grid import HIDDEN_SIZE, INPUT_SIZE, NUM_CLASSES, READOUT_SIZE, Setting, Spec
from fptt.experiments.benchmarks.literal import LiteralFPTT
from fptt.nn.models import CELLS

LR = 1e-3
MAX_NORM = 1.0
ALPHA = 0.1

Trainer = Callable[[Tensor, Tensor], object]
"""Trains on inputs (T, B, 1) and labels (B,)."""


def make_model(cell: str, seed: int, device: torch.device) -> nn.Module:
    """Return the recurrent network that all rows train, with the same weights for all."""
    torch.manual_seed(seed)
    model = CELLS[cell](INPUT_SIZE, HIDDEN_SIZE, NUM_CLASSES, readout_sizes=[READOUT_SIZE], last_only=True)
    return model.to(device)


def make_data(setting: Setting, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random inputs (T, B, 1) and labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(setting.sequence_length, setting.batch_size, INPUT_SIZE, generator=generator)
    targets = torch.randint(NUM_CLASSES, (setting.batch_size,), generator=generator)
    return inputs.to(device), targets.to(device)


def make_trainer(spec: Spec, setting: Setting, seed: int, device: torch.device) -> Trainer:
    """Return what trains a batch with the method and engine of a row, on a model of its own."""
    model = make_model(setting.cell, seed, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    chunking = _chunking(spec, setting)
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


def warm_up_steps(spec: Spec, setting: Setting) -> int:
    """Return how many time steps show a trainer chunks of every length that it will meet."""
    length, remainder = divmod(setting.sequence_length, spec.num_chunks)
    return setting.sequence_length if remainder else min(2 * length, setting.sequence_length)


def _chunking(spec: Spec, setting: Setting) -> dict[str, int]:
    """Return how to cut: by length where all chunks are equal, so that the start of a sequence is cut alike."""
    length, remainder = divmod(setting.sequence_length, spec.num_chunks)
    return {"num_chunks": spec.num_chunks} if remainder else {"chunk_length": length}
