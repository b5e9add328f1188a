"""The metric of a model on a data set, with memory for one chunk of the sequence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import fptt
from fptt.experiments.building import make_fabric, make_model
from fptt.experiments.environment import prepare_process
from fptt.experiments.errors import UserError
from fptt.experiments.run_folder import RunFolder
from fptt.experiments.tasks import Task, load_task
from fptt.experiments.tasks.task import Batch, evaluation_batches

CHUNK_LENGTH = 256


@torch.no_grad()
def measure(model: nn.Module, task: Task, dataset: Dataset[Batch], device: torch.device) -> float:
    """Return accuracy (0 … 1) or mean squared error of the last outputs."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for inputs, targets in evaluation_batches(dataset):
        output = final_output(model, task.to_sequences(inputs.to(device)))
        total += _score(task, output, targets.to(device))
        count += len(targets)
    model.train(was_training)
    return total / count


def final_output(model: nn.Module, sequences: Tensor) -> Tensor:
    """Return the outputs after the last step, (B, C)."""
    state, output = None, sequences
    for (chunk,) in fptt.split_sequence(sequences, chunk_length=CHUNK_LENGTH):
        output, state = model(chunk, state)
    return output[-1]


def _score(task: Task, output: Tensor, targets: Tensor) -> float:
    if task.kind == "classes":
        return (output.argmax(-1) == targets).sum().item()
    return (output.double() - targets).square().mean(-1).sum().item()


def evaluate_folder(path: Path, *, averages: bool = False, data: str | None = None) -> dict[str, Any]:
    """Measure the weights of a run folder on the test data again.

    Args:
        path: The run folder.
        averages: Measure the averages W̄ instead of the weights W.
        data: Where the data are now, if not where the run read them.

    Raises:
        UserError: If the folder is damaged, or weights and config do not fit.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    weights = folder.read_weights(averages=averages)
    prepare_process(config.threads)
    task = load_task(config if data is None else replace(config, data=data), config.seed)
    model = make_model(config, task)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"run folder {path} is damaged: weights and config do not fit ({error}).") from error
    fabric = make_fabric(config.accelerator)
    figure = measure(model.to(fabric.device), task, task.test, fabric.device)
    return {"task": task.name, "weights": "averages" if averages else "weights", f"test_{task.metric}": figure}
