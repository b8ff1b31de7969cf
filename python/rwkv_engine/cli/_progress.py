"""A progress bar on standard error, when that is a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

WIDTH = 30
DELAY = 0.3  # seconds; what is done sooner needs no bar
INTERVAL = 0.1


class Bar:
    """A bar that appears when work takes long and is gone when it ends."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._next = time.monotonic() + DELAY if _is_terminal() else float("inf")
        self._shown = False

    def update(self, done: int, total: int) -> None:
        """Show how far it is, if it is time to."""
        now = time.monotonic()
        if now < self._next or total <= 0:
            return
        self._next = now + INTERVAL
        self._shown = True
        full = done * WIDTH // total
        bar = "#" * full + "." * (WIDTH - full)
        sys.stderr.write(f"\r{self._label} [{bar}] {100 * done // total:3d}%")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the bar away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
