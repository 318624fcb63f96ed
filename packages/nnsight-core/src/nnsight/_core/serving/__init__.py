"""Runs that share forwards which none of them starts: an engine that serves many requests at once.

An engine forms a batch of whatever requests are due, calls the model, and forms the next; requests join and leave at any
time. `Forwards` is the model's side, one for an engine; each request has a `ServedRun` of its own, with its own steps and
bodies, which takes part in some of the forwards.

    forwards.py   what a forward passes, and who is served there
    request.py    one request: its bodies, its steps, its end
    graphs.py     which sites a model has that runs as compiled graphs
    lent.py       a value, as the bodies of several requests get it
    printed.py    what bodies print
    parts.py      one part of a model that is spread over processes layer by layer
    watch.py      how long one turn of a body may take
    spread.py     all of that for a model that is spread over several processes
    ranks.py      what keeps those in step
    draws.py      random numbers that bodies draw
    sent.py       the bodies of one trace, as they travel to the engine
    local.py      the same for an engine in this process, where they need no bytes
    standing.py   edits that stay with the engine, for many requests
    handed.py     what was saved, for a caller in the same process
    alike.py      which bodies of a trace are alike, so that they may be served together
    plan.py       what of a body can be, read off its text
    known.py      what the expressions in it are known to be
    group.py      one body at work for several requests
    joint.py      a value, as it gets that
    together.py   what it makes of it
    tracing.py    the trace, in the frame of whoever wrote it
"""

from __future__ import annotations

from . import uncounted  # noqa: F401  # gives `x.data` its meaning in bodies here
from .forwards import Forwards
from .handed import hand_over
from .local import LocalBodies
from .parts import EndedElsewhereError, Page, Parts
from .ranks import Peers
from .request import ServedRun
from .sent import SentBodies, decode_bodies
from .spread import SpreadForwards
from .standing import begin_edits, decode_edits, encode_edits
from .tracing import Engine, EngineTracer, LocalEngine, Underway

__all__ = [
    "EndedElsewhereError",
    "Engine",
    "EngineTracer",
    "Forwards",
    "LocalBodies",
    "LocalEngine",
    "Page",
    "Parts",
    "Peers",
    "SentBodies",
    "ServedRun",
    "SpreadForwards",
    "Underway",
    "begin_edits",
    "decode_bodies",
    "decode_edits",
    "encode_edits",
    "hand_over",
]
