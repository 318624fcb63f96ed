"""All that the author of a plugin imports.

A plugin is a distribution with an entry point in the group `nnsight` that names a module of a few lines::

    [project]
    name = "nnsight-toy"
    dependencies = ["nnsight-core>=0.9,<0.10"]     # checked when the plugin is found, not only when it is installed

    [project.entry-points.nnsight]
    toy = "nnsight_toy.entry"

That module implements hooks, which name what the plugin offers and import none of it::

    from nnsight.plugin import hookimpl

    @hookimpl
    def families():
        return {"ToyModel": "nnsight_toy.model:ToyModel"}

From then on `from nnsight import ToyModel` works. The hooks are `families`, `backends`, `import_aliases`,
`travels_by_reference` and `commands`; `nnsight.plugins()` shows what was found.

What the things so named are built from is here too: `NNsight` and `Envoy` to subclass, `Batchable` and `Layout` to say
how inputs share a forward and how rows lie in values, `eproperty`, `provide` and `notes` for values of the family's own,
`operations_of` for the calls in a function, `Backend` for another place to run, `encode_request` and its siblings for what
travels there and back, `LazyModel` and `Loadable` for weights that come when they are needed, `standard` for the names that
all decoders have in common. Each protocol has a conformance suite in `nnsight.testing`.
"""

from __future__ import annotations

from nnsight._core import standard
from nnsight._core.backend import Backend, HereBackend, Pending, Request, open_trace, run_there
from nnsight._core.batching import Batchable, Layout, PlainLayout, Prepared, Rows, join_inputs, put_together
from nnsight._core.blocks import is_with_head
from nnsight._core.cache import Cache
from nnsight._core.envoy import Envoy
from nnsight._core.errors import RemoteError, WireError
from nnsight._core.foreign import become, store_edit
from nnsight._core.hookspecs import hookimpl
from nnsight._core.hosting import Shareable
from nnsight._core.interleaver import Interleaver
from nnsight._core.loading import LazyModel, Loadable
from nnsight._core.lockstep import Lockstep, fingerprint
from nnsight._core.model import NNsight
from nnsight._core.notes import notes
from nnsight._core.parsing import copy_tree, parse_source
from nnsight._core.pieces import Piece, Pieces
from nnsight._core.provided import end_steps, provide
from nnsight._core.readonly import ReadOnly
from nnsight._core.received import join_caches
from nnsight._core.served import eproperty
from nnsight._core.serving import (
    EndedElsewhereError,
    Engine,
    EngineTracer,
    Forwards,
    LocalBodies,
    LocalEngine,
    Page,
    Parts,
    Peers,
    SentBodies,
    ServedRun,
    SpreadForwards,
    Underway,
    begin_edits,
    decode_bodies,
    decode_edits,
    encode_edits,
    hand_over,
)
from nnsight._core.sharding import Sharding
from nnsight._core.sites import Place
from nnsight._core.source import Operation, operations_of
from nnsight._core.structures import leaves, tree_map
from nnsight._core.trace import Tracer
from nnsight._core.travel import (
    check_bytes,
    decode_error,
    decode_message,
    decode_request,
    decode_results,
    encode_error,
    encode_message,
    encode_request,
    encode_results,
    inspect_bytes,
)
from nnsight._core.wire.abroad import (
    Text,
    aliases_of,
    block_of_text,
    installed_as,
    is_own,
    names_of_block,
    names_of_function,
    text_of_block,
    text_of_function,
)
from nnsight._core.wire.records import registered_class

__all__ = [
    "Backend",
    "Batchable",
    "Cache",
    "EndedElsewhereError",
    "Engine",
    "EngineTracer",
    "Envoy",
    "Forwards",
    "HereBackend",
    "Interleaver",
    "Layout",
    "LazyModel",
    "Loadable",
    "LocalBodies",
    "LocalEngine",
    "Lockstep",
    "NNsight",
    "Operation",
    "Page",
    "Parts",
    "Peers",
    "Pending",
    "Piece",
    "Pieces",
    "Place",
    "PlainLayout",
    "Prepared",
    "ReadOnly",
    "RemoteError",
    "Request",
    "Rows",
    "SentBodies",
    "ServedRun",
    "Sharding",
    "Shareable",
    "SpreadForwards",
    "Text",
    "Tracer",
    "Underway",
    "WireError",
    "aliases_of",
    "become",
    "begin_edits",
    "block_of_text",
    "check_bytes",
    "copy_tree",
    "decode_bodies",
    "decode_edits",
    "decode_error",
    "decode_message",
    "decode_request",
    "decode_results",
    "encode_edits",
    "encode_error",
    "encode_message",
    "encode_request",
    "encode_results",
    "end_steps",
    "eproperty",
    "fingerprint",
    "hand_over",
    "hookimpl",
    "inspect_bytes",
    "installed_as",
    "is_own",
    "is_with_head",
    "join_caches",
    "join_inputs",
    "leaves",
    "names_of_block",
    "names_of_function",
    "notes",
    "open_trace",
    "operations_of",
    "parse_source",
    "provide",
    "put_together",
    "registered_class",
    "run_there",
    "standard",
    "store_edit",
    "text_of_block",
    "text_of_function",
    "tree_map",
]
