"""Read and change what happens inside a neural network, with ordinary Python.

    model = nnsight.NNsight(module)
    with model.trace(input):
        hidden = model.layers[5].output      # the tensor itself, at that moment of the forward pass
        model.layers[6].mlp.output[:] = 0    # and this changes the run

This file is a table of contents. What a name does is written where it is defined; the way the parts fit together is on
the page *how it works* of the documentation. Model families (`nnsight.LanguageModel` and others) come from plugins and
are looked up when they are first asked for.
"""

from __future__ import annotations

from typing import Any

from nnsight._core import aliases as _aliases
from nnsight._core import patches as _patches
from nnsight._core import plugins as _plugins
from nnsight._core.cache import Cache
from nnsight._core.config import CONFIG
from nnsight._core.envoy import Envoy
from nnsight._core.errors import (
    AbsentNameError,
    BackwardError,
    BarrierError,
    ChangedValueError,
    ConfigError,
    CrossInvokeError,
    ElsewhereError,
    InvokeError,
    LoadError,
    MissedProviderError,
    MissingPluginError,
    NNsightError,
    NNsightWarning,
    NoInputError,
    NoTraceError,
    OutOfOrderError,
    PluginError,
    RanksError,
    RemoteError,
    RenameError,
    RowsError,
    SaveOutsideTraceError,
    ScanError,
    SourceError,
    UnmetSiteWarning,
    WireError,
)
from nnsight._core.model import NNsight
from nnsight._core.plugins import plugins
from nnsight._core.saved import save
from nnsight._core.served import eproperty
from nnsight._core.trace import Tracer
from nnsight._core.travel import register
from nnsight._version import __version__

__all__ = [
    "CONFIG",
    "AbsentNameError",
    "BackwardError",
    "BarrierError",
    "ChangedValueError",
    "Cache",
    "ConfigError",
    "CrossInvokeError",
    "Envoy",
    "InvokeError",
    "LoadError",
    "MissedProviderError",
    "MissingPluginError",
    "NNsight",
    "NNsightError",
    "NNsightWarning",
    "ElsewhereError",
    "NoInputError",
    "NoTraceError",
    "OutOfOrderError",
    "PluginError",
    "RanksError",
    "RemoteError",
    "RenameError",
    "RowsError",
    "SaveOutsideTraceError",
    "ScanError",
    "SourceError",
    "Tracer",
    "UnmetSiteWarning",
    "WireError",
    "__version__",
    "eproperty",
    "plugins",
    "register",
    "save",
]


def __getattr__(name: str) -> Any:
    return _plugins.public_name(name)


_aliases.install()
_patches.patch_backward()
_patches.follow_config()
