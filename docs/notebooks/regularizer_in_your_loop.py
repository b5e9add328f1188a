# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The regularizer in your loop
#
# A loop that trains in chunks (TBPTT) becomes FPTT by two lines: the regularizer lives in hooks of the optimizer, and
# every `optimizer.step()` is then an FPTT step. Nothing else changes: not the model, not the scheduler, not the loss.

# %%
import io

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import fptt

images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = (images / 16).float()[..., None]  # (N, 64, 1): a pixel a step
training, test = torch.arange(1400), torch.arange(1400, len(images))

# %% [markdown]
# ## Your loop
#
# It cuts a batch into K = 4 chunks. The state goes on from chunk to chunk, detached; a label for the whole sequence
# is asked for at the end of every chunk, early ones mildly, by label smoothing.

# %%
K, EPOCHS = 4, 4


class Reader(torch.nn.Module):
    """A model that any project may have: a layer of torch and a read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(1, 48, batch_first=True)
        self.readout = torch.nn.Linear(48, 10)
        weights = dict(self.lstm.named_parameters())
        torch.nn.init.uniform_(weights["weight_ih_l0"], -1, 1)  # a single input channel
        torch.nn.init.ones_(weights["bias_ih_l0"][48:96])  # begin by remembering

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None):
        hidden, state = self.lstm(x, state)
        return self.readout(hidden[:, -1]), state


def train(alpha: float | None) -> tuple[Reader, torch.optim.Optimizer, fptt.DynamicRegularizer | None]:
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    regularizer = None
    if alpha is not None:  # the two lines
        regularizer = fptt.DynamicRegularizer(model.parameters(), alpha=alpha)
        regularizer.attach(optimizer, max_norm=1.0)  # max_norm clips inside the step
    for _ in range(EPOCHS):
        for batch in training[torch.randperm(len(training))].split(32):
            state = None
            for k, (x,) in enumerate(fptt.split_sequence(images[batch], num_chunks=K, dim=1)):
                output, state = model(x, fptt.detach_state(state))
                loss = cross_entropy(output, labels[batch], label_smoothing=1 - (k + 1) / K)
                optimizer.zero_grad()
                loss.backward()
                if regularizer is None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        scheduler.step()
    return model, optimizer, regularizer


@torch.no_grad()
def accuracy(model: Reader) -> float:
    return (model(images[test])[0].argmax(-1) == labels[test]).float().mean().item()


plain, _, _ = train(alpha=None)
model, optimizer, regularizer = train(alpha=0.1)
print(f"TBPTT {accuracy(plain):.3f}, FPTT {accuracy(model):.3f}")

# %% [markdown]
# Same loop, same seed, four epochs: a difference here is one seed's. `fptt compare` and several seeds decide.
#
# ## The averages
#
# `averaged()` puts W̄ into the model for the length of a block; W always comes back, also after an error.

# %%
before = model.readout.weight.detach().clone()
assert regularizer is not None
with regularizer.averaged():
    print(f"with the averages {accuracy(model):.3f}")
assert torch.equal(model.readout.weight, before)

# %% [markdown]
# ## Checkpoints
#
# Averages and duals are state of the training, as the moments of Adam are: save them beside the optimizer, or a
# resumed run begins without them.

# %%
file = io.BytesIO()  # or a path
parts = {"model": model, "optimizer": optimizer, "regularizer": regularizer}
torch.save({name: part.state_dict() for name, part in parts.items()}, file)
file.seek(0)
for name, saved in torch.load(file, weights_only=True).items():
    parts[name].load_state_dict(saved)

# %% [markdown]
# ## Off again
#
# After `detach()` the optimizer is what it was. `fptt.FPTT`, `TBPTT` and `BPTT` do all of the loop above, with masks,
# ragged lengths, clipping and counters.

# %%
regularizer.detach()

# %% [markdown]
# The same in Fabric, Lightning, Accelerate, scikit-learn and River, and what to mind about clipping and scalers:
# [existing training loops](../other-loops.md).
