"""Online learning: steps come one by one, for ever."""

from fptt._online._learner import OnlineLearner as OnlineLearner
