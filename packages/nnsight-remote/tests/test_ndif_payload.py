"""What goes to NDIF, and what is refused before it does."""

from __future__ import annotations

import ast
import io
import pickle
from typing import Any

import cloudpickle
import pytest
import torch

import nnsight
from nnsight import NNsight, WireError
from nnsight_remote.fabric.payload import encode


class Named(NNsight):
    """A model that NDIF could have."""

    task = "text-generation"
    name_or_path = "tests/tiny"

    def generate(self, *given: Any, backend: Any) -> Any:
        return nnsight.plugin.open_trace(self, given, {}, method="generate", backend=backend)


class Sent:
    """Keeps what would be sent."""

    def run(self, request: Any) -> dict[str, Any]:
        self.data = encode(request, compress=False)
        self.packed = encode(request)
        return {}


@pytest.fixture
def model() -> Any:
    part = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    return Named(torch.nn.Sequential(part, torch.nn.Linear(4, 2)), rename={"0": "first"})


class Stub:
    """Stands for any class and any object of nnsight 0.8."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def _call(self) -> None:
        """What a trace of a model over there calls."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class Reader(pickle.Unpickler):
    """Reads a payload where nnsight 0.8 is not installed."""

    def persistent_load(self, name: Any) -> Any:
        return f"<{name}>"

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("pkgutil", "resolve_name"):
            return lambda path: type(path, (Stub,), {})
        return super().find_class(module, name)


def read(data: bytes) -> Any:
    return Reader(io.BytesIO(data)).load()


def test_a_payload_says_the_tree_the_text_and_the_names(model: Any) -> None:
    sent, unused, scale = Sent(), object(), 3.0
    with model.trace(torch.ones(1, 4), backend=sent) as tracer:
        value = (model[1].output * scale).save()  # noqa: F841
        tracer.stop()
    assert unused is not None
    tracer, (source, outer, inner) = read(sent.data)
    assert type(tracer).__name__ == "nnsight.intervention.tracer:InterleavingTracer"
    assert source.strip().splitlines()[0].startswith("value = (model[1].output * scale).save()")
    assert (
        len(source) - len(source.lstrip("\n")) == tracer_line(test_a_payload_says_the_tree_the_text_and_the_names) + 2
    )
    assert inner["tracer"] is tracer and inner["scale"] == 3.0 and inner["model"] is tracer.envoy
    assert set(inner) == {"tracer", "scale", "model"} and outer == {}
    tree = tracer.envoy
    assert tree._module == "<Module:model>" and tree.interleaver == "<Interleaver>" and tree.pipeline == "<Pipeline>"
    assert [child.path for child in tree._children] == ["model.0", "model.1"]
    assert (
        vars(tree)["0"] is tree._child_map["0"] is vars(tree)["first"]
        and vars(vars(tree)["0"])["1"].path == "model.0.1"
    )
    assert torch.equal(tracer.args[0], torch.ones(1, 4)) and tracer.info.frame.f_code.co_filename == __file__


def tracer_line(function: Any) -> int:
    """Return the number of lines before the `with` in a test."""
    return int(function.__code__.co_firstlineno)


def test_a_payload_is_small_and_written_as_their_clients_write_it(model: Any) -> None:
    sent = Sent()
    with model.trace(torch.ones(1, 4), backend=sent):
        model[1].output.save()
    assert len(sent.packed) < 1500 and sent.packed[:4] == b"\x28\xb5\x2f\xfd"
    assert sent.data[:2] == b"\x80\x04"


def test_modules_and_weights_of_the_model_go_by_name(model: Any) -> None:
    sent, weight, module = Sent(), model[1].weight, model[1]._module
    with model.trace(torch.ones(1, 4), backend=sent):
        (model[0].output @ weight.T + module.bias).save()
    assert b"Module:model.1" in sent.data and b"_rebuild_tensor" not in sent.data.split(b"Module:model.1")[-1]


def test_modules_of_the_users_are_by_value_only_meanwhile(model: Any) -> None:
    before = set(cloudpickle.list_registry_pickle_by_value())
    sent = Sent()
    with model.trace(torch.ones(1, 4), backend=sent):
        assert helped(model[0].output).save() is not None
    assert set(cloudpickle.list_registry_pickle_by_value()) == before
    _, (_, outer, _) = read(sent.data)
    made = outer["helped"]
    assert type(made).__name__ == "nnsight.intervention.serialization:_load_function"
    assert made.given[0].startswith("def helped(value: Any)") and made.given[1] == "helped"
    assert made.given[5:] == (__file__, helped.__code__.co_firstlineno)


