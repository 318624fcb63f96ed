"""What goes to servers of nnsight 0.7, and what is refused before it does."""

from __future__ import annotations

import collections
import copyreg
import io
import linecache
import pickle
import pickletools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nnsight import NNsight, WireError
from nnsight.plugin import open_trace
from nnsight_remote.fabric.older.naming import named, placeholder
from nnsight_remote.fabric.older.padding import method_of
from nnsight_remote.fabric.older.payload import encode
from nnsight_remote.fabric.stand_ins import Path, Thing

#: The modules that those servers admitted in a payload; from their list.
ADMITTED = ("builtins", "collections", "copyreg", "operator", "nnsight.schema.request", "nnsight.modeling",
            "nnsight.intervention", "torch")  # fmt: skip


class Named(NNsight):
    """A model that NDIF could have."""

    task = "text-generation"
    name_or_path = "tests/tiny"

    def generate(self, *given: Any, backend: Any) -> Any:
        return open_trace(self, given, {}, method="generate", backend=backend)

    def other(self, *given: Any, backend: Any) -> Any:
        return open_trace(self, given, {}, method="other", backend=backend)


class Sent:
    """Keeps what would be sent."""

    def run(self, request: Any) -> dict[str, Any]:
        self.data = encode(request, compress=False)
        self.packed = encode(request)
        return {}


class Stub:
    """Stands for any class and any object of nnsight 0.7."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state.get("__dict__", state) if isinstance(state, dict) else {"state": state})


class Reader(pickle.Unpickler):
    """Reads a payload where nnsight 0.7 is not installed."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.names: list[str] = []

    def persistent_load(self, name: Any) -> Any:
        return f"<{name}>"

    def find_class(self, module: str, name: str) -> Any:
        self.names.append(f"{module}:{name}")
        if not module.startswith("nnsight"):
            return super().find_class(module, name)
        if name == "_source_function_setstate":
            return lambda made, state: made.__dict__.update(names=state[1]["__globals__"])
        return type(name, (Stub,), {})


@pytest.fixture
def model() -> Any:
    part = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    return Named(torch.nn.Sequential(part, torch.nn.Linear(4, 2)), rename={"0": "first"})


def read(sent: Sent) -> tuple[Any, Any]:
    request = Reader(sent.data).load()
    return request.interventions, request.tracer


def test_a_block_is_a_function_of_its_tracer(model: Any) -> None:
    sent, scale = Sent(), 3.0
    with model.trace(torch.ones(1, 4), backend=sent) as tracer:
        value = (model[1].output * scale).save()  # noqa: F841
        tracer.stop()
    function, tracer = read(sent)
    source, name, filename = function.given[:3]
    lines = source.splitlines()
    assert lines[0] == f"def {name}(__nnsight_tracing_info__, tracer):" and "tracer.invoke(" in lines[2]
    assert lines[3].strip().startswith("value = (model[1].output * scale).save()") and lines[-1].strip().endswith(
        "get_frame()"
    )
    assert filename == tracer.info.filename and filename.startswith("<nnsight ")
    # The line that an error there names: that of the function, and what stands before it in the file.
    first = test_a_block_is_a_function_of_its_tracer.__code__.co_firstlineno
    assert tracer.info.start_line + 4 == first + 3
    assert tracer.info.source == source.splitlines(keepends=True) and tracer.info.frame.given[0] == __file__
    assert function.names["scale"] == 3.0 and function.names["model"] is tracer.model and "tracer" not in function.names
    assert torch.equal(function.names["__nnsight_given__"][0][0], torch.ones(1, 4)) and tracer.fn == "__call__"


def test_the_tree_names_children_in_their_order_and_other_names_apart(model: Any) -> None:
    sent = Sent()
    with model.trace(torch.ones(1, 4), backend=sent):
        model.first.output.save()
    _, tracer = read(sent)
    tree = tracer.model
    children = [child for child in vars(tree).values() if type(child).__name__ == "Envoy"]
    assert [child.path for child in children] == ["model.0", "model.1"] and tree._model == "<Module:model>"
    assert tree._alias.alias_to_name == {"first": "0"} and "first" not in vars(tree)


def test_only_modules_that_those_servers_admit_are_named(model: Any) -> None:
    sent = Sent()
    weights = torch.ones(2)

    def shifted(value: Any) -> Any:
        return value + weights

    with model.edit() as edited:
        edited[0].output[:] = 0
    with edited.trace(torch.ones(1, 4), backend=sent):
        (shifted(edited[1].output) @ edited[1].weight).save()
    reader = Reader(sent.data)
    reader.load()
    assert reader.names and all(name.startswith(ADMITTED) for name in reader.names)
    assert len(sent.packed) < 3000 and b"_persistent" not in sent.data


