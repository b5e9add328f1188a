"""Spiking networks that speak `(inputs, state) -> (outputs, state)`, their surrogate gradients, and spike codes."""

from fptt.nn.spiking.encoders import delta_spikes as delta_spikes
from fptt.nn.spiking.encoders import latency_spikes as latency_spikes
from fptt.nn.spiking.encoders import poisson_spikes as poisson_spikes
from fptt.nn.spiking.models import ALIF as ALIF
from fptt.nn.spiking.models import LIF as LIF
from fptt.nn.spiking.models import LiquidLIF as LiquidLIF
from fptt.nn.spiking.models import SpikingState as SpikingState
from fptt.nn.spiking.models import firing_rate as firing_rate
from fptt.nn.spiking.neurons import ALIFState as ALIFState
from fptt.nn.spiking.neurons import LIFState as LIFState
from fptt.nn.spiking.neurons import Reset as Reset
from fptt.nn.spiking.readout import LeakyReadout as LeakyReadout
from fptt.nn.spiking.readout import Pool as Pool
from fptt.nn.spiking.readout import ReadoutState as ReadoutState
from fptt.nn.spiking.surrogates import ArcTan as ArcTan
from fptt.nn.spiking.surrogates import FastSigmoid as FastSigmoid
from fptt.nn.spiking.surrogates import MultiGaussian as MultiGaussian
from fptt.nn.spiking.surrogates import Sigmoid as Sigmoid
from fptt.nn.spiking.surrogates import Surrogate as Surrogate
from fptt.nn.spiking.surrogates import smooth_spikes as smooth_spikes
from fptt.nn.spiking.surrogates import spike as spike
