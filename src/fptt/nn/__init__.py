"""Recurrent models that speak `(inputs, state) -> (outputs, state)`, and adapters for your own."""

from fptt.nn._adapters import Recurrent as Recurrent
from fptt.nn._adapters import Unroll as Unroll
from fptt.nn._models import GRU as GRU
from fptt.nn._models import LSTM as LSTM
from fptt.nn._models import RNN as RNN
from fptt.nn._models import Kernel as Kernel
from fptt.nn._state import LSTMState as LSTMState
