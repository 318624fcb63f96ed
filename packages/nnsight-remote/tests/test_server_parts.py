"""The parts of the server that need no process: turns, limits, keys, the store, admission, what is remembered."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsight_remote.server.admission import Admission, Refused
from nnsight_remote.server.events import Events
from nnsight_remote.server.jobs import Failure, Job
from nnsight_remote.server.keys import Keyring, User
from nnsight_remote.server.limits import Limits, parse_limits
from nnsight_remote.server.queue import FairQueue, QueueFull
from nnsight_remote.server.store import Store, StoreInUse


@pytest.fixture
def store_folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(store_folder):
    store = Store(store_folder)
    yield store
    store.close()


def a_job(number, user="ada", state="queued", **more):
    return Job(f"{number:032x}", user, "toy", state, submitted=float(number), **more)


def test_users_take_turns_and_the_jobs_of_one_stay_in_order():
    queue = FairQueue(100)
    for number in range(5):
        queue.push("greedy", f"g{number}")
    queue.push("late", "l0")
    queue.push("later", "x0")
    queue.push("late", "l1")
    assert [queue.pop() for _ in range(len(queue))] == ["g0", "l0", "x0", "g1", "l1", "g2", "g3", "g4"]


@given(st.lists(st.sampled_from("abcd"), max_size=40))
def test_a_position_is_how_many_are_taken_before(users):
    queue = FairQueue(100)
    for number, user in enumerate(users):
        queue.push(user, f"{user}{number}")
    foretold = {f"{user}{number}": queue.position(f"{user}{number}") for number, user in enumerate(users)}
    taken = [queue.pop() for _ in users]
    assert foretold == {job: place for place, job in enumerate(taken)}
    assert queue.position("a0") is None
    # Nobody has more than one turn before everybody who waits has had one.
    left = Counter(users)
    while taken:
        round_ = [job[0] for job in taken[: sum(count > 0 for count in left.values())]]
        assert sorted(round_) == sorted(user for user, count in left.items() if count > 0)
        del taken[: len(round_)]
        left.subtract(round_)


def test_a_full_queue_refuses_and_one_that_was_accepted_before_a_restart_is_not_refused():
    queue = FairQueue(1)
    queue.push("ada", "1")
    with pytest.raises(QueueFull):
        queue.push("bob", "2")
    queue.push("bob", "2", beyond_bound=True)
    assert queue.remove("1") and not queue.remove("1")
    assert queue.pop() == "2"


def test_a_queue_wakes_who_waits_for_a_job():
    async def play():
        queue = FairQueue(3)
        waiting = asyncio.create_task(queue.arrival())
        await asyncio.sleep(0)
        assert not waiting.done()
        queue.push("ada", "1")
        await asyncio.wait_for(waiting, 10)
        return queue.pop()

    assert asyncio.run(play()) == "1"


def test_limits_are_read_with_units():
    assert parse_limits(["memory-bytes=2G", "run_seconds=1.5"]) == {"memory_bytes": 2 << 30, "run_seconds": 1.5}
    assert Limits().but({"queued": 3}).queued == 3


@pytest.mark.parametrize(
    "word", ["memory_bytes", "memory_bytes=-1", "memory=1G", "queued=1.5", "queued=nan", "queued=x"]
)
def test_a_limit_that_makes_no_sense_is_refused(word):
    with pytest.raises(ValueError, match="limit"):
        parse_limits([word])


def test_a_key_is_known_by_its_hash_only(store, store_folder):
    keyring = Keyring(store)
    key = keyring.add("ada", "admin", {"queued": 7})
    assert keyring.find(key) == keyring.users()[0]
    user = keyring.find(key)
    assert (user.name, user.is_admin, user.limits_under(Limits()).queued) == ("ada", True, 7)
    assert keyring.find(key + "x") is None and keyring.find("") is None
    store.connection.execute("pragma wal_checkpoint(truncate)")
    secret = key.removeprefix("nns_").encode()
    assert not any(secret in path.read_bytes() for path in store_folder.rglob("*") if path.is_file())


def test_a_replaced_or_removed_key_opens_nothing(store):
    keyring = Keyring(store)
    first = keyring.add("ada", limits={"queued": 7})
    with pytest.raises(ValueError, match="has a key already"):
        keyring.add("ada")
    second = keyring.replace("ada")
    assert keyring.find(first) is None and keyring.find(second).limits == {"queued": 7}
    assert keyring.remove("ada") and not keyring.remove("ada")
    assert keyring.find(second) is None


def test_only_the_owner_of_the_folder_can_read_it(store, store_folder):
    assert [oct(path.stat().st_mode & 0o077) for path in (store_folder, store_folder / "results")] == ["0o0"] * 2


def test_one_server_works_on_a_folder(store, store_folder):
    store.lock()
    other = Store(store_folder)  # `nnsight serve keys` does so while a server runs
    with pytest.raises(StoreInUse, match="another server"):
        other.lock()
    store.close()
    other.lock()
    other.close()


def test_a_store_of_another_version_is_left_alone(store, store_folder):
    store.connection.execute("pragma user_version = 999")
    store.close()
    with pytest.raises(StoreInUse, match="999"):
        Store(store_folder)


def test_a_job_is_read_as_it_was_written(store):
    job = a_job(1, state="failed", failure=Failure("error", "no", "ValueError", "Traceback", True), finished=3.0)
    store.save(job)
    assert store.get(job.id) == job
    store.save(job.but(state="completed", failure=None))
    assert store.get(job.id).failure is None
    assert store.get("nobody") is None


def test_unfinished_jobs_come_in_the_order_in_which_they_were_handed_in(store):
    for number, state in ((3, "queued"), (1, "running"), (2, "completed"), (4, "queued")):
        store.save(a_job(number, state=state))
    assert [int(job.id, 16) for job in store.unfinished()] == [1, 3, 4]
    assert [int(job.id, 16) for job in store.latest("ada", 2)] == [4, 3]


def test_a_request_id_names_one_job_of_a_user(store):
    store.save(a_job(1, request_id="mine"))
    store.save(a_job(2, user="bob", request_id="mine"))
    assert store.find("bob", "mine").id == a_job(2).id
    with pytest.raises(sqlite3.IntegrityError):
        store.save(a_job(3, request_id="mine"))


def test_what_expired_is_gone_with_its_files(store):
    store.save(a_job(1, state="completed", expires=10.0, result_bytes=5))
    store.save(a_job(2, state="completed", expires=20.0, result_bytes=7))
    for number in (1, 2):
        store.result_path(a_job(number).id).write_bytes(b"result")
        store.add_event(a_job(number).id, 1, "state", "completed")
    assert store.kept_bytes("ada") == 12
    assert store.expire(15.0) == [a_job(1).id]
    assert store.get(a_job(1).id) is None and store.events(a_job(1).id, 0) == []
    assert not store.result_path(a_job(1).id).exists() and store.result_path(a_job(2).id).exists()
    assert store.kept_bytes("ada") == 7


def test_files_that_no_row_speaks_of_are_swept_away(store):
    store.save(a_job(1))
    store.request_path(a_job(1).id).write_bytes(b"a request")
    store.request_path("half").write_bytes(b"what a crash left")
    assert store.sweep() == 1
    assert store.request_path(a_job(1).id).exists() and not store.request_path("half").exists()


def test_a_transaction_is_done_as_a_whole_or_not_at_all(store):
    with pytest.raises(ZeroDivisionError):
        with store.transaction():
            store.save(a_job(1))
            1 / 0
    assert store.get(a_job(1).id) is None


def test_a_follower_who_was_cut_off_misses_nothing(store):
    async def play():
        events = Events(store)
        store.save(a_job(1))
        job = a_job(1).id
        for text in ("queued", "running"):
            events.add(job, "state", text)
        first = events.follow(job)
        seen = [await anext(first), await anext(first)]
        await first.aclose()
        events.add(job, "log", "while nobody listened")
        rest = []

        async def listen():
            async for event in events.follow(job, after=seen[-1].number):
                rest.append(event.text)

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        store.save(a_job(1, state="completed"))
        events.add(job, "state", "completed")
        events.ring(job, final=True)
        await asyncio.wait_for(listening, 10)
        return [event.text for event in seen], rest

    assert asyncio.run(play()) == (["queued", "running"], ["while nobody listened", "completed"])


class NoModels:
    def __iter__(self):
        return iter(())

    def get(self, name):
        return None


def test_the_rate_is_counted_over_a_minute(store):
    now = [1000.0]
    admission = Admission(store, NoModels(), Limits(requests_per_minute=2), lambda name: 0, lambda: now[0])
    user = User("ada")
    admission.admit(user)
    now[0] += 20
    admission.admit(user)
    with pytest.raises(Refused) as refused:
        admission.admit(user)
    assert (refused.value.status, refused.value.reason, refused.value.retry_after) == (429, "rate", 40)
    admission.admit(User("bob"))
    now[0] += 40
    admission.admit(user)


def test_results_that_lie_here_are_counted(store):
    store.save(a_job(1, state="completed", result_bytes=100, expires=time.time() + 100))
    admission = Admission(store, NoModels(), Limits(kept_bytes=100), lambda name: 0)
    with pytest.raises(Refused, match="fetch or delete"):
        admission.admit(User("ada"))
    admission.admit(User("bob"))
