"""`FairQueue`: whose turn it is.

The one idea: users take turns, and each user's own jobs stay in order. Whoever hands in a thousand jobs delays the next
user by one. A queue is bounded: what does not fit is refused at once, not kept somewhere else. One queue serves one
model; which jobs are in it after a restart, the store says.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class QueueFull(Exception):
    """There is no room for another job."""


class FairQueue:
    """Jobs that wait, by user; for one event loop."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._users: OrderedDict[str, deque[str]] = OrderedDict()  # first: whose turn is next
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._users.values()))

    def waiting(self, user: str) -> int:
        """How many jobs of one user wait here."""
        return len(self._users.get(user, ()))

    def push(self, user: str, job: str, *, beyond_bound: bool = False) -> None:
        """Put a job behind the user's others. `beyond_bound` is for those that were accepted before a restart."""
        if len(self) >= self._bound and not beyond_bound:
            raise QueueFull(f"{len(self)} jobs wait already")
        self._users.setdefault(user, deque()).append(job)
        self._arrived.set()

    async def arrival(self) -> None:
        """Wait until there is a job to take."""
        while not self._users:
            self._arrived.clear()
            await self._arrived.wait()

    def pop(self) -> str:
        """Take a job: the first of the user whose turn it is, who then is last. Raises KeyError if there is none."""
        user, jobs = self._users.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._users[user] = jobs
        return job

    def remove(self, job: str) -> bool:
        """Take a job out of turn; say whether it was here."""
        for user, jobs in self._users.items():
            if job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._users[user]
                return True
        return False

    def position(self, job: str) -> int | None:
        """How many jobs would be taken before this one if nobody handed in more; None if it is not here."""
        users = list(self._users.values())
        for turn, jobs in enumerate(users):
            if job in jobs:
                own = jobs.index(job)
                earlier = sum(min(len(others), own + 1) for others in users[:turn])
                return own + earlier + sum(min(len(others), own) for others in users[turn + 1 :])
        return None
