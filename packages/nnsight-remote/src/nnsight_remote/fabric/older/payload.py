"""A block as nnsight 0.7 sends it: `encode` writes what servers of that time read.

The one idea: there a block is a function of its tracer, which 0.7's client compiles and sends with what it captured; here the
function is written, and its invokes are left to be captured over there. What is given to a trace becomes an invoke.
"""

from __future__ import annotations

import ast
import io
from collections import defaultdict
from typing import Any

import zstandard

from nnsight.plugin import Request, WireError, names_of_block, text_of_block

from ..language import Dialect
from ..model import facts_of, known_of, task_of
from ..payload import LEVEL, Writer
from ..stand_ins import Known, Paths, Thing
from ..tree import Trees
from . import stand_ins
from .pickler import OlderPickler, write
from .stand_ins import Function, OlderPaths
from .text import Wrapped, block_of, rebound
from .tree import OlderTrees

#: What nnsight 0.7 has.
SEVEN = Dialect(
    "0.7",
    frozenset(
        ("clear_edits", "cpu", "cuda", "device", "devices", "edit", "generate", "get", "input", "inputs", "modules",
         "named_modules", "output", "path", "scan", "session", "skip", "source", "to", "trace", "generator", "tokenizer")
    ),
    frozenset(("save", "Object", "NNsight", "Envoy", "LanguageModel", "__version__")),
    renames=False,
)  # fmt: skip
_TRACER, _INFO, _GIVEN = "__nnsight_tracer__", "__nnsight_tracing_info__", "__nnsight_given__"
_TASK = "text-generation"


def encode(request: Request, *, compress: bool = True) -> bytes:
    """Write a request for a server that runs nnsight 0.7.

    Args:
        request: the block.
        compress: whether the server is told that it is compressed, which their clients do by default.

    Raises:
        WireError: something in it cannot travel, or is not in their language. The message says what, and what to do.
    """
    data = OlderWriter(request).write()
    return zstandard.ZstdCompressor(level=LEVEL).compress(data) if compress else data


