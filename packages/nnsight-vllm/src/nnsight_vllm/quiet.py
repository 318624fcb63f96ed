"""What vLLM says, without what it says of our own doing.

One idea: an engine that is started from a notebook says what is wrong, and not how it is made. So its log begins at warnings,
unless `VLLM_LOGGING_LEVEL` says otherwise; what it would warn of because of how we start it and talk to it is left out; the
tree that is built without weights says nothing, since the engine says it all again; and tracebacks look as they always do.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LEVEL = "VLLM_LOGGING_LEVEL"
#: How those messages begin that are about our own doing, by the logger that says them.
#: relies on: these words, vLLM 0.30 to 0.32; others would be seen again.
OURS = {
    "vllm.config.vllm": ("Enforce eager set", "Inductor compilation was disabled"),
    "vllm.config.scheduler": ("Using custom scheduler class",),
    "vllm.v1.engine.input_processor": ("Passing raw prompts to",),
}


class _NotOurs(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or not record.getMessage().startswith(OURS[record.name])


_not_ours = _NotOurs()


def reduce() -> None:
    """Leave out what nobody needs to know, from now on. Safe to call twice."""
    # Of the loggers that say it: vLLM makes its handlers, and sets its level, anew for each engine.
    for name in OURS:
        logging.getLogger(name).addFilter(_not_ours)
    os.environ.setdefault(_LEVEL, "WARNING")


@contextmanager
def silence() -> Iterator[None]:
    """Let nothing be said but errors."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with without_remarks():
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def without_remarks() -> Iterator[None]:
    """Start what makes vLLM import the rest of itself, and torch a group of processes."""
    # relies on: the first group makes `sys.excepthook` write "[rank0]: " before each line, torch 2.4 to 2.13
    hook = sys.excepthook
    try:
        with warnings.catch_warnings():
            # About names that vLLM's own modules look for in torch.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
            yield
    finally:
        sys.excepthook = hook
