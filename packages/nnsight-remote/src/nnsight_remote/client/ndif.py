"""`nnsight.ndif`: what a server offers, and whether this machine goes with it.

    >>> from nnsight import ndif
    >>> ndif.status()                              # doctest: +SKIP
    >>> ndif.is_model_running("gpt2")              # doctest: +SKIP

The name is that of the National Deep Inference Fabric; everything here works for any server, given as `host=`.
"""

from __future__ import annotations

import time
from typing import Any

from nnsight import register
from nnsight.plugin import NNsight

from .address import Address
from .errors import RefusedError
from .handshake import comparable, differences, find, installed, speak
from .job import Job, job
from .protocol import Offer
from .tables import Table

__all__ = ["compare", "is_model_running", "job", "jobs", "register", "status", "whoami"]


def status(host: str | None = None) -> Table[Offer]:
    """List the models of a server; what is returned is a list, and shows itself as a table.

    Args:
        host: the server; the configured one if not given.

    Raises:
        RemoteError: the server cannot be asked; the kinds are in `nnsight_remote`.
    """
    address = Address.find(host)
    offers = speak(address).facts.offers()
    return Table(
        f"models on {address.url}",
        ("model", "loaded from", "state", "waiting", ""),
        (
            (one, (one.name, "" if one.source == one.name else one.source, one.state, one.queued, one.note))
            for one in offers
        ),
        "there are no models",
    )


def is_model_running(model: str | NNsight, host: str | None = None) -> bool:
    """Say whether the weights of a model are there on a server, so that a block for it begins at once.

    Args:
        model: what the server calls it, or what it was loaded from; or a model of yours.
        host: the server; the configured one if not given.
    """
    address = Address.find(host)
    offers = speak(address).facts.offers()
    try:
        called = find(offers, model if isinstance(model, str) else model._known_as(), address.url)
    except RefusedError:
        return False
    return any(offer.is_ready for offer in offers if offer.name == called)


def compare(host: str | None = None, model: str = "") -> Table[Any]:
    """Compare what is installed here with a server; what is returned is a list of rows, and shows itself as a table.

    Args:
        host: the server; the configured one if not given.
        model: as its blocks meet it, if the server runs models in environments of their own.
    """
    address = Address.find(host)
    there = speak(address).facts.environment(model)
    differing = {row.package: row for row in differences(there)}
    rows: list[tuple[Any, tuple[str, ...]]] = []
    for package in ("python", *comparable(there)):
        row = differing.get(package)
        if row is not None:
            verdict = "differs" if row.matters else "differs a little" if row.here and row.there else ""
            rows.append(
                (row, (package, row.here or "not installed", row.there or "not installed", verdict, row.advice))
            )
        elif package == "python" or installed(package) is not None:
            said = there.python if package == "python" else there.packages[package]
            rows.append((None, (package, said, said, "the same", "")))
    return Table(f"versions here and on {address.url}", ("package", "here", "there", "", "what to do"), rows)


def jobs(host: str | None = None, count: int = 20) -> Table[Job]:
    """List your newest jobs on a server; each is a `Job`, whose result can be fetched."""
    address = Address.find(host)
    now = time.time()
    found = speak(address).facts.jobs(count)
    rows = (
        (
            Job(one.id, address),
            (one.id, one.model, one.state, f"{now - one.details.get('submitted', now):.0f} s ago", one.reason),
        )
        for one in found
    )
    return Table(f"jobs on {address.url}", ("id", "model", "state", "handed in", ""), rows, "there are no jobs")


def whoami(host: str | None = None) -> dict[str, Any]:
    """Say whose key is used for a server, and what it allows: at least `name`."""
    return dict(speak(Address.find(host)).facts.whoami())
