"""`Keyring` and `User`: who is who.

The one idea: a key is 256 random bits that are shown once and never kept; the store has its hash, by which its owner is
found. The bits are random, so a plain hash cannot be guessed backwards, and nobody needs a slow one.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .limits import Limits
from .store import Store

Role = Literal["user", "admin"]
PREFIX = "nns_"


@dataclass(frozen=True)
class User:
    """Whoever holds a key.

    Attributes:
        name: what jobs are filed under.
        role: an `admin` sees all jobs, and loads and evicts models.
        limits: those of the server that are different for this user.
        created: when the key was made, in seconds since the epoch.
    """

    name: str
    role: Role = "user"
    limits: Mapping[str, float] = field(default_factory=dict)
    created: float = 0.0

    @property
    def is_admin(self) -> bool:
        """Whether all jobs and models are this user's business."""
        return self.role == "admin"

    def limits_under(self, general: Limits) -> Limits:
        """This user's limits, given those of everybody."""
        return general.but(self.limits)


class Keyring:
    """The keys in a store. Changes count from the next request on, in a running server too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection = store.connection

    def add(self, name: str, role: Role = "user", limits: Mapping[str, float] | None = None) -> str:
        """Make a key for a new user and return it: this is the only time that it can be seen."""
        if not name or len(name) > 100 or not name.isprintable():
            raise ValueError(f"a user's name is 1 to 100 printable characters, not {name!r}")
        if self.named(name):
            raise ValueError(f"{name!r} has a key already; remove it first, or pass --replace for a new one")
        return self._put(name, role, limits or {})

    def replace(self, name: str) -> str:
        """Make a new key for a user who has one; the old one is worth nothing from then on."""
        if user := self.named(name):
            return self._put(user.name, user.role, user.limits)
        raise ValueError(f"{name!r} has no key; there are {', '.join(user.name for user in self.users()) or 'none'}")

    def remove(self, name: str) -> bool:
        """Let a user in no more; say whether there was one. Jobs and results stay until they expire."""
        return self._connection.execute("delete from keys where name = ?", (name,)).rowcount > 0

    def users(self) -> list[User]:
        """All who have a key, by name."""
        rows = self._connection.execute("select name, role, limits, created from keys order by name").fetchall()
        return [User(name, role, json.loads(limits), created) for name, role, limits, created in rows]

    def find(self, key: str) -> User | None:
        """Return the user whose key this is."""
        return self._one("hash", _hash(key))

    def named(self, name: str) -> User | None:
        """Return the user who is called so."""
        return self._one("name", name)

    def _one(self, column: str, value: str) -> User | None:
        row = self._connection.execute(
            f"select name, role, limits, created from keys where {column} = ?", (value,)
        ).fetchone()
        return User(row[0], row[1], json.loads(row[2]), row[3]) if row else None

    def _put(self, name: str, role: Role, limits: Mapping[str, float]) -> str:
        key = PREFIX + secrets.token_urlsafe(32)
        with self._store.transaction():
            self._connection.execute("delete from keys where name = ?", (name,))
            self._connection.execute(
                "insert into keys values (?, ?, ?, ?, ?)",
                (name, _hash(key), role, json.dumps(dict(limits)), time.time()),
            )
        return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
