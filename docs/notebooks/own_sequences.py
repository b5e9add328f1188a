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
# # Sequences of your own
#
# One label for each sequence, and sequences of different lengths: from NumPy arrays to a trained model and its
# predictions, with each of the three methods. In this notebook the data are made up, so that it needs no download;
# put your own lists of arrays `(T_i, D)` in their place.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import fptt

torch.manual_seed(0)
generator = np.random.default_rng(0)


def walk(kind: int) -> np.ndarray:
    """Return a noisy rhythm of two channels, (T, 2), whose second channel lags behind by the kind's phase."""
    steps = np.arange(generator.integers(60, 121))
    phase = 2 * np.pi * (steps / generator.uniform(11, 15) + generator.uniform())
    signal = np.stack([np.sin(phase), np.sin(phase - np.pi / 3 * kind)], axis=1)
    return (signal + 0.7 * generator.normal(size=signal.shape)).astype(np.float32)


labels = generator.integers(0, 4, size=500)
sequences = [walk(kind) for kind in labels]
print(len(sequences), "sequences of", min(map(len, sequences)), "to", max(map(len, sequences)), "steps")

# %% [markdown]
# ## Padding, and a mask
#
# The library takes batches with time first, `(T, B, D)`, and a mask of the steps that are real. A sequence that has
# ended has no loss and no influence any more.

# %%
lengths = torch.tensor([len(sequence) for sequence in sequences])
inputs = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(sequence) for sequence in sequences])
mask = fptt.length_mask(lengths, len(inputs))
targets = torch.from_numpy(labels)
training, test = torch.arange(350), torch.arange(350, 500)
print(inputs.shape, mask.shape, targets.shape)

# %% [markdown]
# ## Three methods, one loop
#
# Only the line that makes the method differs. `TerminalLoss` asks for the label at the end of every chunk, mildly in
# the first and fully in the last. With inputs of few channels two settings of the initial weights matter more than
# the method: input weights drawn by fan-in, and an LSTM that begins by remembering. The learning rate falls to zero,
# as many updates a sequence make the last ones noisy otherwise.


# %%
def make(name: str) -> fptt.Method:
    torch.manual_seed(1)
    model = fptt.nn.LSTM(2, 24, 4, fan_in_init=True, forget_bias=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss = fptt.TerminalLoss(torch.nn.functional.cross_entropy, divergence="uniform")
    if name == "BPTT":
        return fptt.BPTT(model, optimizer, loss, max_norm=1.0)
    cls = fptt.TBPTT if name == "TBPTT" else fptt.FPTT
    return cls(model, optimizer, loss, num_chunks=6, max_norm=1.0)


def accuracy(method: fptt.Method, part: torch.Tensor) -> float:
    """Return the part that is right of the outputs at each sequence's last real step."""
    with torch.no_grad():
        outputs, _ = method.model(inputs[:, part])
    scores = fptt.last_output(outputs, mask[:, part])
    return (scores.argmax(-1) == targets[part]).float().mean().item()


EPOCHS = 8
curves: dict[str, list[float]] = {}
for name in ("BPTT", "TBPTT", "FPTT"):
    method = make(name)
    curves[name] = []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(method.optimizer, T_max=EPOCHS)
    for _ in range(EPOCHS):
        for batch in training[torch.randperm(len(training))].split(32):
            method.train_batch(inputs[:, batch], targets[batch], mask=mask[:, batch])
        schedule.step()
        curves[name].append(accuracy(method, test))
    print(f"{name:5}  {method.updates:4} updates, test accuracy {curves[name][-1]:.3f}")

# %%
for name, curve in curves.items():
    plt.plot(range(1, len(curve) + 1), curve, marker=".", label=name)
plt.axhline(0.25, color="black", linewidth=0.8, linestyle=":", label="chance")
plt.gca().set(xlabel="epoch", ylabel="test accuracy")
plt.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.tight_layout()

# %% [markdown]
# One seed and made-up data: this shows how it is done, not which method is better. For that, run several seeds, and
# look at the updates as well as the epochs: FPTT and TBPTT made six for each of BPTT's.
#
# ## The same from a file, without a loop
#
# `fptt train --task sequences --data FILE` does all this, ragged lengths, standardization and a test part included,
# and `fptt.experiments.load_run` brings the model back ([first steps](../first-steps.md)). For scikit-learn there are
# [estimators](../other-loops.md).