def helped(value: Any) -> Any:
    return value + 1


def refused(model: Any, run: Any, words: str) -> None:
    with pytest.raises(WireError, match=words):
        run(Sent())


def test_what_a_tracer_over_there_does_not_have_is_refused(model: Any) -> None:
    def tokens(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend) as tracer:
            tracer.tokens.save()

    def cache(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend) as tracer:
            tracer.cache().save()

    def log(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend) as tracer:
            tracer.log("x")

    refused(model, tokens, r"no `tracer\.tokens`.*test_ndif_payload\.py:\d+.*keep the ids")
    refused(model, cache, r"no `tracer\.cache`.*save the outputs")
    refused(model, log, r"no `tracer\.log`.*print")


def test_what_other_libraries_keep_on_nodes_that_all_trees_share_is_not_copied(model: Any) -> None:
    class Tree:
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise AssertionError("a tree of another file is copied with each block")

    class Scaled:
        __factor = 3

        def by(self, value: Any) -> Any:
            return value * self.__factor

    load: Any = ast.parse("x", mode="eval").body.ctx  # type: ignore[attr-defined]
    sent, scaled = Sent(), Scaled()
    # As `executing` does when IPython has shown a traceback.
    load.parent = Tree()
    try:
        with model.trace(torch.ones(1, 4), backend=sent):
            with torch.no_grad():
                try:
                    hidden = scaled.by(model[0].output).save()
                finally:
                    pass
    finally:
        del load.parent
    assert b"self._Scaled__factor" in sent.data and b"with torch.no_grad():" in sent.data


def test_names_of_ours_on_an_envoy_are_refused(model: Any) -> None:
    def standard(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            model[0].nns_output.save()

    refused(model, standard, r"no `nns_output` at `model\.0`")


def test_an_operation_that_is_counted_otherwise_there_is_refused(model: Any) -> None:
    class Assigning(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            double = torch.add
            return super().forward(double(x, x))

    model._module[1].__class__ = Assigning

    def counted(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            model[1].source.double_0.output.save()

    refused(model, counted, r"`double_0` is counted differently.*test_ndif_payload\.py:\d+.*the output of a module")


def test_code_after_an_endless_loop_is_refused(model: Any) -> None:
    def after(backend: Any) -> None:
        with model.generate(torch.ones(1, 4), backend=backend) as tracer:
            for _ in tracer.iter[:]:
                model[0].output.save()
            [1].save()

    def bounded(backend: Any) -> None:
        with model.generate(torch.ones(1, 4), backend=backend) as tracer:
            for _ in tracer.iter[:2]:
                model[0].output.save()
            [1].save()

    refused(model, after, "drops what stands after a loop over all steps")
    bounded(Sent())


def test_an_edit_that_would_be_replayed_in_one_step_only_is_refused(model: Any) -> None:
    with model.edit() as edited:
        edited[0].output[:] = 0

    def generates(backend: Any) -> None:
        with edited.generate(torch.ones(1, 4), backend=backend):
            edited[1].output.save()

    refused(model, generates, "in the first one only by nnsight 0.8")


def test_what_is_of_the_library_only_here_is_refused(model: Any) -> None:
    def library(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            nnsight.plugins()

    def value(backend: Any, config: Any = nnsight.CONFIG) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            print(config)

    refused(model, library, r"no `nnsight\.plugins`")
    refused(model, value, r"`config` cannot be sent to NDIF: it is a Config of ours")


def test_a_function_that_changes_a_variable_around_it_is_refused(model: Any) -> None:
    def run(backend: Any) -> None:
        count = 0

        def counted(value: Any) -> Any:
            nonlocal count
            count += 1
            return value

        with model.trace(torch.ones(1, 4), backend=backend):
            counted(model[0].output).save()

    refused(model, run, "`counted` cannot be sent to NDIF.*nonlocal.*a list")


def test_another_model_is_refused(model: Any) -> None:
    other = Named(torch.nn.Sequential(torch.nn.Linear(4, 4)))

    def run(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            print(other[0])

    refused(model, run, "`other` cannot be sent to NDIF: it belongs to another model")


def test_a_model_that_ndif_cannot_have_is_refused() -> None:
    plain = NNsight(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    with pytest.raises(WireError, match="models of transformers.*nnsight serve"):
        with plain.trace(torch.ones(1, 4), backend=Sent()):
            plain.output.save()
