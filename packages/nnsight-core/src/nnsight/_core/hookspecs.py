"""What a plugin can offer: one hook for each kind of thing.

The one idea: hooks name things and do nothing. Each returns a mapping of a name to where the thing is, written
"module:attribute" (or "module" for a module itself), so that asking all plugins what they have imports nothing heavy.
How they are found and asked is in `plugins.py`; authors import `hookimpl` from `nnsight.plugin`.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookspec = pluggy.HookspecMarker("nnsight")
hookimpl = pluggy.HookimplMarker("nnsight")


@hookspec
def families() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Kinds of models: each name can be used as `nnsight.NAME`, and says on the wire which class to build."""


@hookspec
def backends() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Places where a run can happen: each name can be given as `backend="NAME"`."""


@hookspec
def import_aliases() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Import paths under `nnsight.` for the plugin's own modules, such as "nnsight.modeling.toy": "nnsight_toy".

    A target with an attribute makes a name of the package instead: "nnsight.toy_status": "nnsight_toy.status:show".
    """


@hookspec
def travels_by_reference() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Things that are on both ends of a wire already, so that only their name travels.

    Each target is a function that takes the model and returns the thing (its tokenizer), or None if it has none.
    """


@hookspec
def commands() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Subcommands of the `nnsight` command line: each name is run as `nnsight NAME ...`.

    The target is called with the list of the arguments after NAME, and returns an exit status or None.
    """
