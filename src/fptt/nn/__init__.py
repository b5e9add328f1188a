"""Recurrent models that speak `(inputs, state) -> (outputs, state)`, and adapters for your own."""

from fptt.nn import spiking as spiking
from fptt.nn.adapters import Recurrent as Recurrent
from fptt.nn.adapters import Unroll as Unroll
from fptt.nn.models import GRU as GRU
from fptt.nn.models import LSTM as LSTM
from fptt.nn.models import RNN as RNN
from fptt.nn.models import Kernel as Kernel
from fptt.nn.models import LSTMState as LSTMState
from fptt.nn.models import RunningKernel as RunningKernel