def test_equal_names_of_different_texts_are_of_different_files(model: Any) -> None:
    files = []
    for text in ("model[0].output.save()", "model[1].output.save()", "model[0].output.save()"):
        sent = Sent()
        block = f"with model.trace(given, backend=sent):\n    {text}\n"
        linecache.cache["<block>"] = (len(block), None, block.splitlines(keepends=True), "<block>")
        exec(compile(block, "<block>", "exec"), {"model": model, "given": torch.ones(1, 4), "sent": sent})
        files.append(read(sent)[1].info.filename)
    # Over there texts are kept by file and line from job to job.
    assert files[0] != files[1] and files[0] == files[2]


def test_names_that_a_block_binds_as_well_begin_with_their_values(model: Any) -> None:
    sent, total = Sent(), 2.0
    with model.trace(torch.ones(1, 4), backend=sent):
        total = total + model.output.sum()
        total.save()
    function, _ = read(sent)
    assert "*, total=None" in function.given[0] and function.given[8] == {"total": 2.0}


def test_a_string_of_several_lines_is_written_on_one(model: Any) -> None:
    sent = Sent()
    with model.trace(torch.ones(1, 4), backend=sent):
        """What this is about,
        in two lines."""
        [
            model.output,
            """one
        two""",
        ].save()
    function, _ = read(sent)
    assert "'one\\n        two'" in function.given[0] and "in two lines" not in function.given[0]


def test_relies_on_how_pickle_writes_a_name() -> None:
    path = Path("collections:OrderedDict")

    class Writer(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return placeholder(path) if thing is path else None

    file = io.BytesIO()
    Writer(file, 4).dump([path, ["more"] * 2, path])
    data = named(file.getvalue(), [path])
    operations = [operation.name for operation, _, _ in pickletools.genops(data)]
    assert operations.count("STACK_GLOBAL") == 2 and "BINPERSID" not in operations
    assert pickle.loads(data) == [collections.OrderedDict, ["more"] * 2, collections.OrderedDict]


def test_relies_on_copyreg_reconstructor() -> None:
    assert type(copyreg._reconstructor(Stub, object, None)) is Stub  # type: ignore[attr-defined]


@dataclass
class Settings:
    """A data class."""

    by: float


def refused(run: Any, words: str) -> None:
    with pytest.raises(WireError, match=words):
        run(Sent())


def test_what_nnsight_07_does_not_have_is_refused(model: Any) -> None:
    settings = Settings(2.0)

    def tokens(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend) as tracer:
            tracer.tokens.save()

    def root(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            model[0].root.output.save()

    def data(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            (model.output * settings.by).save()

    def method(backend: Any) -> None:
        with model.other(torch.ones(1, 4), backend=backend):
            model.output.save()

    def nothing(backend: Any) -> None:
        with model.generate(backend=backend):
            model.output.save()

    refused(tokens, "nnsight 0.7 has no `tracer.tokens`")
    refused(root, "nnsight 0.7 has no `root` at `model.0`")
    refused(data, "`settings` cannot be sent to NDIF: `Settings` is a data class")
    refused(method, "runs `other`")
    refused(nothing, "this trace is given none")


def test_a_submodule_whose_name_is_taken_is_refused() -> None:
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = torch.nn.Linear(4, 4)

        def forward(self, value: Any) -> Any:
            return self.output(value)

    model = Named(Holder())

    def run(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            model.nns_output.save()

    def plain(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            [1].save()

    refused(run, "nns_output")
    refused(plain, "`model` has a submodule called `output`")


def test_other_tasks_are_refused() -> None:
    class Filling(Named):
        task = "fill-mask"

    model = Filling(torch.nn.Sequential(torch.nn.Linear(4, 4)))

    def run(backend: Any) -> None:
        with model.trace(torch.ones(1, 4), backend=backend):
            model.output.save()

    refused(run, "language models.*fill-mask")


class Counted(torch.nn.Module):
    """A model that takes positions."""

    def forward(self, input_ids: torch.Tensor, position_ids: Any = None) -> torch.Tensor:
        return input_ids


@pytest.mark.parametrize("takes", [True, False])
def test_rows_of_different_lengths_get_positions_or_are_refused(takes: bool) -> None:
    made = method_of(Named(Counted() if takes else torch.nn.Linear(4, 4)), Thing(Path("a:b")))
    assert made is not None
    ran: list[dict[str, Any]] = []

    class Model:
        def interleave(self, method: Any, *args: Any, **kwargs: Any) -> None:
            ran.append(kwargs)

    names: dict[str, Any] = {"model": Model()}
    exec(made.source, names)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    names["interleave"]("__call__", attention_mask=torch.ones(2, 3))
    names["interleave"]("__nnsight_generate__", attention_mask=mask)
    assert [sorted(kwargs) for kwargs in ran] == [["attention_mask"], ["attention_mask"]]
    if not takes:
        with pytest.raises(ValueError, match="one by one"):
            names["interleave"]("__call__", attention_mask=mask)
        return
    names["interleave"]("__call__", attention_mask=mask)
    positions = ran[-1]["position_ids"]
    # Each row counts its own tokens, as it would alone.
    assert positions[0, 2:].tolist() == list(range(2)) and positions[1].tolist() == list(range(4))
