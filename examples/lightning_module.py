"""FPTT in a LightningModule: manual optimization, one update a chunk; the regularizer goes into the checkpoint."""

from typing import Any

import torch
from digits import accuracy, loaders, make_model, num_epochs
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

import fptt

K = 4


class DigitsModule(LightningModule):
    """An LSTM that classifies a digit after reading it pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # one update for each chunk of a batch
        self.model = make_model()
        self.saved: dict[str, Any] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-3)
        self.regularizer = fptt.DynamicRegularizer(self.model.parameters()).attach(optimizer, max_norm=1.0)
        if self.saved:  # here, where the weights are on their device
            self.regularizer.load_state_dict(self.saved)
        return optimizer

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["regularizer"] = self.regularizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["regularizer"]


def train(epochs: int) -> fptt.nn.LSTM:
    """Return a model after so many passes over the training images."""
    module = DigitsModule()
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    Trainer(accelerator="cpu", max_epochs=epochs, enable_checkpointing=False, **quiet).fit(module, loaders()[0])
    return module.model


if __name__ == "__main__":
    print(f"test accuracy {accuracy(train(num_epochs()), loaders()[1]):.4f}")
