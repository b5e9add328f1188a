"""A trained model as one step of a program, for places without this library."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fptt.experiments.process.errors import UserError
from fptt.experiments.process.files import replaced
from fptt.experiments.tasks.interface import Interface
from fptt.experiments.training.loaded_run import LoadedRun
from fptt.nn.models import CELLS, plain_cells
from fptt.nn.spiking import LIF

NUM_STEPS, BATCH_SIZE = 20, 3
"""Of the random sequences on which an exported step is compared with the model."""
TOLERANCE = 1e-4
"""Of float32: the operations of a step are those of the model in another order."""


class Step(nn.Module):
    """One time step of a model, with the standardization of its interface: inputs and outputs as those of `predict`.

    Args:
        model: Returns outputs and state of inputs (T, B, D) and a state.
        interface: Of its run.
        structure: Of the state, whose tensors are (num_layers, B, H).
    """

    mean: Tensor
    rest: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, interface: Interface, structure: TreeSpec) -> None:
        super().__init__()
        self.model, self.structure, self.is_classes = model, structure, interface.kind == "classes"
        size, dtype = interface.input_size, next(model.parameters()).dtype
        mean = torch.tensor(interface.input_mean or [0.0] * size, dtype=torch.float64)
        deviation = torch.tensor(interface.input_deviation or [1.0] * size, dtype=torch.float64)
        self.register_buffer("mean", mean.to(dtype))
        # of the mean, what has no place in the digits of float32: beside a small deviation it counts
        self.register_buffer("rest", (mean - self.mean).to(dtype))
        self.register_buffer("deviation", deviation.to(dtype))
        self.target_mean, self.target_deviation = interface.target_mean, interface.target_deviation

    def forward(self, inputs: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return probabilities of classes or numbers, (B, C), and the next state, of inputs (B, D) and a state."""
        standardized = (inputs - self.mean - self.rest) / self.deviation
        outputs, after = self.model(standardized.unsqueeze(0), tree_unflatten(list(state), self.structure))
        own = outputs[0].softmax(-1) if self.is_classes else outputs[0] * self.target_deviation + self.target_mean
        return own, tuple(tree_flatten(after)[0])


Call = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]
"""One step: of inputs (B, D) and a state, outputs (B, C) and the next state."""


class Exported(NamedTuple):
    """A program of one step: the bytes of its file, and how they run."""

    content: bytes
    call: Call


def export_step(run: LoadedRun, path: Path, to: Literal["pt2", "onnx"] = "pt2") -> None:
    """Write one step of the model of a run as a program, compared with the model before.

    The file takes any batch size. It has `interface.json` and the shapes of the state for one sequence, `state.json`,
    as extra files (pt2) or metadata (onnx). Inputs and outputs of an ONNX program are named `inputs`, `state_0`, … and
    `outputs`, `next_state_0`, ….

    Args:
        run: A run on inputs of numbers.
        path: A file.
        to: Its format: `pt2`, of `torch.export`, or `onnx`.

    Raises:
        UserError: If the run is of a text or of spiking neurons, a library is missing, the file cannot be written, or
            the program returns something else than the model.
    """
    if run.vocabulary is not None:
        raise UserError(f"export is for inputs of numbers, got a run of a text, {run.config.task}.")
    if isinstance(run.model, LIF):
        raise UserError(f"export is for the cells {', '.join(CELLS)}, got a run of {run.config.cell}.")
    own, dtype = run.interface, next(run.model.parameters()).dtype
    inputs = torch.zeros(2, own.input_size, dtype=dtype)  # a batch of one would be taken for a constant
    state, structure = tree_flatten(run.model.initial_state(inputs.unsqueeze(0)))  # pyright: ignore[reportCallIssue]
    extras = {
        "interface.json": json.dumps(asdict(own), ensure_ascii=False),
        "state.json": json.dumps([[len(tensor), 1, *tensor.shape[2:]] for tensor in state]),
    }
    step = Step(run.model, own, structure).eval()
    exported = (_to_pt2 if to == "pt2" else _to_onnx)(step, inputs, tuple(state), extras)
    check_step(run, exported.call, tuple(state))
    with replaced(path) as temporary:
        temporary.write_bytes(exported.content)


def _dynamic(state: tuple[Tensor, ...]) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {"inputs": {0: batch}, "state": tuple({1: batch} for _ in state)}


def _to_pt2(step: Step, inputs: Tensor, state: tuple[Tensor, ...], extras: dict[str, str]) -> Exported:
    with torch.no_grad(), plain_cells():  # in operations that every reader of such a file has
        program = torch.export.export(step, (inputs, state), dynamic_shapes=_dynamic(state))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=extras)
    file.seek(0)
    return Exported(file.getvalue(), torch.export.load(file).module())  # pyright: ignore[reportArgumentType]


def _to_onnx(step: Step, inputs: Tensor, state: tuple[Tensor, ...], extras: dict[str, str]) -> Exported:
    try:
        onnxruntime = import_module("onnxruntime")
        import_module("onnxscript")
    except ModuleNotFoundError as error:
        raise UserError(f"export to onnx needs {error.name}: pip install 'fptt[onnx]'") from error
    names = [f"state_{number}" for number in range(len(state))]
    with torch.no_grad(), plain_cells(), _quietly():
        program = torch.onnx.export(
            step,
            (inputs, state),
            dynamo=True,
            dynamic_shapes=_dynamic(state),
            input_names=["inputs", *names],
            output_names=["outputs", *(f"next_{name}" for name in names)],
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(extras)
        content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def call(inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        feed = dict(zip(["inputs", *names], (tensor.numpy() for tensor in (inputs, *state)), strict=True))
        outputs, *after = map(torch.from_numpy, session.run(None, feed))
        return outputs, tuple(after)

    return Exported(content, call)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide warnings of the exporter, which are about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def check_step(run: LoadedRun, step: Call, state: tuple[Tensor, ...]) -> None:
    """Run a program and the model on the same random sequences.

    Args:
        run: The run of the model.
        step: The program.
        state: Zeros, (num_layers, B, …), of any batch size.

    Raises:
        UserError: If they do not return the same at the last step, within the tolerance.
    """
    own = run.interface
    inputs = torch.randn(NUM_STEPS, BATCH_SIZE, own.input_size, generator=torch.Generator().manual_seed(0))
    if own.input_mean is not None and own.input_deviation is not None:
        inputs = inputs * torch.tensor(own.input_deviation) + torch.tensor(own.input_mean)
    state = tuple(tensor.new_zeros(len(tensor), BATCH_SIZE, *tensor.shape[2:]) for tensor in state)
    outputs = inputs
    for x in inputs.to(next(run.model.parameters()).dtype):
        outputs, state = step(x, state)
    sequences = list(inputs.transpose(0, 1).numpy())
    predicted = run.predict_proba(sequences) if own.kind == "classes" else run.predict(sequences)
    last = np.stack([steps[-1] for steps in predicted]) if own.has_step_targets else predicted
    expected = torch.from_numpy(last).reshape(outputs.shape)
    difference = (outputs.double() - expected).abs().max().item() / own.target_deviation
    # numbers far from 0 have no more digits than the type of the program
    rounding = torch.finfo(outputs.dtype).eps * expected.abs().max().item() / own.target_deviation
    if not difference <= TOLERANCE + rounding:
        raise UserError(f"the exported program differs from the model by {difference:g}.")
