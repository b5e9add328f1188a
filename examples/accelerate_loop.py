"""FPTT with Hugging Face Accelerate; the gradient is clipped inside the step, after the penalty is added."""

import torch
from accelerate import Accelerator
from digits import accuracy, loaders, make_model, num_epochs
from torch.nn.functional import cross_entropy

import fptt
from fptt.integrations.accelerate import attach_regularizer

K = 4


def train(epochs: int) -> fptt.nn.LSTM:
    """Return a model after so many passes over the training images."""
    accelerator = Accelerator(cpu=True)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loaders()[0])
    attach_regularizer(accelerator, optimizer, max_norm=1.0)  # save_state() and load_state() include it
    for _ in range(epochs):
        for inputs, labels in batches:
            state = None
            for k, (chunk,) in enumerate(fptt.split_sequence(inputs, num_chunks=K, dim=1)):
                output, state = model(chunk, fptt.detach_state(state))
                loss = cross_entropy(output[:, -1], labels, label_smoothing=1 - (k + 1) / K)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()  # accelerator.clip_grad_norm_ before it would clip the loss gradient alone
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    print(f"test accuracy {accuracy(train(num_epochs()), loaders()[1]):.4f}")
