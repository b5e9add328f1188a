"""FPTT in a LightningModule: manual optimization, one update a chunk; the callback does the rest."""

from typing import Any

import torch
from digits import accuracy, loaders, make_model, num_epochs
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

import fptt
from fptt.integrations.lightning import FPTTCallback

K = 4


class DigitsModule(LightningModule):
    """An LSTM that classifies a digit after reading it pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # one update for each chunk of a batch
        self.model = make_model()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=5e-3)

    def training_step(self, batch: list[Tensor], _: int) -> None:
        optimizer: Any = self.optimizers()
        inputs, labels = batch
        state = None
        for k, (chunk,) in enumerate(fptt.split_sequence(inputs, num_chunks=K, dim=1)):
            output, state = self.model(chunk, fptt.detach_state(state))
            loss = cross_entropy(output[:, -1], labels, label_smoothing=1 - (k + 1) / K)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


def train(epochs: int) -> fptt.nn.LSTM:
    """Return a model after so many passes over the training images."""
    module = DigitsModule()
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False}
    Trainer(max_epochs=epochs, callbacks=[FPTTCallback(max_norm=1.0)], **quiet).fit(module, loaders()[0])
    return module.model


if __name__ == "__main__":
    print(f"test accuracy {accuracy(train(num_epochs()), loaders()[1]):.4f}")
