"""Blocks of nnsight 0.8 where they run: read, run, and what they saved written as their client reads it."""

from __future__ import annotations

import gc
import io
import linecache
import pickle
import sys
import types
from typing import Any

import pytest
import torch
from eight_requests import Named, Over, generating, mlp

import nnsight
from nnsight import WireError
from nnsight_remote.fabric.operations import Operations
from nnsight_remote.fabric.payload import encode
from nnsight_remote.server.eight.envelope import Envelope
from nnsight_remote.server.eight.mismatch import check_block
from nnsight_remote.server.eight.reader import read
from nnsight_remote.server.eight.results import write

GIVEN = torch.linspace(-1, 1, 8).view(2, 4)
SCALE = 3.0


def scaled(value: Any, by: float = 1.0) -> Any:
    return value * by * SCALE


@pytest.fixture
def model() -> Named:
    return mlp()


def same(block: Any) -> None:
    there, here = block(Over()), block(None)
    assert len(there) == len(here) and all(torch.equal(one, other) for one, other in zip(there, here))


def test_a_trace_reads_and_writes(model: Named) -> None:
    def block(backend: Any) -> Any:
        with model.trace(GIVEN, backend=backend):
            model.embed.output[:, 1] = 0
            model.layers[0].input = model.layers[0].input * 2
            hidden, out = model.layers[0].output.save(), model.output.save()
        return hidden, out

    same(block)


def test_invokes_have_their_rows(model: Named) -> None:
    def block(backend: Any) -> Any:
        with model.trace(backend=backend) as tracer:
            with tracer.invoke(GIVEN):
                first = model.embed.output.save()
            with tracer.invoke(-GIVEN[:1]):
                model.embed.output *= 2
                other = model.output.save()
        return first, other

    same(block)


def test_a_session_is_run_as_a_whole(model: Named) -> None:
    def block(backend: Any) -> Any:
        with model.session(backend=backend):
            with model.trace(GIVEN):
                hidden = model.embed.output
            with model.trace(-GIVEN):
                model.embed.output = hidden
                out = model.output.save()
        return (out,)

    same(block)


def test_functions_and_closures_travel(model: Named) -> None:
    shift = torch.ones(2, 1)

    def inner(value: Any) -> Any:
        return scaled(value, by=2) + shift

    def block(backend: Any) -> Any:
        with model.trace(GIVEN, backend=backend):
            one = inner(model.embed.output).save()
            two = (lambda value: value - shift)(one).save()
        return one, two

    same(block)


def test_steps_are_walked_and_methods_named(model: Named) -> None:
    model = generating()

    def block(backend: Any) -> Any:
        with model.generate(GIVEN, steps=3, backend=backend) as tracer:
            seen = nnsight.save([])
            for _ in tracer.iter[:2]:
                seen.append(model.second.output.sum())
            result = tracer.result.save()
        return torch.stack(seen), result

    same(block)


def test_an_edit_is_replayed(model: Named) -> None:
    with model.edit() as edited:
        edited.embed.output[:, 0] = 0

    def block(backend: Any) -> Any:
        with edited.trace(GIVEN, backend=backend):
            hidden, out = edited.embed.output.save(), edited.output.save()
        with model.trace(GIVEN, backend=backend):
            plain = model.output.save()
        return hidden, out, plain

    same(block)


def test_a_saved_value_that_is_only_read_comes_back(model: Named) -> None:
    seen: list[Any] = []
    with model.trace(GIVEN, backend=Over()):
        seen.append(model.embed.output)
        nnsight.save(seen)
    assert torch.equal(seen[0], model._module.embed(GIVEN))


def test_aliases_hold(model: Named) -> None:
    renamed = Named(model._module, rename={"embed": "beginning"})

    def block(backend: Any) -> Any:
        with renamed.trace(GIVEN, backend=backend):
            hidden = renamed.beginning.output.save()
        return (hidden,)

    same(block)


