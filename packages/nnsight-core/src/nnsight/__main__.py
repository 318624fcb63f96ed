"""`python -m nnsight ...` is the command `nnsight ...`, where that is not on the path."""

from __future__ import annotations

import sys

from nnsight._core.commands import main

if __name__ == "__main__":
    sys.exit(main())
