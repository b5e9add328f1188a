"""FPTT with Lightning Fabric, which places model and data, scales gradients and keeps processes in step."""

import torch
from digits import accuracy, loaders, make_model, num_epochs
from lightning.fabric import Fabric
from torch import nn

import fptt


def train(epochs: int) -> nn.Module:
    """Return a model after so many passes over the training images."""
    fabric = Fabric(accelerator="cpu", devices=1)
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), lr=5e-3))
    batches = fabric.setup_dataloaders(loaders()[0])
    loss = fptt.TerminalLoss(nn.functional.cross_entropy, divergence="uniform")
    method = fptt.FPTT(
        model, optimizer, loss, num_chunks=4, max_norm=1.0, batch_first=True, backward=fabric.backward
    )  # saved by fabric.save("checkpoint", {"model": model, "optimizer": optimizer, "method": method})
    for _ in range(epochs):
        for inputs, labels in batches:
            method.train_batch(inputs, labels)
    return model


if __name__ == "__main__":
    print(f"test accuracy {accuracy(train(num_epochs()), loaders()[1]):.4f}")
