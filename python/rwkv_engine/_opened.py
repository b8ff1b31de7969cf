"""What the parts of `Engine` take from each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _core

if TYPE_CHECKING:
    from .config import Config
    from .text import Tokenizer


class Opened:
    """A model that is open. `Engine` brings what is declared here."""

    __slots__ = ()
    _core: _core.Engine

    if TYPE_CHECKING:

        @property
        def config(self) -> Config: ...
        @property
        def tokenizer(self) -> Tokenizer: ...
