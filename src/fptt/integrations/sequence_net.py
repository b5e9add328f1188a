"""A skorch net that hands its batches to FPTT, TBPTT or BPTT: what classifier and regressor share."""

# pyright: reportIncompatibleMethodOverride=false
# skorch has no types: pyright takes the defaults of its arguments for them

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_consistent_length, check_random_state
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.utils import is_dataset
from torch import Tensor, nn

import fptt
from fptt._checks import check_choice
from fptt._methods.fptt import OF_FPTT
from fptt.nn.models import CELLS

Cell = Literal["lstm", "gru", "rnn"]
FLOATS: Any = [np.float32, np.float64]
OF_TBPTT = ("num_chunks", "engine", "max_norm")


class SequenceNet(NeuralNet, ABC):
    """What the two estimators share: the batches of a skorch net go to a method of `fptt`."""

    criterion_class: ClassVar[type[nn.Module]] = nn.MSELoss
    cuda_dependent_attributes_: ClassVar[list[str]] = ["method_"]  # pickled with the weights that it refers to
    is_training_ = False

    def __init__(
        self,
        *,
        method: Literal["fptt", "tbptt", "bptt"] = "fptt",
        num_chunks: int = 8,
        alpha: float = 0.1,
        beta: float = 0.5,
        form: Literal["paper", "released"] = "paper",
        coupling: Literal["coupled", "decoupled"] = "decoupled",
        mu: float = 1.0,
        previous_gradient: Literal["dual", "recomputed"] = "dual",
        num_duals: int = 1,
        engine: Literal["eager", "compiled"] = "eager",
        max_norm: float | None = 1.0,
        cell: Cell | Callable[..., nn.Module] = "lstm",
        hidden_size: int = 64,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        lr: float = 2e-3,
        max_epochs: int = 20,
        batch_size: int = 32,
        random_state: int | np.random.RandomState | None = None,
        train_split: Any = None,
        verbose: int = 0,
        **options: Any,
    ) -> None:
        self.method, self.num_chunks, self.engine, self.max_norm = method, num_chunks, engine, max_norm
        self.alpha, self.beta, self.form, self.coupling, self.mu = alpha, beta, form, coupling, mu
        self.previous_gradient, self.num_duals = previous_gradient, num_duals
        self.cell, self.hidden_size, self.random_state = cell, hidden_size, random_state
        options.update(optimizer=optimizer, lr=lr, max_epochs=max_epochs, batch_size=batch_size)
        options.update(criterion=self.criterion_class, train_split=train_split, verbose=verbose)
        super().__init__(nn.Module, **options)  # initialize_module makes the model

    # -- what a net is made of ---------------------------------------------------------------------------------------

    def _get_param_names(self) -> list[str]:
        return [name for name in super()._get_param_names() if name not in ("module", "criterion")]

    def initialize_module(self) -> Self:
        """Make the model."""
        if not hasattr(self, "input_size_"):
            raise ValueError(f"{type(self).__name__} learns its sizes from the data: call fit or partial_fit.")
        cells: dict[Any, Callable[..., nn.Module]] = {**CELLS}
        make = cells.get(self.cell, self.cell)
        if not callable(make):
            raise ValueError(f"cell must be one of {', '.join(map(repr, CELLS))} or a callable, got {self.cell!r}.")
        options = ({"last_only": True} if self.cell in CELLS else {}) | self.get_params_for("module")
        self.module_ = make(self.input_size_, self.hidden_size, self.output_size_, **options)
        return self

    def initialize_optimizer(self, *_: Any) -> Self:
        """Make the optimizer, and the method around it."""
        super().initialize_optimizer()
        self.method_ = self._make_method()
        self.settings_ = self._settings()
        return self

    def _make_method(self) -> fptt.Method:
        check_choice("method", self.method, ("fptt", "tbptt", "bptt"))
        self._check_callbacks()
        loss = self._chunk_loss().to(self.device)
        if self.method == "bptt":
            return fptt.BPTT(self.module_, self.optimizer_, loss, max_norm=self.max_norm)
        names = OF_TBPTT + (OF_FPTT if self.method == "fptt" else ())
        kind = fptt.FPTT if self.method == "fptt" else fptt.TBPTT
        return kind(self.module_, self.optimizer_, loss, **{name: getattr(self, name) for name in names})

    def _check_callbacks(self) -> None:
        """The gradient lives inside the method's updates: a callback that changes it would not be called."""
        for name, callback in self.callbacks_:
            if getattr(type(callback), "on_grad_computed", None) is not Callback.on_grad_computed:
                raise ValueError(f"callbacks must not need the gradient, got {name}: clip with max_norm instead.")

    def _settings(self) -> dict[str, Any]:
        names = ("method", *OF_TBPTT, *OF_FPTT, "cell", "hidden_size", "optimizer")
        return {name: getattr(self, name) for name in names}

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Return the parameters `prefix__…`; the batches of training are shuffled."""
        shuffled = {"shuffle": True} if prefix == "iterator_train" else {}
        return shuffled | super().get_params_for(prefix)

    # -- what classifier and regressor differ in ---------------------------------------------------------------------

    @abstractmethod
    def _chunk_loss(self) -> fptt.ChunkLoss: ...

    @abstractmethod
    def _check_targets(self, y: ArrayLike) -> NDArray[Any]:
        """Return y as an array of a shape that will do."""

    @abstractmethod
    def _learn_targets(self, targets: NDArray[Any], classes: ArrayLike | None) -> int:
        """Remember what is needed of the first y; return the number of outputs."""

    @abstractmethod
    def _numbers_of(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Return what skorch's data set holds: numbers of classes, (N,), or (N, M)."""

    @abstractmethod
    def _to_targets(self, numbers: Any) -> Tensor:
        """Return the targets of a batch as the loss takes them."""

    # -- training ----------------------------------------------------------------------------------------------------

    def fit(self, X: ArrayLike, y: ArrayLike, **fit_params: Any) -> Self:  # noqa: N803
        """Begin again and train for `max_epochs`; with `warm_start` go on as `partial_fit` does.

        Args:
            X: (N, T), or (N, T, D).
            y: (N,), or (N, M) for the regressor.
            **fit_params: None; there is no `sample_weight`.

        Raises:
            ValueError: If X or y has NaN, Inf, a wrong shape or too few steps, or a setting is out of range.
        """
        if not self.warm_start:
            self.initialized_ = False
        return self.partial_fit(X, y, **fit_params)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None, **fit_params: Any) -> Self:  # noqa: N803
        """Train on for `max_epochs`, with the optimizer's moments, averages and duals as they are.

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
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        sequences, targets = self._check_sequences(X), self._check_targets(y)
        check_consistent_length(sequences, targets)
        if self.initialized_:
            self._check_unchanged()
        else:
            self.input_size_ = sequences.shape[2] if sequences.ndim == 3 else 1
            self.output_size_ = self._learn_targets(targets, classes)
            self.rng_state_ = torch.Generator().manual_seed(self._seed()).get_state()
        self._check_width(sequences)
        self.is_training_ = True
        try:
            with self._own_random_numbers():
                return super().partial_fit(sequences, self._numbers_of(targets))
        finally:
            self.is_training_ = False

    def _seed(self) -> int:
        seed = self.random_state
        return int(seed) if isinstance(seed, Integral) else check_random_state(seed).randint(2**31 - 1)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Draw weights, order and dropout from a stream of the net's own, which goes on from call to call."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.rng_state_)
            try:
                yield
            finally:
                self.rng_state_ = torch.get_rng_state()

    def _check_unchanged(self) -> None:
        for name, value in self._settings().items():
            if value is not self.settings_[name] and value != self.settings_[name]:
                raise ValueError(
                    f"{name} must not change between calls of partial_fit, got {value!r} after "
                    f"{self.settings_[name]!r}: call fit, with warm_start=False, to begin again."
                )

    def check_data(self, X: Any, y: Any) -> None:  # noqa: N803
        """Do nothing: `partial_fit` has checked the data."""

    def train_step(self, batch: Any, **_: Any) -> dict[str, Any]:
        """Let the method make its updates on one batch; return the mean of the chunk losses."""
        inputs, targets = batch
        self._set_training(True)
        loss = self.method_.train_batch(self._time_major(inputs), self._to_targets(targets)).loss
        return {"loss": loss, "y_pred": self.evaluation_step(batch) if self._predictions_are_wanted() else None}

    def _predictions_are_wanted(self) -> bool:
        """Whether a callback scores the predictions of training batches; they cost one more forward pass."""
        return any(
            getattr(callback, "on_train", False) and getattr(callback, "use_caching", False)
            for _, callback in self.callbacks_
        )

    # -- inference ---------------------------------------------------------------------------------------------------

    def forward_iter(self, X: Any, training: bool = False, device: str = "cpu") -> Generator[Any, Any, None]:  # noqa: N803
        """Yield the outputs of each batch, (B, C); sequences may be of any length."""
        self.check_is_fitted()
        if not is_dataset(X):  # skorch's own, of checked data
            X = self._check_sequences(X)  # noqa: N806
            self._check_width(X)
        yield from super().forward_iter(X, training, device)

    def infer(self, x: Any, **_: Any) -> Tensor:
        """Return the outputs after the last step, (B, C)."""
        return self.module_(self._time_major(x), None)[0][-1]

    def get_loss(self, y_pred: Tensor, y_true: Any, *_: Any, **__: Any) -> Tensor:
        """Return the plain loss after the last step: what validation is judged by."""
        return self.criterion_(y_pred, self._to_targets(y_true))

    def _time_major(self, inputs: Any) -> Tensor:
        """Return (T, B, D), in the dtype of the weights."""
        inputs = torch.as_tensor(inputs, device=self.device).to(self._dtype())
        return (inputs if inputs.dim() == 3 else inputs.unsqueeze(-1)).transpose(0, 1)

    def _dtype(self) -> torch.dtype:
        return next(self.module_.parameters()).dtype

    def _check_sequences(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        sequences = check_array(X, dtype=FLOATS, allow_nd=True, input_name="X")
        if sequences.ndim > 3:
            raise ValueError(f"X must have shape (N, T) or (N, T, D), got {sequences.shape}.")
        return sequences

    def _check_width(self, sequences: NDArray[Any]) -> None:
        width = sequences.shape[2] if sequences.ndim == 3 else 1
        if width != self.input_size_:
            raise ValueError(f"X must have D = {self.input_size_} numbers a step, as in fit, got {width}.")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "is_training_": False}  # a callback may pickle the net in training
