"""Models with tensors that are neither parameters nor buffers, as machine code and in float32."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from tests.engine.compiled.agreement import B, C, D, H, T, assert_equal_memory, make_pair


class PlainTensor(nn.Module):
    """A model with tensors that are neither parameters nor buffers: an attribute, one in a NamedTuple, a closure's."""

    class Settings(NamedTuple):
        scale: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn, self.readout, self.kind = nn.LSTM(D, H), nn.Linear(H, C), kind
        self.scale = torch.tensor([0.5, 2.0])
        self.settings = self.Settings(torch.tensor([0.5, 2.0]))
        hidden = torch.tensor([0.5, 2.0])
        self.of_closure = lambda: hidden

    def factor(self) -> Tensor:
        return {"attribute": self.scale, "tuple": self.settings.scale, "closure": self.of_closure()}[self.kind]

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.rnn(inputs * self.factor(), state)
        return self.readout(outputs), state


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("kind", ["attribute", "tuple", "closure"])
def test_a_plain_tensor_of_the_model_is_an_input_of_its_step(kind: str) -> None:
    """Changed in place, it has its new value in the next batch."""
    train_on_a_plain_tensor(kind)


@pytest.mark.machine_code
def test_machine_code_has_a_plain_tensor_as_an_input() -> None:
    """It used to end the process."""
    train_on_a_plain_tensor("attribute")


def train_on_a_plain_tensor(kind: str) -> None:
    loss = fptt.TerminalLoss(functional.cross_entropy)
    methods = make_pair(PlainTensor(kind), "sgd", loss=loss, num_chunks=6)
    inputs, labels = torch.randn(T, B, D), torch.tensor([3, 0, 2])
    for _ in range(2):
        one, other = (method.train_batch(inputs, labels) for method in methods)
        torch.testing.assert_close(one.chunk_losses, other.chunk_losses)
        for method in methods:
            method.model.factor().mul_(3)  # pyright: ignore[reportCallIssue]
    assert_equal_memory(methods, 1e-5)
