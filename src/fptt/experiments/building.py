"""From a config to the parts of a run: device, model, optimizer, loss, method."""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn, optim
from torch.nn import functional

import fptt
from fptt.experiments.components import CELLS, OF_FPTT
from fptt.experiments.config import Setting, TrainConfig
from fptt.experiments.errors import UserError, one_line
from fptt.experiments.language_model import LanguageModel
from fptt.experiments.tasks import Task


def make_model(config: TrainConfig, task: Task) -> nn.Module:
    """Return the model of a config, freshly initialized."""
    if task.vocabulary is not None:
        return make_language_model(config, task.input_size)
    _check_language_only(config, task)
    return CELLS[config.cell](
        task.input_size,
        config.hidden_size,
        task.output_size,
        num_layers=config.num_layers,
        readout_sizes=config.readout_sizes,
        readout_activation=nn.ReLU if config.readout_activation == "relu" else nn.Identity,
        last_only=not task.has_step_targets,
        forget_bias=config.forget_bias,
        fan_in_init=config.fan_in_init,
    )


DROPOUTS = ("dropout", "input_dropout", "hidden_dropout", "weight_dropout", "embedding_dropout")
LANGUAGE_ONLY = ("embedding_size", "tied", *DROPOUTS)
NOT_FOR_LANGUAGE = ("readout_sizes", "readout_activation", "forget_bias", "fan_in_init")


def make_language_model(config: TrainConfig, num_tokens: int) -> LanguageModel:
    """Return the model of a config for so many tokens, freshly initialized.

    Raises:
        UserError: If the config has options that are not for language models.
    """
    for name in NOT_FOR_LANGUAGE:
        if getattr(config, name) != getattr(Setting, name):
            raise UserError(f"{name} is not for language models, got {getattr(config, name)} with {config.task}.")
    names = ("embedding_size", "hidden_size", "num_layers", "cell", "tied", *DROPOUTS)
    return LanguageModel(num_tokens=num_tokens, **{name: getattr(config, name) for name in names})


def _check_language_only(config: TrainConfig, task: Task) -> None:
    for name in LANGUAGE_ONLY:
        if getattr(config, name):
            raise UserError(f"{name} is for language models only, got {getattr(config, name)} with {task.name}.")


def make_optimizer(config: TrainConfig, model: nn.Module) -> optim.Optimizer:
    """Return the optimizer of a config, with torch's own settings for the rest."""
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return optim.SGD(model.parameters(), momentum=config.momentum, **options)
    kind = {"adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop, "adagrad": optim.Adagrad}
    return kind[config.optimizer](model.parameters(), **options)


def make_fabric(accelerator: str, precision: str = "32-true") -> Fabric:
    """Return device and precision.

    Raises:
        UserError: If there is no such device here, or it does not have the precision.
    """
    try:
        if precision == "16-mixed" and Fabric(accelerator=accelerator, devices=1).device.type == "cpu":
            raise ValueError("float16 needs a GPU; take bf16-mixed")  # which Fabric would do with a warning
        return Fabric(accelerator=accelerator, devices=1, precision=precision)  # pyright: ignore[reportArgumentType]
    except (ValueError, RuntimeError) as error:
        asked = f"accelerator {accelerator!r}" + ("" if precision == "32-true" else f" with precision {precision!r}")
        raise UserError(f"{asked} cannot be used: {one_line(error)}") from error


def is_bare(config: TrainConfig) -> bool:
    """Tell whether the method takes model and optimizer as they are, without Fabric's autocast around them.

    Fabric would return outputs and state of a float64 model in float32, and so cut the state at every chunk.

    Raises:
        UserError: If the precision needs what the engine cannot have around it.
    """
    is_mixed = config.precision.endswith("mixed")
    if is_mixed and config.engine == "compiled" and config.method != "bptt":
        raise UserError(f"precision must be 32-true or 64-true with engine compiled, got {config.precision}.")
    return not is_mixed


def check_chunks(config: TrainConfig, task: Task) -> None:
    """Raise UserError if there are more chunks than time steps."""
    length = task.training_length()
    name = "bptt_losses" if config.method == "bptt" else "num_chunks"
    if getattr(config, name) > length:
        raise UserError(f"{name} must be at most the sequence length {length}, got {getattr(config, name)}.")


def make_loss(config: TrainConfig, task: Task) -> fptt.ChunkLoss:
    """Return the chunk loss of a task: of every step, or of the end of a chunk; only classes have a divergence."""
    function = functional.mse_loss if task.kind == "regression" else functional.cross_entropy
    if task.has_step_targets:
        if config.divergence == "running":
            raise UserError(f"divergence running is for tasks with one label a sequence, not for {task.name}.")
        return fptt.SequenceLoss(function)
    if task.kind == "regression":
        return fptt.TerminalLoss(function)
    running = fptt.RunningPrior(task.output_size) if config.divergence == "running" else None
    return fptt.TerminalLoss(function, "uniform" if config.divergence == "uniform" else running)


def make_method(
    config: TrainConfig, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, fabric: Fabric
) -> fptt.Method:
    """Return the method of a config; model and optimizer as Fabric gives them, or bare for the compiled engine."""
    loss = make_loss(config, task).to(fabric.device)
    options: dict[str, Any] = {"max_norm": config.max_norm}
    if config.method == "bptt":
        return fptt.BPTT(model, optimizer, loss, num_chunks=config.bptt_losses, backward=fabric.backward, **options)
    if config.engine == "compiled":  # takes the gradient itself
        options["engine"] = "compiled"
    else:
        options["backward"] = fabric.backward
    if config.method == "tbptt":
        return fptt.TBPTT(model, optimizer, loss, num_chunks=config.num_chunks, **options)
    names = ("num_chunks", *OF_FPTT)
    return fptt.FPTT(model, optimizer, loss, **{name: getattr(config, name) for name in names}, **options)
