"""What can go wrong. Every message says what was expected and what was found."""

from __future__ import annotations


class Error(Exception):
    """Anything a file, a device or a caller can get wrong; the kinds below derive from it."""


class ModelFormatError(Error):
    """A model or vocabulary file that is damaged, or a model that this release does not run."""


class StateError(Error):
    """A state that is damaged, belongs to another model or engine, or cannot be used this way."""


class StrategyError(Error):
    """A strategy string with a word in it that cannot stand there."""


class DeviceError(Error):
    """A device that is absent, out of memory, or unusable because the process was forked."""


class NonFiniteError(Error):
    """A result that is not a number or infinite; the states of the call are unchanged."""


class ConcurrentUseError(Error):
    """A state used by two calls at once; ``fork()`` gives each its own."""
