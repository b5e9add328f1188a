"""FPTT, TBPTT and BPTT as estimators of scikit-learn, on skorch: `pip install 'fptt[sklearn]'`."""

# pyright: reportIncompatibleMethodOverride=false
# skorch has no types: pyright takes the defaults of its arguments for them

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

import fptt
from fptt._checks import check_choice, first_weight
from fptt._losses.elementwise import ignored_index, is_without_labels
from fptt._methods.fptt import OF_FPTT
from fptt._online.targets import to_python

try:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
    from skorch.callbacks import Callback
    from skorch.utils import data_from_dataset, is_dataset
except ModuleNotFoundError as error:
    raise ImportError(f"fptt.integrations.sklearn needs {error.name}: pip install 'fptt[sklearn]'") from error

NETWORKS: dict[Any, Callable[..., nn.Module]] = {"lstm": fptt.nn.LSTM, "gru": fptt.nn.GRU, "rnn": fptt.nn.RNN}
FLOATS: Any = [np.float64, np.float32]  # what is neither becomes the first, which has the digits of integers
SIGNATURE = "(input_size, hidden_size, output_size, **options) that returns a time-major model"
OF_TBPTT = ("num_chunks", "engine", "max_norm")

CellName = Literal["lstm", "gru", "rnn"]


def _is_ragged(X: Any) -> bool:  # noqa: N803
    """Return whether X is a list, or an array of objects, of sequences with lengths of their own."""
    return _is_list(X) and all(map(_has_steps, X)) and len({len(own) for own in X}) > 1


def _is_list(X: Any) -> bool:  # noqa: N803
    """Return whether X is a list, or an array of objects."""
    return isinstance(X, list | tuple) or (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1)


def _has_steps(own: Any) -> bool:
    return hasattr(own, "__len__") and not isinstance(own, str | bytes | dict) and getattr(own, "ndim", 1) > 0


def _from_list(X: Any) -> NDArray[Any]:  # noqa: N803
    """Return ragged sequences, (T_i,) or (T_i, D), padded by NaN: (N, T) or (N, T, D).

    Raises:
        ValueError: If one is empty, has another D, or holds something else than finite numbers; names it by its number.
    """
    sequences = []
    for number, own in enumerate(X):
        if not len(own):
            raise ValueError(f"X[{number}] must have at least one step, got none.")
        sequence = check_array(own, dtype=FLOATS, ensure_2d=False, allow_nd=True, input_name=f"X[{number}]")
        if sequence.ndim not in (1, 2):
            raise ValueError(f"X[{number}] must have shape (T,) or (T, D), got {sequence.shape}.")
        if sequences and sequence.shape[1:] != sequences[0].shape[1:]:
            raise ValueError(
                f"X must have sequences of one width, got shape {sequence.shape} of X[{number}] after "
                f"{sequences[0].shape} of X[0]."
            )
        sequences.append(sequence)
    flat = np.concatenate(sequences)
    return _padded(flat, np.array([len(own) for own in sequences]), np.nan)


def _lengths(sequences: NDArray[Any]) -> NDArray[Any]:
    """Return the real steps of each sequence, (N,)."""
    first = sequences if sequences.ndim == 2 else sequences[..., 0]
    return (~np.isnan(first)).sum(1)


def _padded(flat: NDArray[Any], lengths: NDArray[Any], padding: float) -> NDArray[Any]:
    """Return the steps of all sequences, (ΣT_i, …), as (N, T, …)."""
    padded = np.full((len(lengths), lengths.max(), *flat.shape[1:]), padding, flat.dtype)
    padded[np.arange(lengths.max()) < lengths[:, None]] = flat
    return padded


def _steps_of(y: Any, lengths: NDArray[Any]) -> NDArray[Any]:
    """Return targets of steps, one after another, (ΣT_i, …).

    Raises:
        ValueError: If they are not one for each step; names the sequence by its number.
    """
    y = np.asarray(y) if hasattr(y, "columns") else y  # a data frame is iterated by its columns
    count = len(y) if _has_steps(y) else repr(y)
    if count != len(lengths):
        raise ValueError(f"y must have targets for each of {len(lengths)} sequences with per_step=True, got {count}.")
    for number, (own, length) in enumerate(zip(y, lengths, strict=True)):
        count = len(own) if _has_steps(own) else repr(own)
        if count != length:
            raise ValueError(f"y[{number}] must have a target for each of {length} steps of X[{number}], got {count}.")
    return np.concatenate([np.asarray(own) for own in y])


def _unpacked(dataset: Any) -> tuple[Any, Any]:
    """Return X and y of a data set, of which y may be None.

    Raises:
        ValueError: If it has none.
    """
    try:
        return data_from_dataset(dataset)
    except AttributeError as error:
        raise ValueError(
            f"a data set must be a skorch.dataset.Dataset(X, y), or a part of one, got a {type(dataset).__name__}."
        ) from error


