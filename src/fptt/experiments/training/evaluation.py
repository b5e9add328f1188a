"""Metrics of a model on a data set, computed chunk by chunk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import fptt
from fptt._announce import announce
from fptt._sequence import State
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.process.machine import prepare_process
from fptt.experiments.tasks.batches import Samples
from fptt.experiments.tasks.registry import check_interface, check_vocabulary, load_task
from fptt.experiments.tasks.scores import ClassScore, Score
from fptt.experiments.tasks.task import Task
from fptt.experiments.training.build import make_fabric, make_model
from fptt.experiments.training.folder import RunFolder, Weights, are_same_data, fingerprint_of
from fptt.nn.prediction import evaluating

CHUNK_LENGTH = 256
"""Time steps that are evaluated at once: bounds the memory of long sequences."""

WEIGHT_TYPES = (torch.float32, torch.float64)
"""Of the weights of runs; those of mixed precisions are float32."""


def measure(model: nn.Module, task: Task, dataset: Dataset[Samples], device: torch.device) -> dict[str, float]:
    """Return the metrics of a model on a part of a task's data, that of the task first."""
    return score_of(model, task, dataset, device).metrics()


@torch.no_grad()
def score_of(model: nn.Module, task: Task, dataset: Dataset[Samples], device: torch.device) -> Score:
    """Return the score of a model on a part of a task's data."""
    score = task.make_score()
    state: State = None
    with evaluating(model):
        for stored in task.evaluation_batches(dataset):
            batch = task.batch(tuple(tensor.to(device) for tensor in stored))
            inputs, targets = in_precision_of(model, batch.inputs), in_precision_of(model, batch.targets)
            if task.has_step_targets:
                batch = batch._replace(inputs=inputs, targets=targets)
                state = _add_steps(score, model, batch, state if task.is_stream else None)
            else:
                outputs = fptt.predict(model, inputs, batch.mask, chunk_length=CHUNK_LENGTH)
                assert isinstance(outputs, Tensor)  # a list is of ragged inputs
                score.add(outputs, targets)
    return score


def in_precision_of(model: nn.Module, tensor: Tensor) -> Tensor:
    """Return numbers in the type of a model's weights, and anything else as it is."""
    return tensor.to(next(model.parameters()).dtype) if tensor.is_floating_point() else tensor


def _add_steps(score: Score, model: nn.Module, batch: fptt.Batch, state: State) -> State:
    """Score the outputs of every real step, chunk by chunk; return the last state."""
    parts = (batch.inputs, batch.targets) if batch.mask is None else (batch.inputs, batch.targets, batch.mask)
    for chunk, targets, *masks in fptt.split_sequence(*parts, chunk_length=CHUNK_LENGTH):
        outputs, state = model(chunk, state)
        real = masks[0] if masks else ...
        score.add(outputs[real], targets[real])
    return state


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
    check_interface(folder.read_interface(), task)
    _announce_other_data(folder, task)
    model = make_model(config, task)
    load_weights(model, weights, folder)
    device = available_device(config.accelerator)
    score = score_of(model.to(device), task, task.test, device)
    named: dict[str, Any] = {f"test_{name}": value for name, value in score.metrics().items()}
    if task.class_names is not None and isinstance(score, ClassScore):
        named["test_recall"] = dict(zip(map(str, task.class_names), score.recalls(), strict=True))
    return {"task": task.name, "weights": "averages" if averages else "weights", **named}


def _announce_other_data(folder: RunFolder, task: Task) -> None:
    """Say if the data are not those of which the summary of a run has the figures; older summaries do not tell."""
    saved = fingerprint_of(folder.read_summary()) if folder.summary_file.exists() else None
    if saved is None or are_same_data(saved, task.fingerprint):
        return
    pairs = zip(("training", "test", "validation"), saved.split("-"), task.fingerprint.split("-"), strict=False)
    changed = " and ".join(name for name, before, now in pairs if before != now)
    announce(
        f"The {changed} data of the task {task.name!r} are not those of the run: its summary.json has other figures."
    )


def available_device(accelerator: str) -> torch.device:
    """Return the device of a run, or the processor where there is none: a run of a GPU is measured anywhere."""
    try:
        return make_fabric(accelerator).device
    except UserError as error:
        announce(f"{error} Measured on the processor instead.")
        return torch.device("cpu")


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
