"""Forward Propagation Through Time (Kag & Saligrama, ICML 2021) for recurrent PyTorch models, with BPTT and TBPTT."""

from importlib.metadata import version as _version

from fptt import nn as nn
from fptt._batches.arrays import ArrayChunks as ArrayChunks
from fptt._batches.batch import Batch as Batch
from fptt._batches.lanes import PackedLanes as PackedLanes
from fptt._batches.lanes import pack_lanes as pack_lanes
from fptt._batches.prefetch import prefetch as prefetch
from fptt._batches.stagger import StaggeredLanes as StaggeredLanes
from fptt._batches.stagger import stagger as stagger
from fptt._engine.compiled.compiler import CompilationError as CompilationError
from fptt._losses.chunk_loss import ChunkLoss as ChunkLoss
from fptt._losses.chunk_loss import SequenceLoss as SequenceLoss
from fptt._losses.chunk_loss import TerminalLoss as TerminalLoss
from fptt._losses.priors import RunningPrior as RunningPrior
from fptt._methods.bptt import BPTT as BPTT
from fptt._methods.fptt import FPTT as FPTT
from fptt._methods.gradient_check import ChunkGradient as ChunkGradient
from fptt._methods.gradient_check import GradientReport as GradientReport
from fptt._methods.gradient_check import check_gradient as check_gradient
from fptt._methods.method import BatchResult as BatchResult
from fptt._methods.method import Method as Method
from fptt._methods.tbptt import TBPTT as TBPTT
from fptt._online.learner import OnlineLearner as OnlineLearner
from fptt._parallel.collectives import LostProcessError as LostProcessError
from fptt._parallel.replicas import DataParallel as DataParallel
from fptt._parallel.replicas import OtherProcessError as OtherProcessError
from fptt._regularizer.regularizer import DynamicRegularizer as DynamicRegularizer
from fptt._regularizer.step_hooks import BadWeightsError as BadWeightsError
from fptt._sequence import Progress as Progress
from fptt._sequence import chunk_lengths as chunk_lengths
from fptt._sequence import detach_state as detach_state
from fptt._sequence import last_output as last_output
from fptt._sequence import length_mask as length_mask
from fptt._sequence import reset_state as reset_state
from fptt._sequence import split_sequence as split_sequence
from fptt.nn.prediction import predict as predict

__version__ = _version("fptt")
