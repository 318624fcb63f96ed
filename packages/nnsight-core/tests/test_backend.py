"""Backends: a block that is captured and run somewhere, and what comes back of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import Hooked, Toy, rows, seeded

import nnsight
from nnsight import NNsight, NNsightError, PluginError
from nnsight._core import plugins
from nnsight.plugin import Backend, HereBackend, Pending, Request


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net)


class Recording:
    """Runs a block here, and keeps what it was given."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def run(self, request: Request) -> dict[str, Any]:
        self.requests.append(request)
        return HereBackend().run(request)


def test_saved_names_come_back_and_no_others(model: Any, net: Toy) -> None:
    h = other = "as before"
    with model.trace(rows(), backend="here"):
        h = model.layers[0].output
        other = model.layers[1].output.save()
        new = model.output.save()
        unsaved = new * 2
    hooked = Hooked(net, rows())
    assert h == "as before"
    assert torch.equal(other, hooked["layers.1"]) and torch.equal(new, hooked.result)
    with pytest.raises(NameError):
        unsaved


def test_both_ways_of_saving(model: Any, net: Toy) -> None:
    with model.trace(rows(), backend="here"):
        a = nnsight.save(model.embed.output)
        b = [].save()
        b.append(model.layers[0].output)
        c = model.output.shape[0]
    assert torch.equal(a, net.embed(rows())) and torch.equal(b[0], Hooked(net, rows())["layers.0"])
    with pytest.raises(NameError):
        c


def test_the_block_writes_too(model: Any, net: Toy) -> None:
    factor = 3.0
    with model.trace(rows(), backend="here") as tracer:
        model.layers[0].output = model.layers[0].output * factor
        out = tracer.result.save()
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.0": lambda value: value * 3}).result)


def test_functions_of_the_user_are_called(model: Any, net: Toy) -> None:
    def double(layer: Any) -> None:
        layer.output = layer.output * 2

    with model.trace(rows(), backend="here"):
        double(model.layers[1])
        out = model.output.save()
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": lambda value: value * 2}).result)


def test_invokes(model: Any, net: Toy) -> None:
    x, y = rows(seed=1), rows(seed=2)
    with model.trace(backend="here") as tracer:
        with tracer.invoke(x):
            one = model.output.save()
        with tracer.invoke(y):
            model.layers[0].output[:] = 0
            other = model.output.save()
            unsaved = model.head
    assert torch.allclose(one, net(x), atol=1e-6)
    assert torch.allclose(other, Hooked(net, y, edits={"layers.0": torch.zeros_like}).result, atol=1e-6)
    with pytest.raises(NameError):
        unsaved


def test_edits_hold_there_too(model: Any, net: Toy) -> None:
    with model.edit() as edited:
        model.layers[0].output[:] = 0
    with edited.trace(rows(), backend="here"):
        out = edited.output.save()
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.0": torch.zeros_like}).result)


def test_another_method_and_a_part(model: Any, net: Toy) -> None:
    with model.trace(rows(), fn="twice", backend="here") as tracer:
        out = tracer.result.save()
    assert torch.equal(out, net.twice(rows()))
    with model.layers[0].trace(torch.ones(1, 8), backend="here"):
        out = model.layers[0].output.save()
    assert torch.equal(out, net.layers[0](torch.ones(1, 8)))


def test_a_session_is_one_request(model: Any, net: Toy) -> None:
    backend = Recording()
    with model.session(backend=backend):
        with model.trace(rows(seed=1)):
            h = model.layers[0].output
        with model.trace(rows(seed=2)):
            model.layers[1].output = h
            out = model.output.save()
    first = Hooked(net, rows(seed=1))["layers.0"]
    assert torch.equal(out, Hooked(net, rows(seed=2), edits={"layers.1": lambda _: first}).result)
    [request] = backend.requests
    assert request.session
    with pytest.raises(NameError):
        h


def test_a_backend_gets_the_block_and_what_it_was_opened_with(model: Any) -> None:
    backend = Recording()
    x, size = rows(), 3
    with model.trace(x, fn="twice", backend=backend) as tracer:
        out = tracer.result.save() * size
    [request] = backend.requests
    assert request.node is model and request.inputs == (x,) and request.kwargs == {}
    assert request.method == "twice" and not request.session
    assert request.body.source == "out = tracer.result.save() * size\n" and request.body.target == "tracer"
    assert "size" in request.body.reads and request.body.outer["size"] == 3
    assert request.body.filename == __file__
    assert isinstance(backend, Backend) and isinstance(HereBackend(), Backend)


