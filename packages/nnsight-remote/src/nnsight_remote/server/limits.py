"""`Limits`: how much one user may ask of the server.

The one idea: every limit is a number with a unit in its name, the server has one set for everybody, and a key may carry
others. Who enforces which: the size of a request, the rate and the queue in `admission.py`; the run time in
`dispatch.py`; memory, the size of the result and the output in the worker's process, through the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """What one user may ask.

    Attributes:
        requests_per_minute: jobs handed in during any minute.
        queued: jobs that wait or run at once.
        run_seconds: time that one job may run, from the moment its host takes it.
        memory_bytes: memory that one job may take beyond the model.
        request_bytes: size of one request.
        result_bytes: size of one result.
        kept_bytes: results that lie on the server and wait to be fetched, all together.
        log_bytes: what one job may print; the rest is dropped, and it says so.
        stream_bytes: values that one job may hand over while it runs; the rest comes with its result, and it says so.
    """

    requests_per_minute: int = 600
    queued: int = 100
    run_seconds: float = 600.0
    memory_bytes: int = 8 * GIB
    request_bytes: int = 64 * MIB
    result_bytes: int = 1 * GIB
    kept_bytes: int = 16 * GIB
    log_bytes: int = 1 * MIB
    stream_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise ValueError(f"the limit {name} must be a number above 0, not {value!r}")

    def but(self, others: Mapping[str, float]) -> Limits:
        """Return these limits with some replaced; raise ValueError for a name that is none."""
        names = {field.name: field.type for field in fields(self)}
        if unknown := sorted(set(others) - set(names)):
            raise ValueError(f"there is no limit {', '.join(unknown)}; there are {', '.join(names)}")
        cast = {name: value if names[name] == "float" else _whole(name, value) for name, value in others.items()}
        return replace(self, **cast)  # type: ignore[arg-type]  # names were checked

    def as_dict(self) -> dict[str, float]:
        """Name and value of each."""
        return asdict(self)


def parse_limits(words: Iterable[str]) -> dict[str, float]:
    """Read `["run_seconds=60", "memory_bytes=2G"]`; K, M and G stand for powers of 1024."""
    found: dict[str, float] = {}
    for word in words:
        name, equals, text = word.partition("=")
        unit = {"K": KIB, "M": MIB, "G": GIB}.get(text[-1:].upper(), 1)
        try:
            number = float(text if unit == 1 else text[:-1]) * unit
        except ValueError:
            number = -1.0
        if not equals or number <= 0:
            raise ValueError(f"a limit is written NAME=NUMBER, as in run_seconds=60 or memory_bytes=2G, not {word!r}")
        found[name.replace("-", "_")] = number
    Limits().but(found)
    return found


def _whole(name: str, value: float) -> int:
    if not float(value).is_integer():
        raise ValueError(f"the limit {name} must be a whole number, not {value!r}")
    return int(value)
