"""Metrics of a model on a data set, computed chunk by chunk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import fptt
from fptt._sequence import State
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.process.machine import prepare_process
from fptt.experiments.tasks.batches import Samples
from fptt.experiments.tasks.registry import check_vocabulary, load_task
from fptt.experiments.tasks.scores import Score
from fptt.experiments.tasks.task import Task
from fptt.experiments.training.build import make_fabric, make_model
from fptt.experiments.training.folder import RunFolder, Weights

CHUNK_LENGTH = 256
"""Time steps that are evaluated at once: bounds the memory of long sequences."""

WEIGHT_TYPES = (torch.float32, torch.float64)
"""Of the weights of runs; those of mixed precisions are float32."""


@torch.no_grad()
def measure(model: nn.Module, task: Task, dataset: Dataset[Samples], device: torch.device) -> dict[str, float]:
    """Return the metrics of a model on a part of a task's data, that of the task first."""
    was_training = model.training
    model.eval()
    score = task.make_score()
    state: State = None
    for stored in task.evaluation_batches(dataset):
        parts = task.sequences(tuple(tensor.to(device) for tensor in stored))
        inputs, targets = (in_precision_of(model, part) for part in parts)
        if task.has_step_targets:
            state = _add_steps(score, model, inputs, targets, state if task.is_stream else None)
        else:
            score.add(final_output(model, inputs), targets)
    model.train(was_training)
    return score.metrics()


def in_precision_of(model: nn.Module, tensor: Tensor) -> Tensor:
    """Return numbers in the type of a model's weights, and anything else as it is."""
    return tensor.to(next(model.parameters()).dtype) if tensor.is_floating_point() else tensor


def _add_steps(score: Score, model: nn.Module, inputs: Tensor, targets: Tensor, state: State) -> State:
    """Score the outputs of every step, chunk by chunk; return the last state."""
    for chunk, chunk_targets in fptt.split_sequence(inputs, targets, chunk_length=CHUNK_LENGTH):
        outputs, state = model(chunk, state)
        score.add(outputs, chunk_targets)
    return state


def final_output(model: nn.Module, sequences: Tensor) -> Tensor:
    """Return the outputs after the last step, (B, C)."""
    state, output = None, sequences
    for (chunk,) in fptt.split_sequence(sequences, chunk_length=CHUNK_LENGTH):
        output, state = model(chunk, state)
    return output[-1]


def evaluate_folder(path: Path, *, averages: bool = False, data: str | None = None) -> dict[str, Any]:
    """Measure the weights of a run folder on the test data again.

    Args:
        path: The run folder.
        averages: Measure the averages W̄ instead of the weights W.
        data: Where the data are now, if not where the run read them.

    Raises:
        UserError: If the folder is damaged, or weights, config and data do not fit.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    prepare_process(config.threads, deterministic=config.deterministic)
    config = config if data is None else replace(config, data=data)
    weights = folder.read_weights(averages=averages)
    task = load_task(config, config.seed)
    check_vocabulary(folder.read_vocabulary(), task)
    model = make_model(config, task)
    load_weights(model, weights, folder)
    fabric = make_fabric(config.accelerator)
    metrics = measure(model.to(fabric.device), task, task.test, fabric.device)
    named = {f"test_{name}": value for name, value in metrics.items()}
    return {"task": task.name, "weights": "averages" if averages else "weights", **named}


def load_weights(model: nn.Module, weights: Weights, folder: RunFolder) -> None:
    """Give a model the weights of a run folder.

    Raises:
        UserError: If they do not fit the model, are of a type in which no run trains, or not finite.
    """
    for name, tensor in weights.items():
        if tensor.dtype not in WEIGHT_TYPES:
            raise UserError(
                f"run folder {folder.path} is damaged: "
                f"weights must be float32 or float64, got {tensor.dtype} in {name}."
            )
        if not tensor.isfinite().all():
            raise UserError(f"run folder {folder.path} has weights that are not finite, in {name}.")
    try:
        # a run with precision 64-true has float64 weights
        model.to(next((tensor.dtype for tensor in weights.values()), None)).load_state_dict(weights)
    except RuntimeError as error:
        reason = one_line(error)
        raise UserError(f"run folder {folder.path} is damaged: weights and config do not fit ({reason}).") from error
