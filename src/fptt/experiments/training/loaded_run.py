"""A trained model, back from its run folder, with all that predictions need."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import fptt
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.tasks.batches import EVALUATION_BATCH_SIZE
from fptt.experiments.tasks.interface import Interface
from fptt.experiments.tasks.registry import TEXTS, load_task
from fptt.experiments.tasks.sequence_files import (
    Columns,
    Sequences,
    array_sequences,
    read_sequences,
    suffix_of,
    table_sequences,
)
from fptt.experiments.tasks.sequences import columns_of, standardized
from fptt.experiments.training.build import make_language_model, make_recurrent
from fptt.experiments.training.evaluation import load_weights
from fptt.experiments.training.folder import RunFolder


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, its config and its figures.

    Attributes:
        model: In evaluation mode on the CPU. Of inputs (T, B, D), or tokens (T, B), and a state, it returns the
            outputs of all steps and the state. It wants inputs standardized as `interface` says; `predict` does that.
        config: Of the run.
        summary: Its figures, as in summary.json.
        interface: What goes into the model, and what comes out.
        vocabulary: The tokens of a language model; else None.
    """

    model: nn.Module
    config: TrainConfig
    summary: dict[str, Any]
    interface: Interface
    vocabulary: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: Path, *, averages: bool = False) -> Self:
        """Return the run of a folder; see `fptt.experiments.load_run`."""
        folder = RunFolder(path)
        config, summary = folder.read_config(), folder.read_summary()
        weights, vocabulary = folder.read_weights(averages=averages), folder.read_vocabulary()
        if vocabulary is None and config.task in TEXTS:
            raise UserError(f"run folder {path} is damaged: vocabulary.json is missing.")
        # a run of a version without the file has to look at its data
        interface = folder.read_interface() or load_task(config, config.seed).interface
        if vocabulary is not None:
            model: nn.Module = make_language_model(config, len(vocabulary))
        else:
            model = make_recurrent(config, interface.input_size, interface.output_size, last_only=False)
        load_weights(model, weights, folder)
        return cls(model.eval(), config, summary, interface, None if vocabulary is None else tuple(vocabulary))

    @property
    def class_names(self) -> tuple[str | int, ...] | None:
        """Names of the outputs, in their order: those of the data, or numbers; None of a regression."""
        if self.interface.kind == "regression":
            return None
        return self.interface.class_names or tuple(range(self.interface.output_size))

    # -- predictions -------------------------------------------------------------------------------------------------

    def predict(self, x: Any) -> Any:
        """Return the predictions of the model: names of classes, or numbers in the units of the data.

        Args:
            x: Sequences: an array or tensor (N, T, D), or (N, T) for D = 1; a list of arrays (T_i, D); or a DataFrame
                with a row a step and the columns that the run was trained on. Of the task `sequences` as in the data,
                before any standardization; of other tasks as their models see them.

        Returns:
            (N,) for one prediction a sequence. For one a step (N, T), or a list of (T_i,) of a list. Of a DataFrame a
            DataFrame: a row a sequence with its id, or a row for each of its rows, with the probabilities of classes.

        Raises:
            UserError: If x has another shape, number of inputs or columns, or holds something else than finite numbers,
                or the run is of a text.
        """
        self._check_no_text()
        if isinstance(x, pd.DataFrame):
            columns = self._columns(is_table=True)
            return self._frame(table_sequences(x, "x", columns, None), "x", columns.id, x)
        sequences = _as_sequences(x)
        return self._like(x, self._decided(self._outputs(sequences)), sequences)

    def predict_proba(self, x: Any) -> Any:
        """Return the probabilities of the classes, in the order of `class_names`.

        Args:
            x: As `predict` takes it, without DataFrames, for which that returns probabilities too.

        Returns:
            (N, C); (N, T, C), or a list of (T_i, C), for predictions of steps.

        Raises:
            UserError: As `predict`, and if the run is a regression.
        """
        self._check_no_text()
        if self.interface.kind == "regression":
            raise UserError("predict_proba is for classes, got a run of a regression.")
        sequences = _as_sequences(x)
        return self._like(x, self._outputs(sequences).softmax(-1).numpy(), sequences)

    def predict_file(self, path: str | Path) -> pd.DataFrame:
        """Return the predictions of a file, .npz, .csv or .parquet, as of a DataFrame.

        Raises:
            UserError: If it cannot be read, or does not hold the inputs of the model, or the run is of a text.
        """
        self._check_no_text()
        path = Path(path)
        columns = self._columns(is_table=suffix_of(path) != ".npz")
        return self._frame(read_sequences(path, columns, None), str(path), columns.id)

    def _columns(self, *, is_table: bool) -> Columns:
        """Return which columns or arrays to read, of a table by the names that it was trained on."""
        own = columns_of(self.config)
        if is_table:
            # a table without the times of training would be in the order of its rows, whatever that is
            return own._replace(inputs=self.interface.input_names, time=self.interface.time_name or own.time)
        return Columns(id=own.id, inputs=own.inputs) if self.interface.input_names is None else Columns()

    def _check_no_text(self) -> None:
        """Raise UserError if the run is of a text; to be called before any data are looked at."""
        if self.vocabulary is not None:
            raise UserError(
                f"predictions are for inputs of numbers, got a run of a text, {self.config.task}: see fptt sample."
            )

    @torch.no_grad()
    def _outputs(self, sequences: Sequences, source: str = "x") -> Tensor:
        """Return scores of classes, or numbers in the units of the data: (N, C), or (ΣT_i, C)."""
        own, size = self.interface, sequences.inputs.shape[1]
        if size != own.input_size:
            names = "" if own.input_names is None else f" ({', '.join(own.input_names)})"
            raise UserError(f"{source} must have {own.input_size} inputs a step{names}, got {size}.")
        mean = torch.tensor(own.input_mean or [0.0] * size, dtype=torch.float64)
        deviation = torch.tensor(own.input_deviation or [1.0] * size, dtype=torch.float64)
        inputs = standardized(sequences, mean, deviation, source)
        outputs = torch.cat(list(self._batches(inputs, torch.from_numpy(sequences.lengths))))
        if own.kind == "classes":
            return outputs
        return outputs * own.target_deviation + own.target_mean

    def _batches(self, inputs: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """Yield the outputs of the model, batch by batch."""
        sequences = inputs.to(next(self.model.parameters()).dtype).split(lengths.tolist())
        for start in range(0, len(lengths), EVALUATION_BATCH_SIZE):
            part = sequences[start : start + EVALUATION_BATCH_SIZE]
            outputs = fptt.predict(self.model, part, per_step=self.interface.has_step_targets)
            yield (outputs if isinstance(outputs, Tensor) else torch.cat(outputs)).double()

    def _decided(self, outputs: Tensor) -> np.ndarray:
        """Return the names of the classes with the highest score, or the numbers."""
        if self.class_names is None:
            return outputs.squeeze(-1).numpy()
        return np.asarray(self.class_names)[outputs.argmax(-1).numpy()]

    def _like(self, x: Any, values: np.ndarray, sequences: Sequences) -> Any:
        """Return values of sequences, or of their steps in the shape of x."""
        if not self.interface.has_step_targets:
            return values
        if isinstance(x, list | tuple):
            return np.split(values, sequences.lengths.cumsum()[:-1])
        return values.reshape(len(sequences.lengths), -1, *values.shape[1:])

    def _frame(
        self, sequences: Sequences, source: str, id_name: str | None, table: pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """Return the predictions of a table, in the order of its rows where they are of steps."""
        outputs, per_step = self._outputs(sequences, source), self.interface.has_step_targets
        lengths = sequences.lengths
        columns: dict[str, Any] = {}
        if per_step:
            columns["step"] = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        columns["prediction"] = self._decided(outputs)
        if self.class_names is not None:
            probabilities = outputs.softmax(-1).numpy()
            columns |= {f"probability_{name}": own for name, own in zip(self.class_names, probabilities.T, strict=True)}
        ids = np.repeat(sequences.ids, lengths) if per_step else sequences.ids
        own_name = "id" if id_name is None or id_name in columns else id_name  # a column of that name would be lost
        frame = pd.DataFrame({own_name: ids} | columns)
        if sequences.rows is None or not per_step:
            return frame
        frame = frame.set_axis(sequences.rows).sort_index()
        return frame if table is None else frame.set_axis(table.index)


def _as_sequences(x: Any) -> Sequences:
    """Return arrays as sequences."""
    if isinstance(x, str | Path):
        raise UserError(f"x must be sequences, got the path {str(x)!r}: predict_file reads files.")
    if isinstance(x, list | tuple):
        return _from_list(x)
    array = _array(x)
    if array.ndim not in (2, 3):
        raise UserError(f"x must be sequences (N, T, D), or (N, T) for D = 1, got shape {array.shape}.")
    return array_sequences(array, None, "x")


def _from_list(x: Sequence[Any]) -> Sequences:
    arrays = [_array(own) for own in x]
    arrays = [own[:, None] if own.ndim == 1 else own for own in arrays]
    shapes = {own.shape[1:] for own in arrays}
    if len(shapes) != 1 or any(own.ndim != 2 or not len(own) for own in arrays):
        found = ", ".join(dict.fromkeys(str(own.shape) for own in arrays)) or "none"
        raise UserError(f"x must be a list of sequences (T, D) with the same D, got shapes {found[:100]}.")
    return array_sequences(np.concatenate(arrays), np.array([len(own) for own in arrays]), "x")


def _array(x: Any) -> np.ndarray:
    try:
        if isinstance(x, Tensor):
            x = x.detach().cpu()
            x = x.double() if x.is_floating_point() else x  # NumPy lacks bfloat16
        return np.asarray(x)
    except (ValueError, TypeError) as error:  # lists in a list, of several lengths
        raise UserError(f"x must be arrays of numbers, or a list of them: {one_line(error)}") from error