def test_without_compression(model: Named) -> None:
    with model.trace(GIVEN, backend=Over(compress=False)):
        out = model.output.save()
    assert torch.equal(out, model._module(GIVEN))


# -- what is refused, by its name -------------------------------------------------------------------------------------


def kept(model: Any, block: Any) -> bytes:
    """Return a block as it would be stored."""
    data: list[bytes] = []

    class Keeping:
        def run(self, request: Any) -> dict[str, Any]:
            data.append(Envelope(True).around(encode(request)))
            return {}

    block(Keeping())
    return data[0]


def stored(thing: Any) -> bytes:
    return Envelope(False).around(pickle.dumps(thing, 4))


def test_something_of_0_8_that_is_not_known_is_named(model: Named) -> None:
    hostile = b"\x80\x04cnnsight.intervention.barrier\nBarrier\n."
    with pytest.raises(WireError, match=r"not understood here: nnsight\.intervention\.barrier\.Barrier"):
        read(Envelope(False).around(hostile), model)


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"nonsense", pickle.dumps(3), pickle.dumps((1, (2, 3, 4)))])
def test_what_is_no_request_is_refused(model: Named, data: bytes) -> None:
    with pytest.raises(WireError):
        read(Envelope(False).around(data), model)
    with pytest.raises(WireError):
        read(Envelope(True).around(data), model)


def test_a_module_that_the_model_here_lacks(model: Named) -> None:
    other = Named(torch.nn.Sequential(torch.nn.Linear(4, 4)))

    def block(backend: Any) -> None:
        with other.trace(GIVEN, backend=backend):
            other.output.save()

    with pytest.raises(WireError, match="the model here has no `0`, so it is another"):
        read(kept(other, block), model)


def test_a_model_whose_names_mean_something_else() -> None:
    class Bert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.output(x)

    with pytest.raises(WireError, match="`model` has a submodule called `output`"):
        read(stored(None), Named(Bert()))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("model.pipe('x').save()", r"`model\.pipe` runs the pipeline"),
        ("model.embed(GIVEN, hook=True).save()", "`hook=True` is not understood"),
        ("model.source.hidden_1.output.save()", "`hidden_1` is counted differently"),
        ("model.source.f_0.source.g_0.output.save()", "`g_0` lies inside another operation"),
    ],
)
def test_what_only_0_8_understands(model: Named, line: str, words: str) -> None:
    class Assigning(type(model._module)):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            hidden = self.embed
            return self.head(torch.tanh(hidden(x)))

    model._module.__class__ = Assigning
    with pytest.raises(WireError, match=rf"{words}.*\(users\.py:1, in a block of nnsight 0\.8\)"):
        check_block(line, "users.py", {"model": model}, Operations(model))
    check_block("model.source.torch_tanh_0.output.save()", "users.py", {"model": model}, Operations(model))


def test_imports_are_looked_at_before_anything_of_them_is_had(model: Named) -> None:
    import colorsys

    def check(name: str) -> None:
        if name.partition(".")[0] in ("colorsys", "decimal"):
            raise ImportError(f"not {name}")

    with pytest.raises(ImportError, match="not colorsys"):
        with model.trace(GIVEN, backend=Over(check=check)):
            colorsys.rgb_to_hls(0, 0, 0)
    with pytest.raises(ImportError, match="not decimal"):
        read(Envelope(False).around(b"\x80\x04cdecimal\nDecimal\n."), model, check)


def test_attention_is_computed_as_the_client_does_it(model: Named) -> None:
    config = types.SimpleNamespace(_attn_implementation="sdpa")
    asked: list[str] = []

    def set_to(name: str) -> None:
        asked.append(name)
        config._attn_implementation = name

    model._module.config = config
    model._module.set_attn_implementation = set_to
    for name in ("sdpa", "eager"):
        with model.trace(GIVEN, backend=Over(model, attn_implementation=name)):
            model.output.save()
    assert asked == ["eager", "sdpa"]
    with pytest.raises(nnsight.NNsightError, match="adapter"):
        with model.trace(GIVEN, backend=Over(model, peft="somebody/adapter")):
            model.output.save()


