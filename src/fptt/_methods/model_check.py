"""Check of a model before it is trained, or its gradient is looked at, in chunks."""

import inspect
import warnings
from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer

from fptt._checks import check_type
from fptt._losses.chunk_loss import ChunkLoss
from fptt._sequence import check_layout, check_reads_forward


def check_model(
    model: nn.Module, loss: ChunkLoss, optimizer: Optimizer | None, *, batch_first: bool, stacklevel: int
) -> None:
    """Raise an error if a model cannot be trained in chunks, or the optimizer, if there is one, does not train it.

    It warns of a layer inside whose layout is not that of the data: a model may transpose, but rarely does.

    Args:
        model: The model.
        loss: The loss of each chunk.
        optimizer: The optimizer; None where a gradient is only looked at.
        batch_first: The layout of the data.
        stacklevel: Of the warning, whose line is that of the user's call.

    Raises:
        TypeError: If an argument is of another type, or the model is not called with a state.
        ValueError: If it reads backward in time, its layout is not that of the data, or no parameter of it is trained.
    """
    if not isinstance(loss, ChunkLoss):
        raise TypeError(
            f"loss must be a TerminalLoss or a SequenceLoss, got a {type(loss).__name__}: "
            "wrap it to say whether the targets belong to the sequence or to its steps."
        )
    check_type("model", model, nn.Module, "a torch.nn.Module")
    if optimizer is not None:
        check_type("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
    _check_takes_state(model)
    check_reads_forward(model)
    check_layout(model, batch_first=batch_first)
    others = ", ".join(_layers_of_other_layout(model, "", batch_first))
    if others:
        warnings.warn(
            f"batch_first is {batch_first}, but {not batch_first} in {others} of the model, which would take time for "
            f"the batch: give batch_first={not batch_first} if inputs and outputs of the model are "
            f"{'(T, B, …)' if batch_first else '(B, T, …)'}, or set self.batch_first = {batch_first} in a model that "
            "transposes.",
            stacklevel=stacklevel,
        )
    if optimizer is None:
        return
    held = {param for group in optimizer.param_groups for param in group["params"]}
    own = held.intersection(model.parameters())
    if not own:
        raise ValueError("optimizer must hold parameters of the model, got none of them.")
    if not any(param.requires_grad for param in own):
        raise ValueError("model must have a trainable parameter in the optimizer, got frozen ones alone.")


def _layers_of_other_layout(module: nn.Module, name: str, batch_first: bool) -> Iterator[str]:
    """Yield the outermost layers that say that their layout is another one than that of the data."""
    if isinstance(module, nn.MultiheadAttention | nn.Transformer):  # over whatever the model lets it attend to
        return
    own = getattr(module, "batch_first", None)
    if own is None:
        for key, child in module.named_children():
            yield from _layers_of_other_layout(child, f"{name}.{key}".removeprefix("."), batch_first)
    elif own != batch_first:  # what it has inside is its own business
        yield f"{type(module).__name__} {name!r}"


def _check_takes_state(model: nn.Module) -> None:
    try:
        inspect.signature(model.forward).bind(None, None)
    except TypeError as error:
        raise TypeError(
            "model must be called as model(inputs, state) and return (outputs, state), but its forward does not take "
            f"these two arguments ({error}): fptt.nn.Recurrent and fptt.nn.Unroll wrap layers and cells."
        ) from error
    except ValueError:
        return  # a built-in without a signature
