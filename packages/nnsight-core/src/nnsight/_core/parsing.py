"""One lock around everything that reads source text into syntax trees.

CPython 3.10 and 3.11 count the depth of a tree under construction for all threads together, so two that parse at once
may get `SystemError: AST constructor recursion depth mismatch`. Silencing the warnings of a compilation is not safe in
two threads either. What is read is kept by those who read it, so nobody waits here often.
"""

from __future__ import annotations

import threading

reading = threading.RLock()