# -- texts, results ---------------------------------------------------------------------------------------------------


def test_the_texts_are_forgotten_with_the_request(model: Named) -> None:
    def unlike_others(value: Any) -> Any:
        return value + 1

    before = linecache.cache.get(__file__)
    with model.trace(GIVEN, backend=Over()):
        unlike_others(model.embed.output).save()
    gc.collect()
    assert not any(name.startswith("[unlike_others:") for name in linecache.cache)
    assert linecache.cache.get(__file__) is before


def test_an_error_has_the_users_line(model: Named, monkeypatch: pytest.MonkeyPatch) -> None:
    # The traceback keeps the request, and so its texts, longer than this test.
    monkeypatch.setattr(linecache, "cache", dict(linecache.cache))

    def fails(value: Any) -> Any:
        return value.no_such_thing

    with pytest.raises(AttributeError) as caught:
        with model.trace(GIVEN, backend=Over()):
            fails(model.embed.output).save()
    at, files = caught.tb, []
    while at is not None:
        files.append(at.tb_frame.f_code.co_filename)
        at = at.tb_next
    assert files[-1].startswith(f"[fails:{fails.__code__.co_firstlineno}] {__file__}")
    assert linecache.getline(files[-1], fails.__code__.co_firstlineno + 1).strip() == "return value.no_such_thing"


def read_there(data: bytes) -> Any:
    """Read a result as nnsight 0.8 does, whose classes are named after their paths here."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("pkgutil", "resolve_name"):
                return lambda path: type(path.rpartition(":")[2], (), {})
            return super().find_class(module, name)

    reading = types.ModuleType("reading")
    reading.Unpickler, reading.load = Unpickler, pickle.load  # type: ignore[attr-defined]
    return torch.load(io.BytesIO(data), pickle_module=reading, weights_only=False)


def test_a_cache_is_written_as_theirs(model: Named) -> None:
    with model.trace(GIVEN) as tracer:
        cache = tracer.cache(include_inputs=True)
    view = read_there(write({"cache": cache}, compress=False))["cache"]
    assert type(view).__name__ == "CacheView" and view._envoy is None and type(view._cache).__name__ == "Cache"
    assert list(view._cache.entries) == list(cache)
    [entry] = view._cache.entries["model.embed"]
    assert type(entry).__name__ == "Entry" and torch.equal(entry.output, model._module.embed(GIVEN))
    assert torch.equal(entry.inputs[0][0], GIVEN)


def test_nothing_of_ours_is_written(model: Named) -> None:
    with pytest.raises(WireError, match=r"`model\.embed` stands for a module, which is no result"):
        write({"envoy": model.embed}, compress=False)
    with pytest.raises(WireError, match="a Config of this server's nnsight"):
        write({"config": nnsight.CONFIG}, compress=False)
    with pytest.raises(WireError, match="cannot be sent.*Save tensors"):
        write({"local": lambda: 1}, compress=False)


def test_a_tensor_keeps_what_belongs_to_it(model: Named) -> None:
    with model.trace() as tracer:
        with tracer.invoke(GIVEN):
            rows = model.embed.output
        with tracer.invoke(GIVEN):
            model.embed.output  # noqa: B018
    shared = rows[:1]
    found = torch.load(io.BytesIO(write({"rows": rows, "shared": shared}, compress=False)), weights_only=True)
    assert torch.equal(found["rows"], rows) and found["rows"].requires_grad == rows.requires_grad
    assert found["rows"].untyped_storage().data_ptr() == found["shared"].untyped_storage().data_ptr()


def test_nothing_of_0_8_is_installed_here() -> None:
    assert not any(name.startswith(("nnsight.modeling", "nnsight.tracing")) for name in sys.modules)
