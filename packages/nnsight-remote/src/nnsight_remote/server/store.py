"""`Store`: what survives the server, in one folder: a SQLite database, and a file for each request and each result.

The one idea: a file is complete before a row speaks of it, and a row is gone before its file is; whatever a crash leaves
between the two is a file that nobody knows, which the next start sweeps away. Tables stay small, bytes stay out of
them. SQLite writes ahead (WAL): what was committed survives the death of the server at any moment; the last commits
before the whole machine loses its power may be lost, never half of one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from .jobs import FINAL, Failure, Job

VERSION = 3
_SCHEMA = """
create table if not exists jobs (
    id text primary key, user text not null, model text not null, state text not null, submitted real not null,
    request_id text not null, request_bytes integer not null, attempts integer not null, started real, finished real,
    expires real, result_bytes integer not null, failure text, streams integer not null,
    streamed_bytes integer not null, stages text not null
);
create index if not exists jobs_by_user on jobs (user, submitted);
create index if not exists jobs_by_state on jobs (state, submitted);
create unique index if not exists jobs_by_request on jobs (user, request_id) where request_id != '';
create table if not exists events (
    job text not null, number integer not null, at real not null, kind text not null, text text not null,
    primary key (job, number)
) without rowid;
create table if not exists models (name text primary key, spec text not null);
create table if not exists keys (
    name text primary key, hash text not null unique, role text not null, limits text not null, created real not null
);
"""
_COLUMNS = tuple(Job.__dataclass_fields__)


class StoreInUse(Exception):
    """Another server works on this folder."""


class Store:
    """Jobs, their events and their files, in a folder that only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        for name in ("requests", "results", "values"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        self._lock: IO[str] | None = None
        self.connection = sqlite3.connect(folder / "jobs.sqlite", isolation_level=None, timeout=10)
        self.connection.execute("pragma journal_mode = wal")
        self.connection.execute("pragma synchronous = normal")
        (found,) = self.connection.execute("pragma user_version").fetchone()
        if found not in (0, VERSION):
            self.connection.close()
            raise StoreInUse(f"{folder} was written by another version of the server ({found}, this one has {VERSION})")
        with self.transaction():
            for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
                self.connection.execute(statement)
            self.connection.execute(f"pragma user_version = {VERSION}")

    def lock(self) -> None:
        """Claim the folder for this process, as a server does; raise StoreInUse if another has it."""
        import fcntl  # not on Windows, where no server runs

        file = open(self.folder / "server.lock", "w")  # closed by `close`, and by the end of the process
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise StoreInUse(f"another server works on {self.folder}; give this one a folder of its own") from None
        self._lock = file

    def close(self) -> None:
        """Let go of the folder."""
        self.connection.close()
        if self._lock:
            self._lock.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do several things or none of them."""
        self.connection.execute("begin immediate")
        try:
            yield
        except BaseException:
            # SQLite has rolled back already where the disk was full.
            if self.connection.in_transaction:
                self.connection.execute("rollback")
            raise
        self.connection.execute("commit")

    def request_path(self, job: str) -> Path:
        """Where the bytes of a request lie."""
        return self.folder / "requests" / job

    def result_path(self, job: str) -> Path:
        """Where the bytes of a result, or of an exception, lie."""
        return self.folder / "results" / job

    def packed_path(self, job: str) -> Path:
        """Where a result lies as it is sent to other machines, once one has asked for it."""
        return self.folder / "results" / f"{job}.packed"

    def values_path(self, job: str) -> Path:
        """Where the values lie that a job hands over while it runs."""
        return self.folder / "values" / job

    def save(self, job: Job) -> None:
        """Write a job as it is now."""
        failure = json.dumps(asdict(job.failure)) if job.failure else None
        values = {**vars(job), "failure": failure, "stages": json.dumps(dict(job.stages))}
        marks = ", ".join(f":{name}" for name in _COLUMNS)
        update = ", ".join(f"{name} = :{name}" for name in _COLUMNS[1:])
        self.connection.execute(
            f"insert into jobs ({', '.join(_COLUMNS)}) values ({marks}) on conflict (id) do update set {update}", values
        )

    def get(self, job: str) -> Job | None:
        """Read a job."""
        return next(self._jobs("where id = ?", job), None)

    def find(self, user: str, request_id: str) -> Job | None:
        """Read the job that a user handed in under a name of the client's own."""
        return next(self._jobs("where user = ? and request_id = ?", user, request_id), None)

    def latest(self, user: str | None, count: int) -> list[Job]:
        """The newest jobs of one user, or of all."""
        where, values = ("where user = ?", (user,)) if user is not None else ("", ())
        return list(self._jobs(f"{where} order by submitted desc, rowid desc limit ?", *values, count))

    def unfinished(self) -> list[Job]:
        """All jobs that wait, or ran when this was written; in the order in which they came."""
        marks = ", ".join("?" * len(FINAL))
        return list(self._jobs(f"where state not in ({marks}) order by submitted, rowid", *sorted(FINAL)))

    def kept_bytes(self, user: str) -> int:
        """How much lies here for a user to fetch."""
        lying = "coalesce(sum(result_bytes + streamed_bytes), 0)"
        row = self.connection.execute(f"select {lying} from jobs where user = ?", (user,))
        return int(row.fetchone()[0])

    def delete(self, job: str) -> None:
        """Forget a job and throw its files away."""
        with self.transaction():
            self.connection.execute("delete from jobs where id = ?", (job,))
            self.connection.execute("delete from events where job = ?", (job,))
        self.request_path(job).unlink(missing_ok=True)
        self.result_path(job).unlink(missing_ok=True)
        self.packed_path(job).unlink(missing_ok=True)
        self.values_path(job).unlink(missing_ok=True)

    def expire(self, now: float) -> list[str]:
        """Forget the jobs whose time has come; return their ids."""
        gone = [job.id for job in self._jobs("where expires is not null and expires <= ?", now)]
        for job in gone:
            self.delete(job)
        return gone

    def sweep(self) -> int:
        """Throw away files that no row speaks of, and requests that are done with: a crash leaves such. Return how many."""
        known = {job: state in FINAL for job, state in self.connection.execute("select id, state from jobs")}
        kept = [path for name in ("results", "values") for path in (self.folder / name).iterdir()]
        strays = [path for path in kept if path.name not in known]
        strays += [path for path in (self.folder / "requests").iterdir() if known.get(path.name, True)]
        for path in strays:
            path.unlink()
        return len(strays)

    def keep_model(self, name: str, spec: str) -> None:
        """Write down a model that was added while the server ran."""
        self.connection.execute("insert or replace into models values (?, ?)", (name, spec))

    def drop_model(self, name: str) -> None:
        """Forget it."""
        self.connection.execute("delete from models where name = ?", (name,))

    def kept_models(self) -> list[str]:
        """The models that were written down, in the order in which they came."""
        return [spec for (spec,) in self.connection.execute("select spec from models order by rowid")]

    def add_event(self, job: str, number: int, kind: str, text: str) -> None:
        """Write down that something happened to a job."""
        self.connection.execute("insert into events values (?, ?, ?, ?, ?)", (job, number, time.time(), kind, text))

    def forget_values(self, job: str) -> None:
        """Forget what a job handed over: it is run again, and begins anew."""
        self.connection.execute("delete from events where job = ? and kind in ('value', 'cut')", (job,))

    def events(self, job: str, after: int, most: int = -1) -> list[tuple[int, float, str, str]]:
        """(number, time, kind, text) of what happened to a job, from behind a number on; `most` of them, or all."""
        found = self.connection.execute(
            "select number, at, kind, text from events where job = ? and number > ? order by number limit ?",
            (job, after, most),
        )
        return found.fetchall()

    def last_event(self, job: str) -> int:
        """The number of the last event of a job; 0 if there is none."""
        row = self.connection.execute("select coalesce(max(number), 0) from events where job = ?", (job,)).fetchone()
        return int(row[0])

    def _jobs(self, where: str, *values: Any) -> Iterator[Job]:
        rows = self.connection.execute(f"select {', '.join(_COLUMNS)} from jobs {where}", values).fetchall()
        for row in rows:
            found = dict(zip(_COLUMNS, row))
            found["failure"] = Failure(**json.loads(found["failure"])) if found["failure"] else None
            found["streams"] = bool(found["streams"])
            yield Job(**{**found, "stages": json.loads(found["stages"])})
