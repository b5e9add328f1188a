"""FPTT, TBPTT and BPTT with the interface of scikit-learn, on skorch: `pip install 'fptt[skorch]'`."""

# pyright: reportIncompatibleMethodOverride=false
# skorch has no types: pyright takes the defaults of its arguments for them

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt.integrations.sequence_net import FLOATS, SequenceNet


class FPTTClassifier(SequenceNet, NeuralNetClassifier):
    """Name the class of a sequence, with an LSTM, GRU or RNN trained by FPTT, TBPTT or BPTT.

    On `skorch.NeuralNetClassifier`, for pipelines, grid searches and `clone`. Pickled, it keeps moments, averages and
    duals, and goes on with `partial_fit` bit for bit; `save_params(f_params=…, f_optimizer=…, f_method=…)` saves them
    apart. Inside `with net.method_.regularizer.averaged():` it predicts with W̄.

    Args:
        method: `fptt`, `tbptt` or `bptt`; the settings of another are ignored, so that a search may run over it.
        num_chunks: K for FPTT and TBPTT, 1 ≤ K ≤ T. BPTT has one loss, at the end.
        alpha: See `fptt.FPTT`, also for beta, form, coupling, mu, previous_gradient, num_duals; 0 is TBPTT.
        engine: `eager` or `compiled`, see `fptt.TBPTT`; BPTT is always eager.
        max_norm: Clip the norm of the gradient inside each update; None for no clipping.
        divergence: Q of the terminal loss, to which early chunks are held: `uniform`, `running` or None.
        cell: `lstm`, `gru`, `rnn`, with options `module__num_layers`, `module__readout_sizes`, … of `fptt.nn`; or a
            callable `(input_size, hidden_size, output_size, **module__…)` that makes a time-major model.
        hidden_size: Width of the state.
        optimizer: Any optimizer class, with options `optimizer__weight_decay`, ….
        lr: Learning rate.
        max_epochs: Passes over the data in `fit`, and in each `partial_fit`.
        batch_size: Sequences a batch.
        random_state: Seed of weights, order and dropout: an int gives the numbers of a loop after `torch.manual_seed`.
            The generators of torch, and of NumPy if it is not None, are left as they were.
        train_split: None to train on all data; or for callbacks that validate, such as early stopping,
            `skorch.dataset.ValidSplit(0.2, stratified=True)`.
        verbose: 1 prints a line an epoch.
        **options: Of skorch: `callbacks`, `device`, `warm_start`, ….

    Attributes:
        classes_: The labels, (C,), sorted. While callbacks look on they are 0 … C − 1, as in skorch's data sets.
        method_: The `fptt.Method`, with counters and regularizer.

    Examples:
        >>> import numpy as np
        >>> from fptt.integrations.sklearn import FPTTClassifier
        >>> X = np.random.default_rng(0).normal(size=(60, 12))
        >>> y = np.where(X.sum(1) > 0, "up", "down")
        >>> net = FPTTClassifier(num_chunks=4, hidden_size=8, lr=0.02, max_epochs=20, random_state=0).fit(X, y)
        >>> net.predict(X).shape, net.score(X, y) > 0.8
        ((60,), True)
    """

    criterion_class = nn.CrossEntropyLoss

    def __init__(self, *, divergence: Literal["uniform", "running"] | None = "uniform", **options: Any) -> None:
        self.divergence = divergence
        super().__init__(**options)

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels, (C,)."""
        return np.arange(len(self.labels_)) if self.is_training_ else self.labels_

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the most probable label of each sequence, (N,), for X of shape (N, T) or (N, T, D), any T."""
        numbers = self.predict_proba(X).argmax(1)
        return self.classes_[numbers]

    def _chunk_loss(self) -> fptt.ChunkLoss:
        prior = fptt.RunningPrior(self.output_size_) if self.divergence == "running" else self.divergence
        return fptt.TerminalLoss(functional.cross_entropy, prior)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "divergence": self.divergence}

    def _check_targets(self, y: ArrayLike) -> NDArray[Any]:
        labels = column_or_1d(y, warn=True)
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
        return torch.as_tensor(numbers, device=self.device)


class FPTTRegressor(SequenceNet, NeuralNetRegressor):
    """Estimate numbers that belong to a sequence, with an LSTM, GRU or RNN trained by FPTT, TBPTT or BPTT.

    On `skorch.NeuralNetRegressor`; the chunk losses are (k + 1)/K of the squared error. Put it into
    `sklearn.compose.TransformedTargetRegressor` if the numbers are far from 0 or of another scale than 1.

    Args:
        **options: As for `FPTTClassifier`, without `divergence`.

    Examples:
        >>> import numpy as np
        >>> from fptt.integrations.sklearn import FPTTRegressor
        >>> X = np.random.default_rng(0).normal(size=(60, 12))
        >>> net = FPTTRegressor(num_chunks=3, hidden_size=8, lr=0.02, max_epochs=30, random_state=0)
        >>> net.fit(X, X.mean(1)).score(X, X.mean(1)) > 0.8
        True
    """

    def _chunk_loss(self) -> fptt.ChunkLoss:
        return fptt.TerminalLoss(functional.mse_loss)

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the numbers, (N,) or (N, M) as in fit, for X of shape (N, T) or (N, T, D), any T."""
        numbers = self.predict_proba(X)
        return numbers[:, 0] if self.target_dim_ == 1 else numbers

    def _check_targets(self, y: ArrayLike) -> NDArray[Any]:
        targets = check_array(y, dtype=FLOATS, ensure_2d=False, input_name="y")
        if targets.ndim not in (1, 2):
            raise ValueError(f"y must have shape (N,) or (N, M), got {targets.shape}.")
        return targets

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
        return torch.as_tensor(numbers, device=self.device).to(self._dtype())
