"""The parts of a run, built from its config: device, model, optimizer, loss, method."""

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn, optim
from torch.nn import functional

import fptt
from fptt._methods.fptt import OF_FPTT
from fptt._sequence import initial_state
from fptt.experiments.configs.config import Setting, TrainConfig
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.process.machine import check_devices
from fptt.experiments.tasks.task import Task
from fptt.experiments.training.language_model import LanguageModel
from fptt.nn import spiking
from fptt.nn.models import CELLS, plain_cells


def make_model(config: TrainConfig, task: Task) -> nn.Module:
    """Return the model of a config, freshly initialized."""
    if task.vocabulary is not None:
        return make_language_model(config, task.input_size)
    # a mask needs the outputs of all steps
    last_only = not (task.has_step_targets or task.is_ragged or _has_short_chunks(config, task))
    return make_recurrent(config, task.input_size, task.output_size, last_only=last_only)


def make_recurrent(config: TrainConfig, input_size: int, output_size: int, *, last_only: bool) -> nn.Module:
    """Return the model of a config for inputs of numbers, freshly initialized.

    Raises:
        UserError: If the config has options that are for language models or spiking neurons only.
    """
    _check_unset(config, LANGUAGE_ONLY, "is for language models only", config.task)
    if config.cell in SPIKING:
        return make_spiking(config, input_size, output_size, last_only=last_only)
    _check_unset(config, SPIKING_ONLY, f"is for the cells {', '.join(SPIKING)} only", f"the cell {config.cell}")
    return CELLS[config.cell](
        input_size,
        config.hidden_size,
        output_size,
        num_layers=config.num_layers,
        readout_sizes=config.readout_sizes,
        readout_activation=nn.ReLU if config.readout_activation == "relu" else nn.Identity,
        last_only=last_only,
        forget_bias=config.forget_bias,
        chrono_init=config.chrono_init,
        fan_in_init=config.fan_in_init,
    )


SPIKING: dict[str, type[spiking.LIF]] = {"lif": spiking.LIF, "alif": spiking.ALIF, "liquid-lif": spiking.LiquidLIF}
SURROGATES: dict[str, type[spiking.Surrogate]] = {
    "multi-gaussian": spiking.MultiGaussian,
    "fast-sigmoid": spiking.FastSigmoid,
    "arctan": spiking.ArcTan,
    "sigmoid": spiking.Sigmoid,
}
SPIKING_ONLY = ("surrogate", "threshold", "pool")
NOT_FOR_SPIKING = ("readout_sizes", "readout_activation", "forget_bias", "fan_in_init")


def make_spiking(config: TrainConfig, input_size: int, output_size: int, *, last_only: bool) -> spiking.LIF:
    """Return the spiking network of a config, freshly initialized.

    Raises:
        UserError: If the config has options that are not for spiking neurons.
    """
    _check_unset(config, NOT_FOR_SPIKING, "is not for spiking neurons", f"the cell {config.cell}")
    time_constants: dict[str, Any] = {} if config.chrono_init is None else {"tau": (1.0, float(config.chrono_init))}
    return SPIKING[config.cell](
        input_size,
        config.hidden_size,
        output_size,
        num_layers=config.num_layers,
        threshold=config.threshold,
        surrogate=SURROGATES[config.surrogate](),
        pool=config.pool,
        last_only=last_only,
        **time_constants,
    )


def _check_unset(config: TrainConfig, names: Iterable[str], expectation: str, beside: str) -> None:
    """Raise UserError if one of these options does not have its default, beside the cell or task that lacks it."""
    for name in names:
        if getattr(config, name) != getattr(Setting, name):
            raise UserError(f"{name} {expectation}, got {getattr(config, name)} with {beside}.")


def _has_short_chunks(config: TrainConfig, task: Task) -> bool:
    """Return whether the last chunk of a sequence is shorter than the others, which staggered lanes pad with a mask."""
    if config.value("lanes") != "staggered":
        return False
    length = task.training_length()
    return length % fptt.chunk_lengths(length, config.num_chunks)[0] > 0


DROPOUTS = ("dropout", "input_dropout", "hidden_dropout", "weight_dropout", "embedding_dropout")
LANGUAGE_ONLY = ("embedding_size", "tied", *DROPOUTS)
NOT_FOR_LANGUAGE = ("readout_sizes", "readout_activation", "forget_bias", "chrono_init", "fan_in_init", *SPIKING_ONLY)


def make_language_model(config: TrainConfig, num_tokens: int) -> LanguageModel:
    """Return the model of a config for so many tokens, freshly initialized.

    Raises:
        UserError: If the config has options that are not for language models.
    """
    _check_unset(config, NOT_FOR_LANGUAGE, "is not for language models", config.task)
    if config.cell not in CELLS:
        raise UserError(f"cell must be {', '.join(CELLS)} with the language model of {config.task}, got {config.cell}.")
    names = ("embedding_size", "hidden_size", "num_layers", "cell", "tied", *DROPOUTS)
    return LanguageModel(num_tokens=num_tokens, **{name: getattr(config, name) for name in names})


