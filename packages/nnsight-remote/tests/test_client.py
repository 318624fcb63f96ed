"""The client against a real server: blocks become jobs, and what they saved, printed or raised comes back."""

from __future__ import annotations

import asyncio
import gc
import pickle
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import SECONDS, Server

import nnsight
import nnsight_remote
from nnsight import CONFIG, NNsight, NNsightError, ndif
from nnsight.plugin import Request
from nnsight.testing import BackendSuite
from nnsight.testing.models import MLP, seeded
from nnsight_remote import JobCancelledError, JobError, JobGoneError, RemoteBackend


class Named(NNsight):
    """A model that the server calls `mlp`."""

    def _known_as(self) -> str:
        return "mlp"


X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two models."""
    models = ["mlp=served_models:mlp", "generating=served_models:generating"]
    with Server(tmp_path_factory.mktemp("client") / "store", models=models).running() as server:
        yield server


@pytest.fixture
def model() -> Any:
    """A model that says what a server calls it, as those that are loaded by name do."""
    return Named(seeded(MLP))


@pytest.fixture(autouse=True)
def as_a_user(server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a user that no other test knows, for the server of the tests, without anything shown."""
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key(request.node.name[:100]))
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)


class ByModule(RemoteBackend):
    """Sends a block to the model that is called like the class of the block's own."""

    def run(self, request: Request) -> Any:
        self.model = type(request.model._module).__name__.lower()
        return super().run(request)


class TestRemote(BackendSuite):
    """The suite that every place to run a block has to pass."""

    def make_backend(self) -> RemoteBackend:
        return ByModule()


def test_a_block_runs_on_the_configured_server(model):
    factor = 3.0
    with model.trace(X, remote=True) as tracer:
        model.layers[0].output = model.layers[0].output * factor
        out = tracer.result.save()
    with model.trace(X) as tracer:
        model.layers[0].output = model.layers[0].output * factor
        here = tracer.result
    assert torch.equal(out, here)