class OlderWriter(Writer):
    """Writes one request."""

    dialect = SEVEN

    def _model(self, root: Any) -> tuple[Paths, dict[int, Known], Trees]:
        if task_of(root) != _TASK:
            raise WireError(
                f"servers that run nnsight 0.7 are sent language models here, and this is for {task_of(root)}"
            )
        paths: Paths = OlderPaths()
        known = {number: one for number, one in known_of(root).items() if one.name == "Tokenizer"}
        facts = facts_of(root, known)
        kept = {name: facts[name] for name in ("tokenizer", "repo_id", "revision")}
        return paths, known, OlderTrees(root, {**kept, "automodel": None}, paths)

    def _tracer(self) -> Thing:
        request, paths = self._request, self._paths
        plain: dict[str, Any] = {"args": (), "kwargs": {}, "asynchronous": False}
        if request.session:
            return paths.thing(stand_ins.SESSION, **plain)
        kwargs = {} if self._is_given else self._kwargs
        batcher = paths.thing(
            stand_ins.BATCHER,
            batched_args=() if kwargs else None,
            batched_kwargs=kwargs or None,
            last_batch_group=None,
            needs_batching=False,
            current_value=None,
            current_provider=None,
        )
        return paths.thing(
            stand_ins.TRACE,
            **plain,
            model=self._trees.thing(request.node),
            fn=self._method(),
            tracer_var_name=self._variable,
            batcher=batcher,
            mediators=[],
        )

    def _method(self) -> str:
        method = self._request.method
        if method is None:
            return "__call__"
        if method == "generate" and self._request.node.parent is None:
            return "__nnsight_generate__"
        name = method if isinstance(method, str) else getattr(method, "__name__", "a function")
        raise WireError(f"nnsight 0.7 runs a model's forward or `generate` elsewhere, and this trace runs `{name}`")

    def _whole(self, tracer: Thing, outer: dict[str, Any], inner: dict[str, Any]) -> Any:
        request = self._request
        names = {name: value for name, value in {**outer, **inner}.items() if value is not tracer}
        if not request.session:
            tracer.state["mediators"] = self._mediators()
        keywords = {name: names[name] for name in rebound(request.body, names)}
        wrapped, depth = self._function(list(keywords)), 2 if self._is_given else 1
        if depth == 2:
            names[_GIVEN] = (request.inputs, self._kwargs)
        number = stand_ins.number_of(wrapped.source, wrapped.filename)
        made = Function(
            wrapped.source, wrapped.name, stand_ins.filename_of(number), names=names, keywords=keywords or None
        )
        lines = wrapped.source.splitlines(keepends=True)
        tracer.state["info"] = stand_ins.info(self._paths, lines, wrapped.before, wrapped.filename, number)
        held = {"interventions": made, "tracer": tracer}
        return self._paths.thing(
            stand_ins.REQUEST,
            __dict__=held,
            __pydantic_extra__=None,
            __pydantic_fields_set__=set(held),
            __pydantic_private__=None,
        )

    def _function(self, rebound: list[str]) -> Wrapped:
        """Write the block as a function."""
        request, tracer = self._request, self._variable
        text, block = block_of(request.body, 2 if self._is_given else 1)
        more = f", *, {', '.join(f'{name}=None' for name in rebound)}" if rebound else ""
        begin, end = [f"    {tracer}.pull()\n"], [f"    {tracer}.get_frame()\n"]
        head = f"{_INFO}, {tracer}{more}"
        if request.session:
            head, end = f"{_TRACER}, {_INFO}{more}", [f"    return {_TRACER}.push()\n"]
        elif self._is_given:
            begin.append(f"    with {tracer}.invoke(*{_GIVEN}[0], **{_GIVEN}[1]):\n")
        return Wrapped("__nnsight_block__", head, begin, block, end, text)

    @property
    def _variable(self) -> str:
        return _TRACER if self._request.session else self._request.body.target or _TRACER

    @property
    def _kwargs(self) -> dict[str, Any]:
        return {name: value for name, value in self._request.kwargs.items() if name != "progress"}

    @property
    def _is_given(self) -> bool:
        """Whether the trace itself is given what the model runs on; otherwise its invokes are."""
        request = self._request
        if request.session:
            return False
        if request.inputs or "input_ids" in request.kwargs or request.node.parent is not None:
            return True
        calls = [node for one in text_of_block(request.body).nodes for node in ast.walk(one)]
        if any(isinstance(node, ast.Attribute) and node.attr == "invoke" for node in calls):
            return False
        raise WireError(
            "nnsight 0.7 runs a model on a text, on ids or on `input_ids=`, and this trace is given none of them"
        )

    # -- edits -------------------------------------------------------------------------------------------------------

    def _mediators(self) -> list[Thing]:
        """Return the edits of the model that is traced: its own client puts them before what the block asks for."""
        if self._request.node.parent is not None:
            return []
        return self._trees.edits(self._request.node)

    def _edit(self, edit: Any) -> Thing:
        outer, inner = names_of_block(edit.body)
        if edit.body.target is not None:
            inner = {**inner, edit.body.target: edit.edited}
        names = {**outer, **inner}
        text, block = block_of(edit.body, 2)
        keywords = {name: names[name] for name in rebound(edit.body, names)}
        more = f", *, {', '.join(f'{name}=None' for name in keywords)}" if keywords else ""
        wrapped = Wrapped(
            "__nnsight_edit__",
            f"__nnsight_mediator__, {_INFO}{more}",
            ["    __nnsight_mediator__.pull()\n", "    try:\n"],
            block,
            [
                "    except Exception as exception:\n",
                "        __nnsight_mediator__.exception(exception)\n",
                "    else:\n",
                "        __nnsight_mediator__.end()\n",
            ],
            text,
        )
        number = stand_ins.number_of(wrapped.source, wrapped.filename)
        made = Function(
            wrapped.source, wrapped.name, stand_ins.filename_of(number), names=names, keywords=keywords or None
        )
        lines = wrapped.source.splitlines(keepends=True)
        return self._paths.thing(
            stand_ins.MEDIATOR,
            name=f"{edit.name} {number}",
            idx=None,
            info=stand_ins.info(self._paths, lines, wrapped.before, wrapped.filename, number),
            batch_group=None,
            intervention=made,
            all_stop=None,
            iteration_tracker=defaultdict(int),
        )

    def _dump(self, thing: Any) -> bytes:
        file = io.BytesIO()
        return write(OlderPickler(file, self._trees, self._paths, self._known), file, thing)