def make_optimizer(config: TrainConfig, model: nn.Module) -> optim.Optimizer:
    """Return the optimizer of a config, with torch's own settings for the rest."""
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return optim.SGD(model.parameters(), momentum=config.momentum, **options)
    kind = {"adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop, "adagrad": optim.Adagrad}
    return kind[config.optimizer](model.parameters(), **options)


def make_fabric(accelerator: str, precision: str = "32-true", devices: int = 1, num_nodes: int = 1) -> Fabric:
    """Return device, precision and, not launched yet, the processes.

    Raises:
        UserError: If there is no such device here, or it does not have the precision.
    """
    try:
        if precision == "16-mixed" and Fabric(accelerator=accelerator, devices=1).device.type == "cpu":
            raise ValueError("float16 needs a GPU; take bf16-mixed")  # which Fabric would do with a warning
        check_devices(accelerator, devices)
        strategy = "ddp" if devices * num_nodes > 1 else "auto"
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs every process
        return Fabric(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,  # pyright: ignore[reportArgumentType]
        )
    except (ValueError, RuntimeError) as error:
        asked = f"accelerator {accelerator!r}" + ("" if precision == "32-true" else f" with precision {precision!r}")
        asked += "" if devices == 1 else f" and devices {devices}"
        raise UserError(f"{asked} cannot be used: {one_line(error)}") from error


def check_precision(config: TrainConfig) -> None:
    """Raise UserError if the precision needs what the engine cannot have around it."""
    if config.precision == "16-mixed" and config.engine == "compiled" and config.method != "bptt":
        raise UserError(
            "precision must be 32-true, 64-true or bf16-mixed with engine compiled, which does not scale losses, "
            "got 16-mixed."
        )


def check_chunks(config: TrainConfig, task: Task) -> None:
    """Raise UserError if chunks, lanes, horizon or duals do not fit the sequences or one another."""
    length = task.training_length()
    name = "bptt_losses" if config.method == "bptt" else "num_chunks"
    if getattr(config, name) > length:
        raise UserError(f"{name} must be at most the sequence length {length}, got {getattr(config, name)}.")
    if config.method != "bptt" and config.horizon > config.num_chunks:
        raise UserError(f"horizon must be at most num_chunks, {config.num_chunks}, got {config.horizon}.")
    if config.value("lanes") != "staggered":
        return
    if task.is_stream:
        raise UserError(f"lanes must be together with {task.name}, whose text is one sequence, got staggered.")
    if task.is_ragged:
        raise UserError(
            f"lanes must be together with ragged sequences, got staggered with {task.name}: how many batches an epoch "
            "has would depend on its order."
        )
    if config.num_duals > 1 and config.method == "fptt":
        raise UserError(f"num_duals must be 1 with lanes staggered, got {config.num_duals}.")


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


class InPrecision(nn.Module):
    """A model whose operations have Fabric's mixed precision, and whose outputs and states are float32.

    The fused kernels of processors without instructions for bfloat16 refuse it: there the cells are written out.
    """

    def __init__(self, model: nn.Module, fabric: Fabric) -> None:
        super().__init__()
        self.model, self.fabric = model, fabric

    def forward(self, inputs: Tensor, state: Any = None) -> Any:
        """Call the model."""
        with self.fabric.autocast(), nullcontext() if has_bfloat16(self.fabric.device) else plain_cells():
            result = self.model(inputs, state)
        return self.fabric.strategy.precision.convert_output(result)

    def initial_state(self, inputs: Tensor) -> Any:
        """Return the model's own, which is float32: that the precision is another outside changes nothing there."""
        return initial_state(self.model, inputs)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the fused recurrent kernels of a device take bfloat16."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_method(
    config: TrainConfig,
    model: nn.Module,
    optimizer: optim.Optimizer,
    loss: fptt.ChunkLoss,
    *,
    fabric: Fabric,
    parallel: fptt.DataParallel | None = None,
) -> fptt.Method:
    """Return the method of a config.

    The gradients of several processes are added up by the method and not by Fabric's DistributedDataParallel, so that
    penalty, compiled engine and local updates see the summed gradient. True precisions go without any wrapper:
    Fabric's would return outputs and state of a float64 model in float32, and so cut the state at every chunk.
    """
    # a running prior counts labels in a buffer
    loss = loss.to(fabric.device)
    options: dict[str, Any] = {"max_norm": config.max_norm, "parallel": parallel}
    options["on_bad_number"] = "skip" if config.on_bad_number == "skip" else "raise"
    if config.precision.endswith("mixed"):
        model = InPrecision(model, fabric)
        if config.engine != "compiled" or config.method == "bptt":  # to scale the gradient in 16-mixed
            optimizer = fabric.setup_optimizers(optimizer)  # pyright: ignore[reportAssignmentType]
    if config.method == "bptt":
        return fptt.BPTT(model, optimizer, loss, num_chunks=config.bptt_losses, backward=fabric.backward, **options)
    if config.engine == "compiled":  # takes the gradient itself
        options["engine"] = "compiled"
    else:
        options["backward"] = fabric.backward  # scales the loss in 16-mixed
    options["horizon"] = config.horizon
    if config.method == "tbptt":
        return fptt.TBPTT(model, optimizer, loss, num_chunks=config.num_chunks, **options)
    names = ("num_chunks", *OF_FPTT)
    return fptt.FPTT(model, optimizer, loss, **{name: getattr(config, name) for name in names}, **options)


def check_parts(config: TrainConfig, task: Task) -> None:
    """Build the parts of a run once, to see whether that is possible: on the CPU, whatever the device is.

    Raises:
        UserError: If chunks, device, precision, or options of the model do not fit.
        ValueError: If options of model or method do not.
    """
    check_chunks(config, task)
    check_precision(config)
    make_fabric(config.accelerator, config.precision, config.devices, config.num_nodes)
    model = make_model(config, task)
    # a device's precision may be none of the CPU's
    on_cpu = replace(config, accelerator="cpu", precision="32-true")
    method = make_method(
        on_cpu, model, make_optimizer(config, model), make_loss(config, task), fabric=make_fabric("cpu")
    )
    method.close()
