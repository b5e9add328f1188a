"""Errors and results at the door: what a model and a batch must be."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt

METHODS = [fptt.BPTT, fptt.TBPTT, fptt.FPTT]
every_method = pytest.mark.parametrize("kind", METHODS)


def build(kind: Any, model: nn.Module, **options: Any) -> fptt.Method:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return kind(model, optimizer, fptt.SequenceLoss(functional.mse_loss), **(options or {"num_chunks": 2}))


@every_method
@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (fptt.nn.Recurrent(nn.LSTM(3, 2, bidirectional=True)), "LSTM 'rnn'"),
        (nn.GRU(3, 2, bidirectional=True), "GRU 'itself'"),
    ],
)
def test_bidirectional_layers_are_refused(kind: Any, model: nn.Module, layer: str) -> None:
    with pytest.raises(ValueError, match=f"must read forward in time, got the bidirectional {layer}"):
        build(kind, model)


class Tagger(nn.Module):
    """A model of one's own, which says nothing about its layout."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"layer": layer, "attention": nn.MultiheadAttention(4, 1, batch_first=True)})
        self.readout = nn.Linear(4, 4)

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs, state = self.body["layer"](inputs, state)
        return self.readout(outputs), state


@every_method
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, fptt.nn.LSTM])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_of_another_layout_inside_a_model_is_named(kind: Any, make: Any, batch_first: bool) -> None:
    options = {"batch_first": batch_first} | ({} if kind is fptt.BPTT else {"num_chunks": 2})
    layout = "(T, B, …)" if batch_first else "(B, T, …)"
    message = (
        f"batch_first is {batch_first}, but {not batch_first} in {make.__name__} 'body.layer' of the model, which "
        f"would take time for the batch: give batch_first={not batch_first} if inputs and outputs of the model are "
        f"{layout}, or set self.batch_first = {batch_first} in a model that transposes."
    )
    model = Tagger(make(3, 4, batch_first=not batch_first))
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        build(kind, model, **options)
    assert [own.filename for own in caught] == [__file__]
    # warnings are errors here: none where the layouts agree, or where the model itself says that it transposes
    build(kind, Tagger(make(3, 4, batch_first=batch_first)), **options)
    model.batch_first = batch_first  # pyright: ignore[reportArgumentType]
    build(kind, model, **options)


def test_the_gradient_check_names_the_layer_where_it_is_called() -> None:
    model = Tagger(nn.GRU(3, 4, batch_first=True))
    with pytest.warns(UserWarning, match="batch_first is False, but True in GRU 'body.layer'") as caught:
        fptt.check_gradient(
            model, torch.randn(4, 2, 3), torch.randn(4, 2, 4), fptt.SequenceLoss(functional.mse_loss), num_chunks=1
        )
    assert [own.filename for own in caught] == [__file__]


class Stateless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs)


@every_method
def test_a_model_that_takes_no_state_is_named(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be called as model\(inputs, state\).*too many positional"):
        build(kind, Stateless())


@every_method
def test_frozen_models_are_named(kind: Any) -> None:
    with pytest.raises(ValueError, match="model must have a trainable parameter in the optimizer"):
        build(kind, nn.GRU(3, 4).requires_grad_(False))


@every_method
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_named(kind: Any, off: Any) -> None:
    method = build(kind, nn.GRU(3, 4))
    with pytest.raises(RuntimeError, match=r"training needs gradients: leave torch.no_grad\(\)"), off():
        method.train_batch(torch.randn(6, 2, 3), torch.randn(6, 2, 4))


@every_method
def test_nan_in_padding_is_told_as_such(kind: Any) -> None:
    inputs = torch.randn(6, 2, 3)
    inputs[4:, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="in chunk 1 of batch 0, in the padding, where mask is False"):
        build(kind, nn.GRU(3, 4)).train_batch(inputs, torch.randn(6, 2, 4), mask=fptt.length_mask([6, 4], 6))


def test_a_result_is_one_short_line() -> None:
    method = build(fptt.FPTT, fptt.nn.LSTM(3, 200, 4), chunk_length=1)
    result = method.train_batch(torch.randn(60, 20, 3), torch.randn(60, 20, 4))
    shown = repr(result)
    assert len(shown) < 250
    for piece in (
        f"loss={result.loss.item():.4g}",
        "updates=60",
        "skipped=0",
        "of 60 chunks",
        "shapes (1, 20, 200), (1, 20, 200)",
    ):
        assert re.search(re.escape(piece), shown)
