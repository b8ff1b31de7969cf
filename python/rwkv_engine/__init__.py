"""Inference engine for RWKV language models.

>>> import rwkv_engine as rwkv
>>> engine = rwkv.Engine("demo")
>>> result = engine.generate("def main(", rwkv.SamplingParams(temperature=0, max_tokens=8))
>>> len(result.tokens)
8
"""

from __future__ import annotations

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        "rwkv_engine found no compiled module that it can load (rwkv_engine._core): "
        f"{error}. Did you forget to compile? `pip install .` in the project's folder does it"
    ) from error

from .adapters import Adapter, LoadedAdapter
from .chat import Chat, Message, Reply, ReplyPiece, ReplyStream
from .config import Config
from .conversion import convert
from .device import DeviceArray
from .engine import Engine
from .errors import (
    ConcurrentUseError,
    DeviceError,
    Error,
    ModelFormatError,
    NonFiniteError,
    StateError,
    StrategyError,
)
from .generation import Piece, Result, Stream, Usage
from .params import SamplingParams
from .quantization import quantize
from .scoring import Choice
from .state import State
from .statefile import StateFile, read_state
from .templates import ChatTemplate
from .text import StreamDecoder, Tokenizer

__version__ = "0.2.0"

__all__ = [
    "Adapter",
    "Chat",
    "ChatTemplate",
    "Choice",
    "ConcurrentUseError",
    "Config",
    "DeviceArray",
    "DeviceError",
    "Engine",
    "Error",
    "LoadedAdapter",
    "Message",
    "ModelFormatError",
    "NonFiniteError",
    "Piece",
    "Reply",
    "ReplyPiece",
    "ReplyStream",
    "Result",
    "SamplingParams",
    "State",
    "StateError",
    "StateFile",
    "StrategyError",
    "Stream",
    "StreamDecoder",
    "Tokenizer",
    "Usage",
    "convert",
    "quantize",
    "read_state",
]
