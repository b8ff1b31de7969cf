"""``python -m rwkv_engine`` is the command ``rwkv-engine``."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
