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
# # A sensor stream
#
# Readings arrive one by one and never end, some sensors fail for a moment, and what the machine was doing is known
# only now and then, and late. A stream has no epochs: each reading is predicted, then learned, once, in the memory of
# one chunk. Here the stream is made up; put your own generator of `(features, label or None)` in its place.

# %%
import io
import math
from collections import deque
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import torch

import fptt

torch.manual_seed(0)
generator = np.random.default_rng(0)
STATES = ("idle", "cutting", "worn")


def sensor(num_steps: int) -> Iterator[tuple[dict[str, float], str]]:
    """Yield readings with gaps, and the state of the machine, which shows in how they change."""
    state, phase, temperature = "idle", 0.0, 60.0
    for _ in range(num_steps):
        if generator.random() < 0.02:
            state = str(generator.choice(STATES))
        phase += {"idle": 0.2, "cutting": 0.8, "worn": 1.6}[state]
        temperature += 0.05 * ({"idle": 50.0, "cutting": 65.0, "worn": 80.0}[state] - temperature)
        x = {
            "vibration": math.sin(phase) + 0.1 * generator.normal(),
            "temperature": temperature + 0.5 * generator.normal(),
            "speed": (1500 if state == "idle" else 1460) + 20 * generator.normal(),
        }
        if generator.random() < 0.02:
            x[str(generator.choice(list(x)))] = math.nan  # a gap
        yield x, state


# %% [markdown]
# ## A learner
#
# A loss at every step, an update every 10 steps, and inputs that are standardized by what has been seen so far: they
# differ by three orders of magnitude.


# %%
def make_learner() -> fptt.OnlineLearner:
    torch.manual_seed(1)
    model = fptt.nn.GRU(3, 16, len(STATES))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = fptt.SequenceLoss(torch.nn.functional.cross_entropy)
    method = fptt.FPTT(model, optimizer, loss, chunk_length=10, max_norm=1.0)
    return fptt.OnlineLearner(method, classes=STATES, standardize=True)


# %% [markdown]
# ## Predict, then learn
#
# Every second reading has a label. The figure that counts is progressive: each prediction is made before its label is
# seen. As a state lasts for fifty steps and more, the last label known is a strong rival, so it is counted as well. A
# gap is filled with the reading before it.

# %%
learner = make_learner()
held = dict.fromkeys(("vibration", "temperature", "speed"), 0.0)
recent: dict[str, deque[bool]] = {"FPTT": deque(maxlen=500), "last label": deque(maxlen=500)}
curves: dict[str, list[float]] = {name: [] for name in recent}
last = None
for step, (x, state) in enumerate(sensor(3000), 1):
    held |= {name: value for name, value in x.items() if not math.isnan(value)}
    is_labeled = generator.random() < 0.5
    if is_labeled:
        recent["FPTT"].append(learner.predict_one(held) == state)
        recent["last label"].append(last == state)
        last = state
    learner.learn_one(dict(held), state if is_labeled else None)
    if step % 250 == 0:
        for name, hits in recent.items():
            curves[name].append(sum(hits) / len(hits))
print(f"{learner.steps} steps, {learner.labels} labels, {learner.method.updates} updates")
print({name: round(curve[-1], 3) for name, curve in curves.items()})

# %%
for name, curve in curves.items():
    plt.plot([250 * (i + 1) for i in range(len(curve))], curve, marker=".", label=name)
plt.axhline(1 / 3, color="black", linewidth=0.8, linestyle=":", label="chance")
plt.gca().set(xlabel="step", ylabel="accuracy of the last 500 labels")
plt.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.tight_layout()

# %% [markdown]
# With every second label at once, the last label can hardly be beaten: say so in a report on such a stream. A network
# is for the case where labels are late or rare. So now each label comes 200 steps late.

# %%
DELAY = 200


def progressive(learner: fptt.OnlineLearner, num_steps: int) -> tuple[float, float]:
    """Return the accuracy of the learner and of the last label known, in the second half of a stream of late labels."""
    hits, rival = [], []
    held = dict.fromkeys(("vibration", "temperature", "speed"), 0.0)
    waiting: deque[str] = deque()
    known = None
    for step, (x, state) in enumerate(sensor(num_steps)):
        held |= {name: value for name, value in x.items() if not math.isnan(value)}
        if step > num_steps // 2:
            hits.append(learner.predict_one(held) == state)
            rival.append(known == state)
        learner.learn_one(dict(held))  # no label yet
        waiting.append(state)
        if len(waiting) == DELAY:
            known = waiting.popleft()
            learner.learn_delayed(known, delay=DELAY)  # a delay of 1 is that of the last step
    return sum(hits) / len(hits), sum(rival) / len(rival)


model = fptt.nn.GRU(3, 16, len(STATES))
method = fptt.FPTT(
    model,
    torch.optim.Adam(model.parameters(), lr=1e-2),
    fptt.SequenceLoss(torch.nn.functional.cross_entropy),
    chunk_length=10,
    max_norm=1.0,
)
late = fptt.OnlineLearner(method, classes=STATES, standardize=True, max_delay=DELAY)
print("FPTT {:.3f}, last label known {:.3f}".format(*progressive(late, 3000)))

# %% [markdown]
# ## Off, and on again
#
# All that the learner knows is in its `state_dict`: weights, optimizer, duals, averages, hidden state, moments of the
# inputs, steps that still wait. Loaded into a new learner it goes on as if nothing had happened.

# %%
file = io.BytesIO()  # or a path
torch.save(learner.state_dict(), file)
file.seek(0)
again = make_learner()
again.load_state_dict(torch.load(file, weights_only=True))
reading = {"vibration": 0.3, "temperature": 61.0, "speed": 1490.0}
assert again.predict_proba_one(reading) == learner.predict_proba_one(reading)
print(again.steps, again.predict_one(reading))

# %% [markdown]
# More of it, with River's pipelines, streams of chunks and `fptt stream` on the command line: [endless
# streams](../streams.md).