@contextmanager
def _all_steps(model: nn.Module) -> Iterator[None]:
    """Let a model of `fptt.nn` return the outputs of all steps, of which those at the last real steps are taken."""
    is_last_only = getattr(model, "last_only", None)
    if is_last_only is None:
        yield
        return
    model.last_only = False  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        model.last_only = is_last_only


class SequenceNet(NeuralNet, ABC):
    """A skorch net whose batches are learned by a method of `fptt`: the base of classifier and regressor.

    Skorch reads the parameters of a net off its attributes: each argument is kept under its own name.
    """

    criterion_class: ClassVar[type[nn.Module]] = nn.MSELoss
    cuda_dependent_attributes_: ClassVar[list[str]] = ["method_"]  # pickled with the weights that it refers to
    is_training_ = False
    target_padding: ClassVar[float]
    """What skorch's data sets have as targets of padding; no real target is one."""

    def __init__(
        self,
        *,
        method: Literal["fptt", "tbptt", "bptt"] = "fptt",
        num_chunks: int | None = None,
        alpha: float = 0.1,
        beta: float = 0.5,
        form: Literal["paper", "released"] = "paper",
        coupling: Literal["coupled", "decoupled"] = "decoupled",
        mu: float = 1.0,
        previous_gradient: Literal["dual", "recomputed"] = "dual",
        num_duals: int = 1,
        engine: Literal["eager", "compiled"] = "eager",
        max_norm: float | None = 1.0,
        cell: CellName | Callable[..., nn.Module] = "lstm",
        hidden_size: int = 64,
        per_step: bool = False,
        standardize: bool = True,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        lr: float = 2e-3,
        max_epochs: int = 20,
        batch_size: int = 32,
        random_state: int | np.random.RandomState | None = None,
        train_split: Any = None,
        verbose: int = 0,
        **skorch_options: Any,
    ) -> None:
        self.method, self.num_chunks, self.engine, self.max_norm = method, num_chunks, engine, max_norm
        self.alpha, self.beta, self.form, self.coupling, self.mu = alpha, beta, form, coupling, mu
        self.previous_gradient, self.num_duals = previous_gradient, num_duals
        self.cell, self.hidden_size, self.random_state = cell, hidden_size, random_state
        self.per_step, self.standardize = per_step, standardize
        skorch_options.update(optimizer=optimizer, lr=lr, max_epochs=max_epochs, batch_size=batch_size)
        skorch_options.update(train_split=train_split, verbose=verbose)
        skorch_options.setdefault("criterion", self.criterion_class)
        super().__init__(nn.Module, **skorch_options)  # a stand-in: initialize_module makes the model

    def _get_param_names(self) -> list[str]:
        # It follows from the other parameters, and `clone` would pass it to a constructor that does not take it.
        return [name for name in super()._get_param_names() if name != "module"]

    def initialize_module(self) -> Self:
        """Build the model."""
        if not hasattr(self, "input_size_"):
            raise ValueError(f"{type(self).__name__} learns its sizes from the data: call fit or partial_fit.")
        make = NETWORKS[self.cell] if self._has_named_cell else self.cell
        wanted = f"cell must be one of {', '.join(map(repr, NETWORKS))} or a callable {SIGNATURE}"
        if not callable(make):
            raise ValueError(f"{wanted}, got {self.cell!r}.")
        if isinstance(make, type) and issubclass(make, nn.RNNBase | nn.RNNCellBase):
            raise ValueError(
                f"{wanted}, got torch.nn.{make.__name__}, which has no output_size: its third argument is "
                f"{'num_layers' if issubclass(make, nn.RNNBase) else 'bias'}."
            )
        own = self.get_params_for("module")
        options = (self._first_options(own) if self._has_named_cell else {}) | own
        self.module_ = make(self.input_size_, to_python(self.hidden_size), self.output_size_, **options)
        return self

    @property
    def _has_named_cell(self) -> bool:
        return isinstance(self.cell, str) and self.cell in NETWORKS

    def _first_options(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a layer that has been given its own ones: the first settings of `fptt train`."""
        options: dict[str, Any] = {"last_only": not (self.per_step or self.is_ragged_), "fan_in_init": True}
        return options | ({"forget_bias": 1.0} if self.cell == "lstm" and "chrono_init" not in own else {})

    def initialize_criterion(self) -> Self:
        """Build the criterion."""
        try:
            return super().initialize_criterion()
        except TypeError as error:
            if isinstance(self.criterion, type):  # its options are what is wrong
                raise
            raise TypeError(
                "criterion must be a class of losses, as nn.CrossEntropyLoss, or one such loss, got "
                f"{self.criterion!r}."
            ) from error

    def initialize_optimizer(self, *_: Any) -> Self:
        """Build the optimizer, and the method around it."""
        if not callable(self.optimizer):
            raise TypeError(f"optimizer must be a class of optimizers, as torch.optim.Adam, got {self.optimizer!r}.")
        if not isinstance(self.lr, Real | Tensor):
            raise TypeError(f"lr must be a number, got {self.lr!r}.")
        super().initialize_optimizer()
        self.method_ = self._make_method()
        self.settings_ = self._settings()  # those that partial_fit may not change
        return self

    def _make_method(self) -> fptt.Method:
        check_choice("method", self.method, ("fptt", "tbptt", "bptt"))
        self._check_callbacks()
        self._check_criterion()
        loss = self._chunk_loss().to(self.device)
        if self.method == "bptt":
            return fptt.BPTT(self.module_, self.optimizer_, loss, max_norm=to_python(self.max_norm))
        names = OF_TBPTT + (OF_FPTT if self.method == "fptt" else ())
        kind = fptt.FPTT if self.method == "fptt" else fptt.TBPTT
        options: dict[str, Any] = {name: to_python(getattr(self, name)) for name in names}
        options["num_chunks"] = self.num_chunks_
        return kind(self.module_, self.optimizer_, loss, **options)

    def _check_callbacks(self) -> None:
        """Raise ValueError for callbacks that change the gradient: it exists inside the method's updates alone."""
        for name, callback in self.callbacks_:
            if getattr(type(callback), "on_grad_computed", None) is not Callback.on_grad_computed:
                raise ValueError(f"callbacks must not need the gradient, got {name}: clip with max_norm instead.")

    def _settings(self) -> dict[str, Any]:
        names = ("method", *OF_TBPTT, *OF_FPTT, "cell", "hidden_size", "per_step", "standardize", "optimizer")
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> Self:
        """Set parameters; of a fitted net skorch makes the model anew, from the net's own numbers, for `module__…`."""
        draws = self.initialized_ and not self.is_training_  # where it trains, they are in use
        with self._own_random_numbers() if draws else nullcontext():
            return super().set_params(**params)

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Return the parameters `prefix__…`; the batches of training are shuffled."""
        first = {"shuffle": True} if prefix == "iterator_train" else {}
        first |= {"batch_size": to_python(self.batch_size)} if prefix in {"iterator_train", "iterator_valid"} else {}
        return first | super().get_params_for(prefix)

    @abstractmethod
    def _check_criterion(self) -> None:
        """Raise ValueError for a criterion of other outputs or targets."""

    @abstractmethod
    def _chunk_loss(self) -> fptt.ChunkLoss: ...

    @abstractmethod
    def _check_targets(self, y: Any) -> NDArray[Any]:
        """Return y, of sequences or of the steps of all of them, as an array, (N,) or (N, M)."""

    @abstractmethod
    def _learn_targets(self, targets: NDArray[Any], classes: ArrayLike | None) -> int:
        """Keep what later calls need of the first y; return the number of outputs."""

    @abstractmethod
    def _numbers_of(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Return targets as skorch's data set has them: class numbers, (N,), or numbers, (N, M)."""

    @abstractmethod
    def _to_targets(self, numbers: Any) -> Tensor:
        """Return the targets of a batch as the loss takes them; those of padding, which do not count, as any others."""

    def fit(self, X: Any, y: Any, **fit_params: Any) -> Self:  # noqa: N803
        """Initialize and train for `max_epochs`; with `warm_start` continue as `partial_fit` does.

        Args:
            X: (N, T), or (N, T, D); or a list of N ragged sequences, (T_i,) or (T_i, D).
            y: (N,), or (N, M) for the regressor. With `per_step` one for each step: (N, T), or (N, T, M), or a list of
                N of (T_i,), or (T_i, M).
            **fit_params: None; there is no `sample_weight`.

        Raises:
            ValueError: If X or y has NaN, Inf, a wrong shape or too few steps, or a setting is out of range.
        """
        if not self.warm_start:
            self.initialized_ = False
        return self.partial_fit(X, y, **fit_params)

    def partial_fit(self, X: Any, y: Any, classes: ArrayLike | None = None, **fit_params: Any) -> Self:  # noqa: N803
        """Continue to train for `max_epochs`, with the optimizer's moments, averages and duals as they are.

        Args:
            X: As for `fit`.
            y: As for `fit`.
            classes: All labels, (C,), if the first y does not have all of them.
            **fit_params: As for `fit`.

        Raises:
            ValueError: Also if y has a label that was not there before, or a setting has changed since `fit`.
        """
        if fit_params:
            raise TypeError(f"fit takes X and y alone, got {', '.join(sorted(fit_params))}.")
        sequences, lengths, targets = self._checked(X, y)
        if self.initialized_:
            self._check_unchanged()
        else:
            self.input_size_ = sequences.shape[2] if sequences.ndim == 3 else 1
            self.output_size_ = self._learn_targets(targets, classes)
            self.is_ragged_ = bool(lengths.min() < lengths.max())
            self.num_chunks_ = (
                round(math.sqrt(lengths.max())) if self.num_chunks is None else to_python(self.num_chunks)
            )
            self._learn_scale(sequences)
            # The state that torch.manual_seed would set, so that a seed gives the numbers of a loop by hand.
            self.rng_state_ = torch.Generator().manual_seed(self._seed()).get_state()
        self._check_width(sequences)
        if lengths.min() < lengths.max() and getattr(self.module_ if self.initialized_ else None, "last_only", False):
            raise ValueError("X must have sequences of one length, as in the first fit, got ragged ones: call fit.")
        data = sequences, self._padded_numbers(targets, lengths)
        self.is_training_ = True
        try:
            with self._own_random_numbers():
                return super().partial_fit(*data)
        finally:
            self.is_training_ = False

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:  # noqa: N803
        """Return the data sets of training and validation; one of a user's own is made what `partial_fit` makes of X.

        Raises:
            ValueError: If it does not fit, or has no X and y.
        """
        whole = self.get_dataset(X, y)
        training, validation = super().get_split_datasets(whole, y, **fit_params)
        if training is not whole or validation is None or getattr(validation, "dataset", None) is whole:
            return training, validation  # parts of the whole
        sequences, lengths, targets = self._checked(*_unpacked(validation))
        self._check_width(sequences)
        return training, self.get_dataset(sequences, self._padded_numbers(targets, lengths))

    def _checked(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:  # noqa: N803
        """Return sequences, (N, T) or (N, T, D), their lengths, (N,), and the targets of all, or of all steps."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        sequences = self._check_sequences(X)
        lengths = _lengths(sequences)
        targets = self._check_targets(_steps_of(y, lengths) if self.per_step else y)
        if not self.per_step:
            check_consistent_length(sequences, targets)
        return sequences, lengths, targets

    def _padded_numbers(self, targets: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
        numbers = self._numbers_of(targets)
        return _padded(numbers, lengths, self.target_padding) if self.per_step else numbers

    def _learn_scale(self, sequences: NDArray[Any]) -> None:
        steps = sequences.reshape(-1, self.input_size_).astype(np.float64)
        deviation = np.nanstd(steps, 0)
        self.mean_ = np.nanmean(steps, 0)
        # the mean of equal numbers has a rounding error, which is no deviation
        rounding = len(steps) * np.finfo(np.float64).eps * np.abs(self.mean_)
        self.deviation_ = np.where(deviation > rounding, deviation, 1.0)

    def _seed(self) -> int:
        seed = self.random_state
        # Scikit-learn would draw a number with NumPy's generator of that seed; an integer is torch's own seed here.
        return int(seed) if isinstance(seed, Integral) else check_random_state(seed).randint(2**31 - 1)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Draw weights, order and dropout from a generator of the net's own, which continues from call to call."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.rng_state_)
            try:
                yield
            finally:
                self.rng_state_ = torch.get_rng_state()

    def _check_unchanged(self) -> None:
        for name, value in self._settings().items():
            # `is` first: classes and callables need not compare.
            if value is not self.settings_[name] and value != self.settings_[name]:
                raise ValueError(
                    f"{name} must not change between calls of partial_fit, got {value!r} after "
                    f"{self.settings_[name]!r}: call fit, with warm_start=False, to begin again."
                )

    def check_data(self, X: Any, y: Any) -> None:  # noqa: N803
        """Do nothing: `partial_fit` has checked the data."""

    def train_step(self, batch: Any, **_: Any) -> dict[str, Any]:
        """Train on one batch by the method; return the mean of the chunk losses."""
        inputs, targets = batch
        self._set_training(True)  # a callback may have predicted since the last batch
        sequences, mask = self._time_major(inputs)
        is_first = self.method_.batches == 0
        loss = self.method_.train_batch(sequences, self._time_major_targets(targets), mask=mask).loss
        if is_first and not self._has_named_cell:
            self._check_num_outputs(batch)
        return {"loss": loss, "y_pred": self.evaluation_step(batch) if self._predictions_are_wanted() else None}

    def _check_num_outputs(self, batch: Any) -> None:
        """Raise ValueError if a cell of one's own has another number of outputs: as classes torch would take more."""
        with torch.random.fork_rng(devices=[]):  # the numbers of training are those of a loop by hand
            found = self.evaluation_step(batch).shape[-1]
        self._set_training(True)
        if found != self.output_size_:
            raise ValueError(
                f"cell must be a callable {SIGNATURE} with output_size = {self.output_size_} outputs a step, got "
                f"{found} of {type(self.module_).__name__}."
            )

    def _predictions_are_wanted(self) -> bool:
        """Return whether a callback scores the predictions of training batches; they cost one more forward pass."""
        return any(
            getattr(callback, "on_train", False) and getattr(callback, "use_caching", False)
            for _, callback in self.callbacks_
        )

    def forward_iter(self, X: Any, training: bool = False, device: str = "cpu") -> Generator[Any, Any, None]:  # noqa: N803
        """Yield the outputs of each batch, (B, C), or (B, T, C) with `per_step`; sequences may be of any length."""
        self.check_is_fitted()
        # skorch's data sets hold what fit has checked and padded; callbacks hand over such a set, or its array alone
        X = self._check_sequences(X, may_be_padded=self.is_training_)  # noqa: N806
        self._check_width(X)
        yield from super().forward_iter(X, training, device)

    def infer(self, x: Any, **_: Any) -> Tensor:
        """Return the outputs after the last real step, (B, C); with `per_step` those of all steps, (B, T, C)."""
        sequences, mask = self._time_major(x)
        with nullcontext() if mask is None else _all_steps(self.module_):
            outputs = self.module_(sequences, None)[0]  # (T, B, C), or (1, B, C) with last_only
        return outputs.transpose(0, 1) if self.per_step else fptt.last_output(outputs, mask)

    def get_loss(self, y_pred: Tensor, y_true: Any, X: Any = None, *_: Any, **__: Any) -> Tensor:  # noqa: N803
        """Return the plain loss after the last step, or of all steps with `per_step`: the validation loss."""
        targets = self._to_targets(y_true)
        if self.per_step:
            counted = ~self._is_padding(torch.as_tensor(X)).to(self.device)  # (B, T)
            y_pred, targets = y_pred[counted], targets[counted]
        return self.criterion_(y_pred, targets).mean()  # of one with reduction="none"

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """Return the outputs, probabilities of the classifier: (N, C), (N, T, C), or a list of (T_i, C) of a list."""
        outputs = super().predict_proba(X)
        if not self.per_step or not _is_list(X):
            return outputs
        return [own[:length] for own, length in zip(outputs, map(len, X), strict=True)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the accuracy of the classifier, R² of the regressor; with `per_step` over all steps."""
        if not self.per_step:
            return super().score(X, y, sample_weight)  # pyright: ignore[reportAttributeAccessIssue]
        if sample_weight is not None:
            raise ValueError("sample_weight must be None with per_step=True.")
        predictions = self.predict(X)
        if self.is_training_ and not _is_list(y):  # skorch's own, padded, in the order of batches and not that of X
            y = np.asarray(y)
            real = ~np.isclose(y.reshape(*y.shape[:2], -1)[..., 0], self.target_padding, equal_nan=True)
            return self._score(y[real], predictions[real])
        lengths = _lengths(self._check_sequences(X))
        real_steps = [own[:length] for own, length in zip(predictions, lengths, strict=True)]
        return self._score(_steps_of(y, lengths), np.concatenate(real_steps))

    @abstractmethod
    def _score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float: ...

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        # scikit-learn has no accuracy of two dimensions
        own = super()._default_callbacks
        return [(name, callback) for name, callback in own if not (self.per_step and name == "valid_acc")]

    def _time_major(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        """Return (T, B, D), scaled, in the dtype of the weights, and the mask of real steps, None if all are."""
        inputs = torch.as_tensor(inputs, device="cpu")  # MPS has no float64
        inputs = inputs if inputs.dim() == 3 else inputs.unsqueeze(-1)
        if self.standardize:
            inputs = (inputs.double() - torch.from_numpy(self.mean_)) / torch.from_numpy(self.deviation_)
        inputs = inputs.to(self._dtype()).to(self.device)
        padding = self._is_padding(inputs).transpose(0, 1)
        inputs = inputs.transpose(0, 1)
        return (inputs.nan_to_num(), ~padding) if padding.any() else (inputs, None)

    def _is_padding(self, inputs: Tensor) -> Tensor:
        """Return which steps, (B, T), are padding: their inputs are NaN, which those of a user are not."""
        return torch.isnan(inputs if inputs.dim() == 2 else inputs[..., 0])

    def _time_major_targets(self, numbers: Any) -> Tensor:
        targets = self._to_targets(numbers)
        return targets.transpose(0, 1) if self.per_step else targets

    def _dtype(self) -> torch.dtype:
        return first_weight(self.module_).dtype

    def _check_sequences(self, X: Any, *, may_be_padded: bool = False) -> NDArray[Any]:  # noqa: N803
        """Return those of an array, list or data set, (N, T) or (N, T, D); ragged ones are padded by NaN."""
        X = _unpacked(X)[0] if is_dataset(X) else X  # noqa: N806
        if _is_ragged(X):
            return _from_list(X)
        X = list(X) if _is_list(X) else X  # noqa: N806
        finite: Any = "allow-nan" if may_be_padded else True
        sequences = check_array(X, dtype=FLOATS, allow_nd=True, ensure_all_finite=finite, input_name="X")
        if sequences.ndim > 3:
            raise ValueError(f"X must have shape (N, T) or (N, T, D), got {sequences.shape}.")
        return np.require(sequences, requirements="W")  # torch warns of those of a data frame, which are read-only

    def _check_width(self, sequences: NDArray[Any]) -> None:
        width = sequences.shape[2] if sequences.ndim == 3 else 1
        if width != self.input_size_:
            raise ValueError(f"X must have D = {self.input_size_} numbers a step, as in fit, got {width}.")

    def load_params(self, *args: Any, **kwargs: Any) -> None:
        """Load what `save_params` saved into a net that has been fitted, as skorch does.

        Raises:
            ValueError: If the net has not been fitted.
        """
        names = kwargs.keys() - {"f_history", "use_safetensors"}  # a history needs no net
        if not self.initialized_ and (args or names):
            raise ValueError(
                f"{type(self).__name__} must be fitted before load_params, for the files have no sizes, labels and "
                "scale: call fit or partial_fit, with max_epochs=0 to train on nothing, or pickle the whole net."
            )
        super().load_params(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "is_training_": False}  # a callback may pickle the net in training


class FPTTClassifier(SequenceNet, NeuralNetClassifier):
    """Classify sequences with an LSTM, GRU or RNN trained by FPTT, TBPTT or BPTT.

    A `skorch.NeuralNetClassifier`, for pipelines, grid searches and `clone`. Pickled, it keeps moments, averages and
    duals, and `partial_fit` resumes bitwise; `save_params(f_params=…, f_optimizer=…, f_method=…)` saves them
    apart, for `load_params` of a net that has been fitted to data of the same kind: sizes, labels and scale are not in
    these files, and a pickled net has them. Inside `with net.method_.regularizer.averaged():` it predicts with W̄. Of
    `EarlyStopping(load_best=True)` the weights are those of the best epoch, and averages and duals those of the last:
    call `net.method_.regularizer.reset()` before `partial_fit`.

    Args:
        method: `fptt`, `tbptt` or `bptt`; settings of the others are ignored, so that a search may run over it.
        num_chunks: K for FPTT and TBPTT, 1 ≤ K ≤ T; None for √T of the longest sequence in the first fit, which is
            `num_chunks_`. BPTT has one loss, at the end.
        alpha: Strength of FPTT's penalty, see `fptt.FPTT`; 0 is TBPTT.
        beta: See `fptt.FPTT`.
        form: See `fptt.FPTT`.
        coupling: See `fptt.FPTT`.
        mu: See `fptt.FPTT`.
        previous_gradient: See `fptt.FPTT`.
        num_duals: See `fptt.FPTT`.
        engine: `eager` or `compiled`, see `fptt.TBPTT`; BPTT is always eager.
        max_norm: Clip the norm of the gradient inside each update; None for no clipping.
        divergence: Q of the terminal loss, to which early chunks are held: `uniform`, `running` or None. Steps with
            labels of their own need none.
        cell: `lstm`, `gru`, `rnn`, with options `module__num_layers`, `module__readout_sizes`, … of `fptt.nn`, where
            `module__fan_in_init=True` and, of an LSTM, `module__forget_bias=1.0` unless they are given; or a callable
            `(input_size, hidden_size, output_size, **module__…)` that returns a time-major model.
        hidden_size: Width of the state.
        per_step: Learn and predict a label for every step instead of one for every sequence.
        standardize: Scale each input by its mean and deviation over all steps of the first fit.
        optimizer: Any optimizer class, with options `optimizer__weight_decay`, ….
        lr: Learning rate.
        max_epochs: Passes over the data in `fit`, and in each `partial_fit`.
        batch_size: Sequences a batch.
        random_state: Seed of weights, order and dropout: an int gives the numbers of a loop after `torch.manual_seed`.
            The generators of torch, and of NumPy if it is not None, are left as they were.
        train_split: None to train on all data; or for callbacks that validate, such as early stopping,
            `skorch.dataset.ValidSplit(0.2, stratified=True)`, or `skorch.helper.predefined_split(Dataset(X, y))` with
            other data as for `fit`; of a list of ragged sequences `Dataset(X, y, length=len(X))`.
        verbose: 1 prints a line an epoch.
        **skorch_options: Any other argument of `skorch.NeuralNetClassifier`: `callbacks`, `device`, `warm_start`,
            `optimizer__…`, `module__…`, …; skorch checks their names in `fit`. A `criterion`, a class of losses of
            logits and class numbers with a value per element, or one such loss, and its options, `criterion__weight`,
            `criterion__label_smoothing`, …, are those of the chunk losses and of the validation loss. Probabilities are
            the softmax of the outputs, whatever the criterion, unless `predict_nonlinearity` says otherwise.

    Attributes:
        classes_: The labels, (C,), sorted. For callbacks they are 0 … C − 1, as in skorch's data sets.
        method_: The `fptt.Method`, with counters and regularizer.
        mean_, deviation_: Of each input, (D,).

    Examples:
        >>> import numpy as np
        >>> from fptt.integrations.sklearn import FPTTClassifier
        >>> X = np.random.default_rng(0).normal(size=(60, 12))
        >>> y = np.where(X.sum(1) > 0, "up", "down")
        >>> net = FPTTClassifier(hidden_size=8, lr=0.02, random_state=0).fit(X, y)
        >>> net.predict(X).shape, net.score(X, y) > 0.8
        ((60,), True)
        >>> ragged, labels = [X[:5], X[5:15]], [y[:5], y[5:15]]  # two sequences of 5 and 10 steps, with D = 12
        >>> [len(own) for own in FPTTClassifier(per_step=True, max_epochs=1).fit(ragged, labels).predict(ragged)]
        [5, 10]
    """

    criterion_class = nn.CrossEntropyLoss
    target_padding = -1

    def __init__(
        self,
        *,
        method: Literal["fptt", "tbptt", "bptt"] = "fptt",
        num_chunks: int | None = None,
        alpha: float = 0.1,
        beta: float = 0.5,
        form: Literal["paper", "released"] = "paper",
        coupling: Literal["coupled", "decoupled"] = "decoupled",
        mu: float = 1.0,
        previous_gradient: Literal["dual", "recomputed"] = "dual",
        num_duals: int = 1,
        engine: Literal["eager", "compiled"] = "eager",
        max_norm: float | None = 1.0,
        divergence: Literal["uniform", "running"] | None = "uniform",
        cell: CellName | Callable[..., nn.Module] = "lstm",
        hidden_size: int = 64,
        per_step: bool = False,
        standardize: bool = True,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        lr: float = 2e-3,
        max_epochs: int = 20,
        batch_size: int = 32,
        random_state: int | np.random.RandomState | None = None,
        train_split: Any = None,
        verbose: int = 0,
        **skorch_options: Any,
    ) -> None:
        self.divergence = divergence
        skorch_options.update(method=method, num_chunks=num_chunks, engine=engine, max_norm=max_norm)
        skorch_options.update(alpha=alpha, beta=beta, form=form, coupling=coupling, mu=mu)
        skorch_options.update(previous_gradient=previous_gradient, num_duals=num_duals)
        skorch_options.update(cell=cell, hidden_size=hidden_size, optimizer=optimizer, lr=lr)
        skorch_options.update(per_step=per_step, standardize=standardize)
        skorch_options.update(max_epochs=max_epochs, batch_size=batch_size, random_state=random_state)
        super().__init__(train_split=train_split, verbose=verbose, **skorch_options)

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels, (C,)."""
        # Skorch's scoring callbacks compare predictions with their data set, which holds class numbers.
        return np.arange(len(self.labels_)) if self.is_training_ else self.labels_

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return the most probable label of each sequence, (N,), for X as in fit, any T.

        With `per_step` that of each step: (N, T), or a list of (T_i,) of a list.
        """
        probabilities = self.predict_proba(X)
        if isinstance(probabilities, list):
            return [self.classes_[own.argmax(-1)] for own in probabilities]
        return self.classes_[probabilities.argmax(-1)]

    def _get_predict_nonlinearity(self) -> Callable[[Tensor], Tensor]:
        given = super()._get_predict_nonlinearity()
        # skorch infers it from nn.CrossEntropyLoss alone, while any criterion here is one of logits
        return partial(torch.softmax, dim=-1) if self.predict_nonlinearity == "auto" else given

    def _score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        return float(accuracy_score(targets, predictions))

    def _check_criterion(self) -> None:
        if isinstance(self.criterion_, nn.NLLLoss) or is_without_labels(self.criterion_):
            raise ValueError(
                "criterion must be a loss of logits and class numbers, as nn.CrossEntropyLoss, got "
                f"{type(self.criterion_).__name__}."
            )

    def _chunk_loss(self) -> fptt.ChunkLoss:
        if self.per_step:
            return fptt.SequenceLoss(self.criterion_)
        prior = fptt.RunningPrior(self.output_size_) if self.divergence == "running" else self.divergence
        return fptt.TerminalLoss(self.criterion_, prior)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "divergence": self.divergence}

    def _check_targets(self, y: Any) -> NDArray[Any]:
        try:
            labels = column_or_1d(y, warn=True)
        except ValueError as error:
            if self.per_step:
                raise
            raise ValueError(f"{error} One for every step needs per_step=True.") from error
        check_classification_targets(labels)
        return labels

    def _learn_targets(self, targets: NDArray[Any], classes: ArrayLike | None) -> int:
        known = self.classes if classes is None else classes
        self.labels_ = np.unique(targets if known is None else column_or_1d(known))
        if len(self.labels_) < 2:
            raise ValueError(f"y must have labels of at least 2 classes, got one class, {self.labels_.tolist()}.")
        return len(self.labels_)

    def _numbers_of(self, targets: NDArray[Any]) -> NDArray[Any]:
        numbers = {label: number for number, label in enumerate(self.labels_.tolist())}
        unknown = [label for label in np.unique(targets).tolist() if label not in numbers]
        if unknown:
            raise ValueError(f"y must have labels of {list(numbers)}, got {unknown}: give all classes at the start.")
        return np.array([numbers[label] for label in targets.tolist()])

    def _to_targets(self, numbers: Any) -> Tensor:
        return torch.as_tensor(numbers, device=self.device).clamp(min=0)


class FPTTRegressor(SequenceNet, NeuralNetRegressor):
    """Predict numbers from sequences with an LSTM, GRU or RNN trained by FPTT, TBPTT or BPTT.

    A `skorch.NeuralNetRegressor`; the chunk losses are (k + 1)/K of the squared error, or of another `criterion` that
    is a loss of numbers, as `nn.L1Loss`, or `nn.HuberLoss` with `criterion__delta`. Put it into
    `sklearn.compose.TransformedTargetRegressor` if the numbers are far from 0 or of another scale than 1.

    The arguments are those of `FPTTClassifier` without `divergence`.

    Examples:
        >>> import numpy as np
        >>> from fptt.integrations.sklearn import FPTTRegressor
        >>> X = np.random.default_rng(0).normal(size=(60, 12))
        >>> net = FPTTRegressor(num_chunks=3, hidden_size=8, lr=0.02, max_epochs=30, random_state=0)
        >>> net.fit(X, X.mean(1)).score(X, X.mean(1)) > 0.8
        True
    """

    target_padding = math.nan

    def _check_criterion(self) -> None:
        # of BCEWithLogitsLoss skorch makes probabilities of two classes
        if ignored_index(self.criterion_) is not None or isinstance(self.criterion_, nn.BCEWithLogitsLoss):
            raise ValueError(
                f"criterion must be a loss of numbers, as nn.MSELoss, got {type(self.criterion_).__name__}."
            )

    def _chunk_loss(self) -> fptt.ChunkLoss:
        return (fptt.SequenceLoss if self.per_step else fptt.TerminalLoss)(self.criterion_)

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return the numbers, (N,) or (N, M) as in fit, for X as in fit, any T.

        With `per_step` those of each step: (N, T) or (N, T, M), or a list of (T_i,) or (T_i, M) of a list.
        """
        numbers = self.predict_proba(X)
        if self.target_dim_ > 1:
            return numbers
        return [own[..., 0] for own in numbers] if isinstance(numbers, list) else numbers[..., 0]

    def _score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        return float(r2_score(targets, predictions))

    def _check_targets(self, y: Any) -> NDArray[Any]:
        targets = check_array(y, dtype=FLOATS, ensure_2d=False, input_name="y")
        if targets.ndim not in (1, 2):
            raise ValueError(f"y must have shape (N,) or (N, M), got {targets.shape}.")
        return np.require(targets, requirements="W")

    def _learn_targets(self, targets: NDArray[Any], classes: ArrayLike | None) -> int:
        if classes is not None:
            raise ValueError("classes belong to the classifier, the regressor has none.")
        self.target_dim_ = targets.ndim
        return 1 if targets.ndim == 1 else targets.shape[1]

    def _numbers_of(self, targets: NDArray[Any]) -> NDArray[Any]:
        numbers = targets.reshape(len(targets), -1)
        if numbers.shape[1] != self.output_size_:
            raise ValueError(f"y must have M = {self.output_size_} numbers, as in fit, got {numbers.shape[1]}.")
        return numbers

    def _to_targets(self, numbers: Any) -> Tensor:
        return torch.as_tensor(numbers).nan_to_num().to(self._dtype()).to(self.device)
