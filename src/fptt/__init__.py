"""Forward Propagation Through Time (Kag & Saligrama, ICML 2021) for recurrent PyTorch models, with BPTT and TBPTT."""

from importlib.metadata import version as _version

from fptt import nn as nn
from fptt._arrays import ArrayChunks as ArrayChunks
from fptt._batch import BatchResult as BatchResult
from fptt._collectives import LostProcessError as LostProcessError
from fptt._engine import CompilationError as CompilationError
from fptt._gradient_check import ChunkGradient as ChunkGradient
from fptt._gradient_check import GradientReport as GradientReport
from fptt._gradient_check import check_gradient as check_gradient
from fptt._losses import ChunkLoss as ChunkLoss
from fptt._losses import SequenceLoss as SequenceLoss
from fptt._losses import TerminalLoss as TerminalLoss
from fptt._method import Method as Method
from fptt._methods import BPTT as BPTT
from fptt._methods import FPTT as FPTT
from fptt._methods import TBPTT as TBPTT
from fptt._online import OnlineLearner as OnlineLearner
from fptt._packing import PackedSequences as PackedSequences
from fptt._packing import pack_sequences as pack_sequences
from fptt._parallel import DataParallel as DataParallel
from fptt._prefetch import Prefetched as Prefetched
from fptt._prefetch import prefetch as prefetch
from fptt._priors import RunningPrior as RunningPrior
from fptt._regularizer import DynamicRegularizer as DynamicRegularizer
from fptt._sequence import chunk_lengths as chunk_lengths
from fptt._sequence import detach as detach
from fptt._sequence import length_mask as length_mask
from fptt._sequence import reset as reset
from fptt._sequence import split_sequence as split_sequence
from fptt._stream import StreamChunk as StreamChunk

__version__ = _version("fptt")
