"""Every error and warning that nnsight raises on its own account.

All of them share one root, so that `except NNsightError` means "nnsight refused", and each is also the builtin that a
user would expect there. The user's own exceptions are never wrapped. Drawn as a tree::

    NNsightError
    ├── MissedProviderError (RuntimeError)     a site was waited for and never came
    │   └── OutOfOrderError                    the run had passed it already when it was asked for
    ├── NoTraceError (RuntimeError)            a value was asked for and no run is there to give it
    │   └── SaveOutsideTraceError (ValueError)
    ├── NoInputError (ValueError)              a trace with neither input nor invokes
    ├── InvokeError (ValueError)               an invoke where none can be
    ├── RowsError (ValueError)                 a write that does not fit the rows of its invoke
    ├── CrossInvokeError (NameError)           a name that no invoke will ever bind
    ├── BarrierError (RuntimeError)            a barrier that not everybody reached
    ├── ElsewhereError (RuntimeError)          something lies in another process, which has another part of the model
    ├── RanksError (RuntimeError)              the processes of one model do not do the same
    ├── BackwardError (RuntimeError)           something other than a gradient was asked for in a backward block
    ├── SourceError (RuntimeError)             a block's or a forward's source cannot be found or does not match
    ├── LoadError (RuntimeError)               weights cannot be loaded, or would not be those that were asked for
    ├── ChangedValueError (RuntimeError)       a cached value that was changed in place after it had passed
    ├── ScanError (RuntimeError)               a forward that cannot run on fake tensors
    ├── AbsentNameError (AttributeError)       a standard name that means nothing in this model
    ├── RenameError (ValueError)               a rename of the wrong form, or one name for two modules
    ├── WireError (ValueError)                 what cannot travel, or bytes that are no message of ours
    ├── RemoteError (RuntimeError)             an error at the other end, of a type that is not known here
    ├── ConfigError (ValueError)               a configuration that cannot be read, or a setting of the wrong kind
    └── PluginError (RuntimeError)             a plugin is missing, for another core, or claims a taken name
        └── MissingPluginError (ImportError)
"""

from __future__ import annotations


class NNsightError(Exception):
    """The root of every error that nnsight raises on its own account."""


class MissedProviderError(NNsightError, RuntimeError):
    """A body waited for a site that the run never reached."""


class OutOfOrderError(MissedProviderError):
    """A body asked for a site that the run had already passed."""


class NoTraceError(NNsightError, RuntimeError):
    """A value of the forward pass was asked for outside any trace."""


class SaveOutsideTraceError(NoTraceError, ValueError):
    """`.save()` was called outside any trace."""


class ElsewhereError(NNsightError, RuntimeError):
    """A block needed what lies in another process, which has another part of the model."""


class NoInputError(NNsightError, ValueError):
    """A trace was given neither an input nor an invoke."""


class InvokeError(NNsightError, ValueError):
    """An invoke was opened where no invoke can be."""


class RowsError(NNsightError, ValueError):
    """A write does not fit the rows of the batch that belong to its invoke."""


class CrossInvokeError(NNsightError, NameError):
    """An invoke read a name that no other invoke bound."""


class BarrierError(NNsightError, RuntimeError):
    """A barrier was left waiting for invokes that never arrived."""


class RanksError(NNsightError, RuntimeError):
    """The processes that a model is spread over do not do the same, or have parts that make no whole."""


class BackwardError(NNsightError, RuntimeError):
    """Something other than a gradient was asked for inside a backward block."""


class SourceError(NNsightError, RuntimeError):
    """The source of a block or of a forward cannot be found, or is not what is running."""


class ChangedValueError(NNsightError, RuntimeError):
    """A cached value is no longer what passed: the run changed it in place."""


class ScanError(NNsightError, RuntimeError):
    """A forward cannot run on fake tensors, because what it does depends on numbers."""


class LoadError(NNsightError, RuntimeError):
    """Weights cannot be loaded, or what would be loaded is not what was asked for."""


class AbsentNameError(NNsightError, AttributeError):
    """A standard name cannot be given truthfully in a model."""


class RenameError(NNsightError, ValueError):
    """A rename has the wrong form, or gives two modules one name."""


class WireError(NNsightError, ValueError):
    """Something cannot travel, or bytes that arrived cannot be read."""


class RemoteError(NNsightError, RuntimeError):
    """A block that ran elsewhere raised an error of a type that is not known here."""


class ConfigError(NNsightError, ValueError):
    """A configuration file cannot be read, or a setting has the wrong kind."""


class PluginError(NNsightError, RuntimeError):
    """A plugin cannot be used: made for another core, or claiming a name that is taken."""


class MissingPluginError(PluginError, ImportError):
    """A name belongs to a plugin that is not installed."""


class NNsightWarning(UserWarning):
    """The root of every warning that nnsight gives."""


class UnmetSiteWarning(NNsightWarning):
    """An edit, a cache or a loop never met its site in this run."""