def test_the_block_does_not_run_where_it_stands(model: Any) -> None:
    class Nowhere:
        def run(self, request: Request) -> dict[str, Any]:
            return {"out": "from elsewhere"}

    ran = []
    with model.trace(rows(), backend=Nowhere()):
        ran.append(1)
        out = model.output
    assert out == "from elsewhere" and not ran


def test_an_error_of_the_block_comes_out_of_the_trace(model: Any, net: Toy) -> None:
    class Mine(Exception):
        pass

    with pytest.raises(Mine, match="as it was"), model.trace(rows(), backend="here"):
        model.layers[0].output
        raise Mine("as it was")
    assert torch.equal(model(rows()), net(rows()))


def test_an_error_of_the_model_comes_out_of_the_trace(model: Any) -> None:
    with pytest.raises(RuntimeError), model.trace(rows(), backend="here"):
        model.layers[0].output = torch.ones(2, 3)


def test_errors_of_ours_are_the_same_there(model: Any) -> None:
    with pytest.raises(nnsight.OutOfOrderError), model.trace(rows(), backend="here"):
        model.layers[1].output
        model.layers[0].output


def test_an_error_of_the_backend_comes_out_of_the_trace(model: Any) -> None:
    class Down:
        def run(self, request: Request) -> dict[str, Any]:
            raise ConnectionError("down")

    with pytest.raises(ConnectionError, match="down"), model.trace(rows(), backend=Down()):
        model.output


def test_what_is_no_backend_is_refused(model: Any) -> None:
    with pytest.raises(NNsightError, match="run"):
        model.trace(rows(), backend=3)
    with pytest.raises(PluginError, match="nowhere"):
        model.trace(rows(), backend="nowhere")


@pytest.mark.parametrize("nothing", [None, False])
def test_here_and_inline_without_a_backend(model: Any, net: Toy, nothing: Any) -> None:
    with model.trace(rows(), remote=nothing):
        out = model.output
    assert torch.equal(out, net(rows()))


def test_saving_after_it_is_refused_again(model: Any) -> None:
    with model.trace(rows(), backend="here"):
        out = model.output.save()
    with pytest.raises(nnsight.SaveOutsideTraceError):
        out.save()
    with pytest.raises(ZeroDivisionError), model.trace(rows(), backend="here"):
        1 / 0
    with pytest.raises(nnsight.SaveOutsideTraceError):
        out.save()


class Waiting:
    """A block that is finished when somebody says so."""

    bind: Any

    def run(self, request: Request) -> Pending:
        self.values = request.replay()
        return self

    def deliver_to(self, bind: Any) -> None:
        self.bind = bind

    def finish(self) -> None:
        self.bind(self.values)


def test_a_block_that_nobody_waits_for_binds_its_values_when_they_are_there(model: Any, net: Toy) -> None:
    out = "not yet"
    with model.trace(rows(), backend=Waiting()) as job:
        out = model.output.save()
    assert out == "not yet" and isinstance(job, Pending)
    job.finish()
    assert torch.equal(out, net(rows()))


def test_a_pending_block_stands_where_the_with_says(model: Any) -> None:
    class Kept:
        pass

    kept = Kept()
    with model.session(backend=Waiting()) as kept.job:
        with model.trace(rows()):
            out = model.output.save()
    assert isinstance(kept.job, Waiting)


def test_not_to_wait_is_for_servers(model: Any) -> None:
    for where in ({}, {"remote": False}, {"remote": "local"}, {"backend": "here"}):
        with pytest.raises(ValueError, match="blocking=False"):
            model.trace(rows(), blocking=False, **where)
        with pytest.raises(ValueError, match="blocking=False"):
            model.session(blocking=False, **where)


def test_what_runs_here_is_not_silently_left_out_elsewhere(model: Any) -> None:
    with pytest.raises(ValueError, match="scan=True"):
        model.trace(rows(), scan=True, backend="here")
    with pytest.raises(ValueError, match="trace=False"):
        model.trace(rows(), trace=False, backend="here")


def test_a_request_knows_its_model(model: Any) -> None:
    backend = Recording()
    with model.layers[0].trace(torch.ones(1, 8), backend=backend):
        model.layers[0].output
    assert backend.requests[0].model is model and backend.requests[0].node is model.layers[0]


def test_frames_of_the_plugin_that_a_backend_came_with_are_folded_away(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "far_away"
    package.mkdir()
    (package / "__init__.py").write_text(
        "class Backend:\n    def run(self, request):\n        raise ConnectionError('down')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import far_away

    def files() -> set[str]:
        with pytest.raises(ConnectionError) as raised, model.trace(rows(), backend=far_away.Backend()):
            model.output
        return {str(entry.path) for entry in raised.traceback}

    assert far_away.__file__ in files()
    monkeypatch.setattr(plugins, "packages", lambda: frozenset({"far_away"}))
    assert files() == {__file__}
