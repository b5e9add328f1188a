"""Any torch loss as a function that returns one value per element, so that masks and weights can be applied."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LossFunction = Callable[[Tensor, Tensor], Tensor]

OF_CLASSES = frozenset({functional.cross_entropy, functional.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss})
"""Losses of torch of labels; each is 0 and has gradient 0 where the label is its `ignore_index`."""

OF_NUMBERS = frozenset(
    {
        *(functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss),
        *(functional.poisson_nll_loss, functional.gaussian_nll_loss),
        *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.GaussianNLLLoss),
    }
)
"""Losses of torch of numbers: those of a regression."""

OF_SEVERAL_CLASSES = frozenset(
    {
        *(functional.binary_cross_entropy, functional.binary_cross_entropy_with_logits, functional.soft_margin_loss),
        *(functional.multilabel_soft_margin_loss, functional.multilabel_margin_loss, functional.hinge_embedding_loss),
        *(nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss),
        *(nn.MultiLabelSoftMarginLoss, nn.MultiLabelMarginLoss, nn.HingeEmbeddingLoss),
    }
)
"""Losses of torch of classes that do not exclude each other, or of a single one."""

WITHOUT_LABELS = OF_NUMBERS | OF_SEVERAL_CLASSES | {functional.kl_div, nn.KLDivLoss}
"""Losses of torch whose targets have the shape of the outputs, and are no labels."""

WITHOUT_SOFTMAX = OF_NUMBERS | OF_SEVERAL_CLASSES | {functional.multi_margin_loss, nn.MultiMarginLoss}
"""Losses of torch whose outputs are no logits of classes under a softmax."""


class Elementwise(nn.Module):
    """A loss of (output (N, …), target (N, …)) with a value per element, (N,): a mean over other dims.

    A torch module is copied with reduction="none"; a function that has the argument gets it. Anything else must return
    one value per element by itself. Floating targets must have the shape of the outputs, whatever the function.

    Attributes:
        ignore_index: The target that it ignores, as cross_entropy and nll_loss do; None if it has no such argument.
        is_of_classes: Whether it is one of `OF_CLASSES`.
        is_of_numbers: Whether it is one of `OF_NUMBERS`.
        is_without_labels: Whether it is one of `WITHOUT_LABELS`.

    Raises:
        ValueError: If the loss asks for another reduction than "mean" or "none".
        TypeError: If it cannot be called, is a class, or returns no tensor.
    """

    def __init__(self, function: LossFunction) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function must be a loss that can be called with (output, target), got {function!r}.")
        if isinstance(_innermost(function), type):
            raise TypeError(f"function must be a loss, got the class {name_of(function)}: give {name_of(function)}().")
        reduction = _argument(function, "reduction")
        if reduction not in (None, "mean", "none"):
            raise ValueError(
                f"function must have reduction 'mean' or 'none', got {reduction!r}: real steps are averaged."
            )
        self.ignore_index = ignored_index(function)
        self.is_of_classes, self.is_of_numbers = _kind(function) in OF_CLASSES, _kind(function) in OF_NUMBERS
        self.is_without_labels = is_without_labels(function)
        self._is_huber = _kind(function) in {functional.huber_loss, nn.HuberLoss}
        self.function = _without_reduction(function)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one value per element, (N,)."""
        self._check_targets(output, target)
        if self._is_huber and output.dtype != target.dtype:  # torch promotes them too, but fails in its backward pass
            wide = torch.promote_types(output.dtype, target.dtype)
            output, target = output.to(wide), target.to(wide)
        try:
            values = self.function(output, target)
        except (IndexError, RuntimeError, ValueError) as error:  # not looked for beforehand: that would take time
            if self.is_of_classes:
                _check_labels(output, target, self.ignore_index, error)
            elif self._takes_the_dtype_of(output, target):
                raise ValueError(
                    f"targets must have the dtype of the outputs, {output.dtype}, for {name_of(self.function)}, got "
                    f"{target.dtype}."
                ) from error
            self._check_weight(output, error)
            raise
        if not isinstance(values, Tensor):
            raise TypeError(
                "function must return a tensor with one value per element, and nothing else, got a "
                f"{type(values).__name__}."
            )
        if values.shape not in ((len(output),), target.shape, output.shape):
            raise ValueError(
                f"function must return one value per element for outputs {tuple(output.shape)} and targets "
                f"{tuple(target.shape)}, got {tuple(values.shape)}; targets of a regression have the outputs' shape."
            )
        return values.flatten(1).mean(1) if values.dim() > 1 else values

    @torch.no_grad()
    def _takes_the_dtype_of(self, output: Tensor, target: Tensor) -> bool:
        """Return whether the function, which has failed, takes targets of the outputs' dtype, which these have not."""
        if target.shape != output.shape or target.dtype == output.dtype:
            return False
        try:
            self.function(output, target.to(output.dtype))
        except Exception:  # something else is wrong
            return False
        return True

    def _check_weight(self, output: Tensor, error: Exception) -> None:
        """Raise ValueError from an error of torch's, if it is about the dtype of the weights of classes."""
        weight = _argument(self.function, "weight")
        if isinstance(weight, Tensor) and weight.dtype != output.dtype and "scalar type" in str(error):
            raise ValueError(
                f"weight of {name_of(self.function)} must have the dtype of the outputs, {output.dtype}, got "
                f"{weight.dtype}."
            ) from error

    def _check_targets(self, output: Tensor, target: Tensor) -> None:
        if target.shape == output.shape:
            return
        if self.ignore_index is not None and target.dtype not in (torch.int64, torch.uint8):
            raise ValueError(
                f"targets must be whole labels, torch.int64, for {name_of(self.function)}, got {target.dtype}."
            )
        # a target of another shape would be broadcast by torch to a wrong loss without an error
        if self.is_without_labels or target.is_floating_point():
            raise ValueError(
                f"targets of a regression must have the shape of the outputs, got {tuple(target.shape[1:])} for "
                f"{tuple(output.shape[1:])} per element."
            )


