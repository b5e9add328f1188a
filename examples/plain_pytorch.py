"""FPTT in a plain training loop: the regularizer is attached to the optimizer, and the sequences are cut."""

import torch
from digits import accuracy, loaders, make_model, num_epochs
from torch.nn.functional import cross_entropy

import fptt

K = 4


def train(epochs: int) -> fptt.nn.LSTM:
    """Return a model after so many passes over the training images."""
    model = make_model()
    batches, _ = loaders()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    fptt.DynamicRegularizer(model.parameters()).attach(optimizer, max_norm=1.0)
    for _ in range(epochs):
        for inputs, labels in batches:
            state = None
            for k, (chunk,) in enumerate(fptt.split_sequence(inputs, num_chunks=K, dim=1)):
                output, state = model(chunk, fptt.detach_state(state))
                # at the end of chunk k the label weighs (k + 1)/K, the uniform distribution the rest
                loss = cross_entropy(output[:, -1], labels, label_smoothing=1 - (k + 1) / K)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model


if __name__ == "__main__":
    print(f"test accuracy {accuracy(train(num_epochs()), loaders()[1]):.4f}")
