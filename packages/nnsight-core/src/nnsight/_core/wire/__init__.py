"""What travels: a body and what it needs, by source; functions, classes, values; versioned.

The page *the wire* of the documentation says what travels how, and what the bytes are. Read in this order: `format`
(bytes), `encoder` and `decoder` (values to steps and back), `kinds` (the table of those who know one kind of thing each),
then any of these: `values`, `natives`, `tensors`, `arrays`, `pictures`; `texts`, `located`, `compiled` and `uses` (the
user's text), `origin` and `spaces` (whose module it is), `functions`, `callables`, `classes`, `called`, `objects`; `bodies`;
`records` and `failures` (what comes back). `abroad` answers plugins that write requests in somebody else's format.

All of it but `tensors` and `arrays` works without torch. What a request is, and the model that it is about, is known by
`travel.py`, above this package.
"""

from __future__ import annotations

from . import (  # they register what they know
    bodies,  # noqa: F401
    callables,  # noqa: F401
    classes,  # noqa: F401
    functions,  # noqa: F401
    natives,  # noqa: F401
    objects,  # noqa: F401
    spaces,  # noqa: F401
    values,  # noqa: F401
)
from .decoder import Decoder
from .encoder import Encoder
from .format import about
from .origin import register

__all__ = ["Decoder", "Encoder", "about", "register"]
