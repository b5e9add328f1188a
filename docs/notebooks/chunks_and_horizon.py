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
# # K, and the horizon of a gradient
#
# K, the number of chunks, decides three things at once: how often the weights change, how much memory a gradient
# takes, and how far back it sees. This notebook measures the last, and shows the option that takes it apart from the
# others.

# %%
import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

import fptt

T, REACH = 64, 30
loss = fptt.TerminalLoss(cross_entropy, divergence="uniform")


def recall(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise (T, num, 3) with a sign of ±1 in one channel, 30 steps before the end, and the sign as a class."""
    classes = torch.randint(2, (num,))
    inputs = 0.5 * torch.randn(T, num, 3)
    inputs[..., 2] = 0
    inputs[T - REACH, :, 0] = 2.0 * classes - 1
    inputs[T - REACH, :, 2] = 1  # here it is
    return inputs, classes


torch.manual_seed(0)
test_inputs, test_classes = recall(500)

# %% [markdown]
# ## Updates against reach
#
# The sign stands 30 steps before the end. One chunk (K = 1) sees all of it, as in BPTT, for one update a batch. With
# K = 8, chunks of 8 steps, there are eight updates, and no gradient goes from the answer back to the sign.
# `horizon=4` lets each gradient go back through the three chunks before its own as well: eight updates, 32 steps, for
# four times the arithmetic.


# %%
def learn(num_chunks: int, horizon: int = 1) -> tuple[fptt.nn.LSTM, list[float]]:
    torch.manual_seed(1)
    model = fptt.nn.LSTM(3, 16, 2, last_only=True, forget_bias=1.0, fan_in_init=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    method = fptt.FPTT(model, optimizer, loss, num_chunks=num_chunks, horizon=horizon, max_norm=1.0)
    found = []
    for batch in range(1, 101):
        method.train_batch(*recall(48))
        if batch % 10 == 0:
            with torch.no_grad():
                found.append((model(test_inputs)[0][-1].argmax(-1) == test_classes).float().mean().item())
    return model, found


for num_chunks, horizon in ((1, 1), (8, 4), (8, 1)):
    model, curve = learn(num_chunks, horizon)
    plt.plot(range(10, 101, 10), curve, marker=".", label=f"K = {num_chunks}, horizon {horizon}")
    print(f"K = {num_chunks}, horizon {horizon}: {curve[-1]:.3f} after {100 * num_chunks} updates")
plt.axhline(0.5, color="black", linewidth=0.8, linestyle=":", label="chance")
plt.gca().set(xlabel="batches", ylabel="test accuracy")
plt.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.tight_layout()

# %% [markdown]
# On this seed a single update a batch is too few in 100 batches; eight a batch learn it, since the state carries
# the sign over the cuts even where the gradient does not go back; and with a longer reach they learn it sooner.
# Another task may want it otherwise: copying symbols over 100 steps is learned by no short chunk ([how to
# choose](../how-to-choose.md)).
#
# ## What a cut costs the gradient
#
# `check_gradient` compares the gradient of each chunk with autograd and with finite differences, and the mean over
# all chunks with the gradient of BPTT for the same losses: the angle between them, in degrees. 0 is the same
# direction, 90 has nothing to do with it. Here it looks at the model that was trained last, which remembers.

# %%
inputs, classes = recall(64)
print(fptt.check_gradient(model, inputs, classes, loss, num_chunks=4))

# %% [markdown]
# Every gradient is right as a gradient of its chunk. How far their mean is from that of the whole sequence depends on
# K, and on the horizon:

# %%
horizons = (1, 2, 4, 8)
for K in (4, 8, 16):
    angles = [
        fptt.check_gradient(model, inputs, classes, loss, num_chunks=K, horizon=h, differences=False).angle
        for h in horizons
        if h <= K
    ]
    plt.plot(horizons[: len(angles)], angles, marker="o", label=f"K = {K}")
plt.gca().set(xlabel="horizon, in chunks", ylabel="angle to BPTT, degrees", xticks=horizons, ylim=(0, None))
plt.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.tight_layout()

# %% [markdown]
# So begin with K ≈ √T and with chunks as long as the shortest dependency that matters; where memory forces shorter
# ones, a horizon buys reach for time. [How to choose](../how-to-choose.md) has what was measured on real tasks, [the
# method](../method.md) the equations.
