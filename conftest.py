"""The names that docstring examples may use without importing them."""

import pytest
import torch
from torch import nn

import fptt


@pytest.fixture(autouse=True)
def _example_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(torch=torch, nn=nn, fptt=fptt)
    torch.manual_seed(0)