def _check_labels(output: Tensor, target: Tensor, ignore_index: int | None, error: Exception) -> None:
    """Raise ValueError from an error of torch's, if labels are what is wrong: of another shape, or no classes."""
    labels = (len(output), *output.shape[2:])
    if target.shape not in (labels, output.shape) or (target.shape != labels and not target.is_floating_point()):
        raise ValueError(
            "targets must be a label for each output, of shape (B, …) of a TerminalLoss, (T, B, …) of a SequenceLoss: "
            f"got {tuple(target.shape[1:])} for {tuple(output.shape[1:])} per element, which needs {labels[1:]}."
        ) from error
    if target.is_floating_point() or output.dim() < 2:
        return
    found = target if ignore_index is None else target[target != ignore_index]
    if found.numel() and not 0 <= found.min() <= found.max() < output.shape[1]:
        raise ValueError(
            f"targets must be labels in 0 … C − 1 = {output.shape[1] - 1}, with C outputs of the model, "
            f"got labels from {found.min().item()} to {found.max().item()}."
        ) from error


def ignored_index(function: LossFunction) -> int | None:
    """Return the target that a torch loss ignores (`ignore_index`), or None if it has no such argument."""
    value = _argument(function, "ignore_index")
    return value if isinstance(value, int) else None


def where_kept(targets: Tensor, ignore_index: int | None, num_dims: int) -> Tensor | None:
    """Return where targets are not ignored, of the first dims; None where all are kept.

    Args:
        targets: Of `num_dims` dims, or more, of which an element has several targets: one of them is enough.
        ignore_index: The target that a loss ignores, or None.
        num_dims: Of what is returned.
    """
    if ignore_index is None or targets.is_floating_point():
        return None
    # no such label, though torch would compare with the byte to which it casts the number, 156 for -100
    if ignore_index < 0 and not targets.dtype.is_signed:
        return None
    kept = targets != ignore_index
    return kept.flatten(num_dims).any(-1) if kept.dim() > num_dims else kept


def num_kept(targets: Tensor, ignore_index: int | None, counted: Tensor) -> Tensor:
    """Return the number of elements that count, at least a single target.

    An element of several targets counts by the share of them that are not ignored: times its mean over all of them, in
    which an ignored one is 0, that is torch's mean over those that are not.
    """
    kept = where_kept(targets, ignore_index, targets.dim()) if targets.dim() > counted.dim() else None
    if kept is None:
        return counted.sum().clamp(min=1)
    kept = kept.flatten(counted.dim()) & counted.unsqueeze(-1)
    return kept.sum().clamp(min=1) / kept.shape[-1]


def is_without_labels(function: LossFunction) -> bool:
    """Return whether a loss is one of `WITHOUT_LABELS`."""
    return _kind(function) in WITHOUT_LABELS


def is_without_softmax(function: LossFunction) -> bool:
    """Return whether a loss is one of `WITHOUT_SOFTMAX`."""
    return _kind(function) in WITHOUT_SOFTMAX


def name_of(function: LossFunction) -> str:
    """Return the name of a loss, for a message."""
    inner = _innermost(function)
    return getattr(inner, "__name__", type(inner).__name__)


def _kind(function: LossFunction) -> Any:
    """Return the innermost function, or the class of a module."""
    inner = _innermost(function)
    return type(inner) if isinstance(inner, nn.Module) else inner


def _innermost(function: LossFunction) -> LossFunction:
    return _innermost(function.func) if isinstance(function, functools.partial) else function


def _without_reduction(function: LossFunction) -> LossFunction:
    if isinstance(function, nn.Module):
        if not hasattr(function, "reduction"):
            return function
        unreduced = copy.copy(function)
        unreduced.reduction = "none"  # pyright: ignore
        return unreduced
    if not _has_argument(function, "reduction"):
        return function
    return functools.partial(function, reduction="none")  # pyright: ignore[reportCallIssue]


def _has_argument(function: LossFunction, name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # a built-in without a signature
        return False


def _argument(function: LossFunction, name: str) -> Any:
    """Return the value of a module's attribute or of a function's default, or None."""
    if isinstance(function, nn.Module):
        return getattr(function, name, None)
    return inspect.signature(function).parameters[name].default if _has_argument(function, name) else None
