"""A recurrent language model with the dropouts of AWD-LSTM (Merity, Keskar & Socher 2018)."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

import fptt
from fptt._checks import check_choice, check_unit_interval
from fptt.nn.models import CELLS, plain_is_wanted

Layer = fptt.nn.LSTM | fptt.nn.GRU
"""One recurrent layer; `fptt.nn.RNN` is a `fptt.nn.GRU` of another cell."""

FUNCTIONS: dict[type[nn.RNNBase], Callable[..., Any]] = {nn.LSTM: torch.lstm, nn.GRU: torch.gru, nn.RNN: torch.rnn_tanh}
"""The fused kernels as functions of their weights."""


class LanguageModel(nn.Module):
    """Embedding, recurrent layers and decoder: scores of the next token after every step.

    Every dropout is off in evaluation. Those of activations are locked: one mask for all steps of a call, that is of a
    chunk, with a number for every sample and unit.

    Args:
        num_tokens: V, tokens of the vocabulary.
        hidden_size: H, width of the recurrent layers.
        embedding_size: E, width of the embedding; H by default.
        num_layers: Recurrent layers.
        cell: `lstm`, `gru` or `rnn`.
        tied: The decoder has the weights of the embedding (Press & Wolf 2017). The last layer is then E wide, as in
            AWD-LSTM; with one layer H has no meaning unless E is left to it.
        dropout: Of the last layer's outputs, in [0, 1).
        input_dropout: Of the embedded tokens, in [0, 1).
        hidden_dropout: Between recurrent layers, in [0, 1).
        weight_dropout: Of the hidden-to-hidden weights (DropConnect), in [0, 1), one mask a call.
        embedding_dropout: Of whole tokens of the embedding, in [0, 1), one mask a call; the decoder keeps them.

    Raises:
        ValueError: If an argument is out of range; on a call, if the state does not fit.

    Examples:
        >>> model = LanguageModel(num_tokens=10, hidden_size=16, num_layers=2, tied=True, embedding_size=8)
        >>> outputs, state = model(torch.randint(10, (7, 4)))
        >>> tuple(outputs.shape), [tuple(layer.h.shape) for layer in state]
        ((7, 4, 10), [(1, 4, 16), (1, 4, 8)])
    """

    decoder_weight: nn.Parameter | None

    def __init__(
        self,
        *,
        num_tokens: int,
        hidden_size: int,
        embedding_size: int | None = None,
        num_layers: int = 1,
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        tied: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("cell", cell, CELLS)
        self.dropout, self.input_dropout, self.hidden_dropout = dropout, input_dropout, hidden_dropout
        self.weight_dropout, self.embedding_dropout = weight_dropout, embedding_dropout
        for name in ("dropout", "input_dropout", "hidden_dropout", "weight_dropout", "embedding_dropout"):
            check_unit_interval(name, getattr(self, name), closed=False)
        sizes = _layer_sizes(hidden_size if embedding_size is None else embedding_size, hidden_size, num_layers, tied)
        self.embedding = nn.Embedding(num_tokens, sizes[0])
        layers = [CELLS[cell](size, next_size) for size, next_size in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        # the tied weight has one name, so that it is saved, averaged and updated once
        decoder_weight = None if tied else nn.Parameter(torch.empty(num_tokens, sizes[-1]).uniform_(-0.1, 0.1))
        self.register_parameter("decoder_weight", decoder_weight)
        self.decoder_bias = nn.Parameter(torch.zeros(num_tokens))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, inputs: Tensor, state: Sequence[Any] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """Return scores of the next token, (T, B, V), and state for tokens (T, B); state None is zeros."""
        states = self.initial_state(inputs) if state is None else state
        if len(states) != len(self.layers):
            raise ValueError(f"state must have an entry for each of the {len(self.layers)} layers, got {len(states)}.")
        hidden = self._locked(self._embedded(inputs), self.input_dropout)
        finals: list[Any] = []
        for layer, own in zip(self._recurrent_layers(), states, strict=True):
            hidden = self._locked(hidden, self.hidden_dropout) if finals else hidden
            hidden, final = self._run_layer(layer, hidden, own)
            finals.append(final)
        weight = self.embedding.weight if self.decoder_weight is None else self.decoder_weight
        return functional.linear(self._locked(hidden, self.dropout), weight, self.decoder_bias), tuple(finals)

    def initial_state(self, inputs: Tensor) -> tuple[Any, ...]:
        """Return the state that None stands for, zeros, one entry a layer, for tokens (T, B)."""
        of_batch = self.embedding.weight.new_zeros(1, inputs.shape[1], 1)
        return tuple(layer.initial_state(of_batch) for layer in self._recurrent_layers())

    def _recurrent_layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _embedded(self, inputs: Tensor) -> Tensor:
        embedded = functional.embedding(inputs, self.embedding.weight)
        if not (self.training and self.embedding_dropout):
            return embedded
        kept = functional.dropout(embedded.new_ones(self.embedding.num_embeddings), self.embedding_dropout)
        return embedded * kept[inputs].unsqueeze(-1)

    def _locked(self, hidden: Tensor, rate: float) -> Tensor:
        if not (self.training and rate):
            return hidden
        return hidden * functional.dropout(hidden.new_ones(hidden.shape[1:]), rate)

    def _run_layer(self, layer: Layer, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        if not (self.training and self.weight_dropout):
            return layer(inputs, state)
        weight = functional.dropout(_tensor(layer.rnn, "weight_hh"), self.weight_dropout)
        if plain_is_wanted():
            return functional_call(layer, {"rnn.weight_hh_l0": weight}, (inputs, state))
        return _run_kernel(layer.rnn, weight, inputs, state)


def _layer_sizes(embedding_size: int, hidden_size: int, num_layers: int, tied: bool) -> list[int]:
    """Return the widths of the embedding and of every layer."""
    for name, value in (("num_layers", num_layers), ("hidden_size", hidden_size), ("embedding_size", embedding_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    last = embedding_size if tied else hidden_size
    return [embedding_size, *[hidden_size] * (num_layers - 1), last]


def _tensor(rnn: nn.RNNBase, name: str) -> Tensor:
    """Return a weight or bias, which is not a parameter where `functional_call` has put another in its place."""
    return getattr(rnn, f"{name}_l0")


def _run_kernel(rnn: nn.RNNBase, weight_hh: Tensor, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Run a layer's fused kernel with another hidden-to-hidden weight.

    By `functional_call` the layer would keep this weight, with the graph behind it, in its own list of weights: it
    could not be copied any more.
    """
    weights = [_tensor(rnn, "weight_ih"), weight_hh, _tensor(rnn, "bias_ih"), _tensor(rnn, "bias_hh")]
    weights = _one_block(weights) if inputs.is_cuda else weights
    is_lstm = isinstance(rnn, nn.LSTM)
    first = tuple(state) if is_lstm else state
    outputs, *final = FUNCTIONS[type(rnn)](inputs, first, weights, True, 1, 0.0, True, False, False)
    return outputs, fptt.nn.LSTMState(*final) if is_lstm else final[0]


def _one_block(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the same weights as parts of one block of memory, which cuDNN wants, or warns on every call."""
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    parts = flat.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