def test_a_block_runs_on_the_server_that_is_named(model, server, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    with model.trace(X, remote=server.url + "/"):
        out = model.output.save()
    assert torch.equal(out, model(X))


def test_a_session_is_one_job(model):
    with model.session(remote=True):
        with model.trace(X):
            hidden = model.layers[0].output
        with model.trace(X):
            model.layers[1].output = hidden
            out = model.output.save()
    with model.trace(X):
        model.layers[1].output = model.layers[0].output
        here = model.output
    assert torch.equal(out, here) and len(ndif.jobs()) == 1


def test_a_model_without_weights_is_traced_and_stays_without(model):
    with torch.device("meta"):
        bare = Named(MLP())
    with bare.scan(X):
        width = bare.layers[0].output.shape[-1]
    with bare.trace(X, remote=True):
        hidden = bare.layers[0].output.save()
    with model.trace(X):
        here = model.layers[0].output
    assert hidden.shape == (3, width) and bare.device.type == "meta" and torch.equal(hidden, here)


def test_what_a_block_prints_is_printed_here(model, capsys):
    with model.trace(X, remote=True):
        print("rows:", model.output.shape[0])
    assert "rows: 3\n" in capsys.readouterr().out


def test_an_error_of_the_block_has_its_own_type_and_the_remote_traceback(model):
    with pytest.raises(ZeroDivisionError) as raised, model.trace(X, remote=True):
        model.output
        1 / 0
    notes = "\n".join(raised.value.__notes__)
    assert "1 / 0" in notes and __file__ in notes
    assert all("nnsight_remote" not in str(entry.path) for entry in raised.traceback)


def test_an_error_of_ours_is_the_same_there(model):
    with pytest.raises(nnsight.OutOfOrderError), model.trace(X, remote=True):
        model.layers[1].output
        model.layers[0].output


class TestWithoutWaiting:
    """blocking=False."""

    def test_the_job_stands_after_as_and_binds_the_values(self, model):
        with model.trace(X, remote=True, blocking=False) as job:
            out = model.output.save()
        with pytest.raises(NameError):
            out  # noqa: F821
        values = job.result(SECONDS)
        assert torch.equal(out, model(X)) and values["out"] is out and job.status == "completed"
        assert job.result() is values

    def test_it_is_waited_for_and_looked_at(self, model):
        with model.session(remote=True, blocking=False) as job:
            with model.trace(X):
                print("in the block")
                out = model.output.save()
        assert job.wait(SECONDS) is job and job.log == "in the block\n"
        seen = job.look()
        assert (seen.state, seen.is_final, seen.has_result, seen.position) == ("completed", True, True, None)

    def test_it_is_awaited(self, model):
        async def main() -> dict[str, Any]:
            with model.trace(X, remote=True, blocking=False) as one:
                a = model.output.save()
            with model.trace(X * 2, remote=True, blocking=False) as other:
                b = model.output.save()
            await asyncio.gather(one, other)
            return {"a": a, "b": b}

        values = asyncio.run(main())
        assert torch.equal(values["a"], model(X)) and torch.equal(values["b"], model(X * 2))

    def test_what_it_raised_is_raised_where_it_is_awaited(self, model):
        async def main() -> None:
            with model.trace(X, remote=True, blocking=False) as job:
                model.output.save()
                raise KeyError("mine")
            await job

        with pytest.raises(KeyError, match="mine"):
            asyncio.run(main())

    def test_waiting_ends_when_its_time_is_over_and_can_be_taken_up(self, model):
        with model.trace(X, remote=True, blocking=False) as job:
            while model.output is not None:
                pass
        with pytest.raises(TimeoutError):
            job.wait(0.2)
        assert job.status == "running"
        job.cancel()
        with pytest.raises(JobCancelledError):
            job.result(SECONDS)
        job.cancel()
        assert job.status == "cancelled"

    def test_an_await_that_is_cancelled_leaves_the_job_alone(self, model):
        async def main() -> Any:
            with model.trace(X, remote=True, blocking=False) as job:
                while model.output is not None:
                    pass
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(job, 0.2)
            return job

        job = asyncio.run(main())
        assert not job.look().is_final
        job.cancel()

    def test_it_is_taken_up_by_its_id_in_another_process(self, model, server):
        with model.trace(X, remote=True, blocking=False) as job:
            out = model.output.save()
        code = """
            import sys, torch, nnsight, nnsight_remote
            nnsight.CONFIG.APP.REMOTE_LOGGING = False
            values = nnsight_remote.job(*sys.argv[1:3], key=sys.argv[3]).result()
            print(values["out"].tolist())
        """
        line = [sys.executable, "-c", textwrap.dedent(code), job.id, server.url, CONFIG.API.APIKEY]
        said = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
        assert said.returncode == 0, said.stderr
        torch.testing.assert_close(torch.tensor(eval(said.stdout)), model(X))

    def test_a_handle_that_is_pickled_is_the_same_job(self, model):
        with model.trace(X, remote=True, blocking=False) as job:
            out = model.output.save()
        data = pickle.dumps(job)
        assert CONFIG.API.APIKEY.encode() not in data
        assert torch.equal(pickle.loads(data).result(SECONDS)["out"], model(X))

    def test_many_are_awaited_at_once(self, model):
        async def main() -> list[dict[str, Any]]:
            jobs = []
            for number in range(30):
                with model.trace(X * number, remote=True, blocking=False) as job:
                    out = model.output.save()
                jobs.append(job)
            return await asyncio.gather(*jobs)

        for number, values in enumerate(asyncio.run(main())):
            assert torch.equal(values["out"], model(X * number))

    def test_without_a_name_for_the_job_nothing_is_sent(self, model):
        with pytest.raises(NNsightError, match="as job"), model.trace(X, remote=True, blocking=False):
            model.output.save()
        assert not ndif.jobs()

    def test_it_has_the_names_of_earlier_releases(self, model):
        with model.trace(X, remote=True, blocking=False) as tracer:
            out = model.output.save()
        backend = tracer.backend
        backend.wait()
        assert (backend.job_id, backend.job_status) == (tracer.id, "completed")
        assert torch.equal(backend()["out"], model(X))

    def test_a_job_that_is_fetched_holds_nothing_of_the_frame(self, model):
        class Kept:
            pass

        def run() -> Any:
            kept = Kept()
            with model.trace(X, remote=True, blocking=False) as job:
                out = model.output.save()
            job.result()
            return job, weakref.ref(kept)

        job, kept = run()
        gc.collect()
        assert kept() is None


def test_a_job_that_reaches_a_limit_says_which(model, server, monkeypatch, request):
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key(f"{request.node.name} brief", run_seconds=0.3))
    with pytest.raises(JobError, match=r"0.3 s") as raised, model.trace(X, remote=True):
        while model.output is not None:
            pass
    assert raised.value.reason == "time" and raised.value.job


def test_a_job_that_is_not_there_says_so():
    with pytest.raises(JobGoneError, match="expired"):
        nnsight_remote.job("nowhere/../status").result()


def test_an_interrupt_ends_the_job(model, monkeypatch):
    def interrupted(job: nnsight_remote.Job, *args: Any) -> None:
        posted.append(job)
        raise KeyboardInterrupt

    posted: list[nnsight_remote.Job] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nnsight_remote.Job, "follow", interrupted)
        with model.trace(X, remote=True):
            while model.output is not None:
                pass
    assert posted[0].wait(SECONDS).status == "cancelled"


def test_a_function_and_a_module_of_the_users_travel(model, tmp_path, monkeypatch):
    (tmp_path / "my_remote_tools.py").write_text("def twice(x):\n    return x * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_remote_tools

    def near(value: Any) -> Any:
        return my_remote_tools.twice(value) + 1

    with model.trace(X, remote=True):
        out = nnsight.save(near(model.output))
    assert torch.equal(out, model(X) * 2 + 1)
    assert Path(my_remote_tools.__file__).parent == tmp_path
