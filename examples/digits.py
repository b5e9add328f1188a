"""Digits of scikit-learn, read pixel by pixel, and a model of them; shared by the examples."""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import fptt


def pixels() -> list[Any]:
    """Return pixels in [0, 1], (N, 64), of 1,437 training and 360 test images, then the labels of each, (N,)."""
    images, labels = load_digits(return_X_y=True)
    return train_test_split(images / 16, labels, test_size=360, random_state=0, stratify=labels)


def loaders() -> tuple[DataLoader, DataLoader]:
    """Return batches of training, in the same order for everyone, and of test: inputs (B, 64, 1) and labels (B,)."""
    train, test, train_labels, test_labels = (torch.from_numpy(array) for array in pixels())
    dtype = torch.get_default_dtype()
    training = TensorDataset(train.to(dtype)[..., None], train_labels)
    testing = TensorDataset(test.to(dtype)[..., None], test_labels)
    order = SubsetRandomSampler(range(len(training)), generator=torch.Generator().manual_seed(0))
    return DataLoader(training, batch_size=32, sampler=order), DataLoader(testing, batch_size=360)


def make_model() -> fptt.nn.LSTM:
    """Return an LSTM that reads one pixel a step; its forget bias of 1 keeps what it has read at first."""
    torch.manual_seed(0)
    return fptt.nn.LSTM(1, 64, 10, last_only=True, batch_first=True, fan_in_init=True, forget_bias=1.0)


@torch.no_grad()
def accuracy(model: nn.Module, test: DataLoader) -> float:
    """Return the accuracy on the test images."""
    (inputs, labels) = next(iter(test))
    return (model(inputs)[0][:, -1].argmax(-1) == labels).float().mean().item()


def num_epochs() -> int:
    """Return `--epochs` of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training images")
    return parser.parse_args().epochs
