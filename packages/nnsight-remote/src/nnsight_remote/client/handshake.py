"""What is found out before anything is uploaded: what the server speaks, that it has the model, and that versions agree.

The one idea: once for each server and model, and again after some minutes; a difference that breaks things is an error, one
that may change numbers is one warning that says what to install.
"""

from __future__ import annotations

import platform
import re
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nnsight import NNsightWarning
from nnsight.plugin import NNsight

from .address import Address
from .connection import Connection, as_json, connect
from .errors import ProtocolError, RefusedError
from .protocol import Environment, Offer, Spoken
from .serve_facts import PROTOCOL, ServeFacts
from .serve_jobs import ServeJobs

_AGAIN_AFTER = 300.0
#: Packages whose versions matter to a block, and how much of a version has to agree for the same numbers.
COMPARED = {"nnsight-core": 2, "torch": 2, "transformers": 2, "nnsight-hf": 2, "diffusers": 2, "nnsight-diffusers": 2}

_spoken: dict[Connection, Spoken] = {}
_agreed: dict[tuple[Connection, str], tuple[float, str]] = {}
_warned: set[tuple[str, str]] = set()


def speak(address: Address) -> Spoken:
    """Find out what a server speaks; raises ProtocolError for what is not known here."""
    connection = connect(address)
    known = _spoken.get(connection)
    if known is None:
        known = _spoken[connection] = _recognise(connection)
    return known


def _recognise(connection: Connection) -> Spoken:
    url = connection.address.url
    answer = connection.ask("GET", "/env", accepted=(404,))
    said = as_json(answer) if answer.status_code == 200 else None
    spoken = said.get("protocol") if isinstance(said, dict) else None
    if type(spoken) is int and spoken == PROTOCOL:
        return Spoken(ServeJobs(connection), ServeFacts(connection))
    if type(spoken) is int:
        newer = "nnsight-remote here" if spoken > PROTOCOL else "nnsight-remote on the server"
        raise ProtocolError(
            f"{url} speaks version {spoken} of its protocol, and version {PROTOCOL} is known here; upgrade {newer}"
        )
    if isinstance(said, dict) and "python_version" in said:
        return _fabric(connection, said)
    raise ProtocolError(f"{url} is no server that is known here; is the address right?")


def _fabric(connection: Connection, said: dict[str, Any]) -> Spoken:
    """Say which of NDIF's protocols a server speaks: with an nnsight before 0.8 it is the older one.

    One that does not name its nnsight is asked whether it answers on socket.io, as only the older one does.
    """
    # Imported for those who use them: they need packages that nothing else does.
    packages = said.get("packages")
    release = re.match(r"(\d{1,9})\.(\d{1,9})", str(packages.get("nnsight", "")) if isinstance(packages, dict) else "")
    if release is None or tuple(map(int, release.groups())) < (0, 8):
        from ..fabric.older.events import is_there
        from ..fabric.older.facts import OlderFacts
        from ..fabric.older.jobs import OlderJobs

        if release is not None or is_there(connection):
            return Spoken(OlderJobs(connection), OlderFacts(connection))
    from ..fabric.facts import NdifFacts
    from ..fabric.jobs import NdifJobs

    return Spoken(NdifJobs(connection), NdifFacts(connection))


def agree(address: Address, model: NNsight, name: str = "") -> str:
    """Compare before a block is sent, and return what the server calls the model.

    Args:
        address: the server.
        model: the model here.
        name: what the user says that the server calls it.
    """
    connection, wanted = connect(address), name or model._known_as()
    known = _agreed.get((connection, wanted))
    if known is not None and time.monotonic() - known[0] < _AGAIN_AFTER:
        return known[1]
    facts = speak(address).facts
    called = find(facts.offers(), wanted, address.url)
    _warn(address.url, called, differences(facts.environment(called)))
    _agreed[connection, wanted] = time.monotonic(), called
    return called


def find(offers: list[Offer], wanted: str, url: str) -> str:
    """Return what a server calls a model: by its name, or by what it was loaded from; raises RefusedError."""
    if any(offer.name == wanted for offer in offers):
        return wanted
    same = [offer.name for offer in offers if wanted and offer.source == wanted]
    if not same and wanted and "/" not in wanted:
        # The hub knows old models by a bare name, and lists them under their owner's.
        same = [offer.name for offer in offers if offer.source.endswith(f"/{wanted}")]
    if len(same) == 1:
        return same[0]
    if not wanted and len(offers) == 1:
        return offers[0].name
    there = ", ".join(offer.name for offer in offers) or "none"
    asked = f"has no model {wanted!r}" if wanted else "has several models, and nothing says which one this is"
    raise RefusedError(
        f"{url} {asked}; it has: {there}. To name one: `backend=nnsight_remote.RemoteBackend({url!r}, model=NAME)`",
        404,
        "model",
    )


@dataclass(frozen=True)
class Difference:
    """A package whose versions differ, or which is on one side only (None on the other)."""

    package: str
    here: str | None
    there: str | None
    matters: bool

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.package == "python":
            return "use syntax that both know"
        if self.there is None:
            return "ask whoever runs the server to install it" if self.matters else ""
        return f'pip install "{self.package}=={self.there.partition("+")[0]}"'


def differences(there: Environment) -> list[Difference]:
    """Compare what is installed here with a server."""
    rows = [_compared("python", platform.python_version(), there.python, 2)]
    rows += [_compared(name, installed(name), there.packages.get(name), COMPARED[name]) for name in comparable(there)]
    return [row for row in rows if row is not None]


def comparable(there: Environment) -> list[str]:
    """Return the packages that a server of this kind can have."""
    return [name for name in COMPARED if name not in there.foreign]


def installed(name: str) -> str | None:
    """Return the version of a package that is installed here; None if it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _compared(package: str, here: str | None, there: str | None, parts: int) -> Difference | None:
    if here is None and there is None or here == there:
        return None
    # A package that is missing here is the server's own matter: the block does not use it.
    return Difference(package, here, there, here is not None and _leading(here, parts) != _leading(there, parts))


def _leading(version: str | None, parts: int) -> list[str] | None:
    return None if version is None else re.findall(r"\d+", version)[:parts]


def _warn(url: str, model: str, found: list[Difference]) -> None:
    rows = [row for row in found if row.matters and not (row.package != "python" and row.there is None)]
    if not rows or (url, model) in _warned:
        return
    _warned.add((url, model))
    said = "; ".join(f"{row.package} {row.here} here, {row.there} there ({row.advice})" for row in rows)
    warnings.warn(
        f"versions differ between this machine and {url}, so a block may do something else there: {said}. "
        "`ndif.compare()` shows all of them",
        NNsightWarning,
        stacklevel=2,
    )


def forget() -> None:
    """Ask every server anew."""
    for known in (_spoken, _agreed, _warned):
        known.clear()
