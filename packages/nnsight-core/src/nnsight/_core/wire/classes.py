"""Classes: by import path if they are installed, and by their text if not.

The one idea: the text of a class is run over there as it was here, so that decorators, descriptors, `super()` and metaclasses
do what they do. What is not computed again but given is what may have become something else since: the bases, and the
values of plain assignments in the class. Attributes that were set later are set again.
"""

from __future__ import annotations

import abc
import ast
import enum
import sys
import types
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from ..blocks.bindings import bindings
from ..errors import SourceError, WireError
from ..source.given import give, scopes_of
from . import origin, records
from .called import made_by_call, write_enum, write_namedtuple
from .compiled import FUTURES, MADE_IN, compile_class, first_line, parse_at, renamed, target_of
from .decoder import Decoder
from .encoder import Busy, Encoder
from .failures import note_sent
from .functions import cell_of, fill_cell, keep_text
from .kinds import makes, writes
from .located import Located, find_class, methods_of, received
from .spaces import modules_of, put_uses, reference, space_of
from .texts import Sparse
from .uses import Uses, uses
from .values import BUILTIN_TYPES

#: The globals of a class that came from elsewhere. Kept by the class itself: they may hold it, and are to end with it.
_GLOBALS = "__nnsight_globals__"


@writes(type, abc.ABCMeta, enum.EnumMeta, family=True)
def _write_class(encoder: Encoder, cls: type) -> int:
    if BUILTIN_TYPES.get(cls.__name__) is cls:
        return encoder.emit("type", cls.__name__)
    if encoder.results:
        return records.write_class(encoder, cls)
    found = origin.find(cls) or _of_types(cls)
    if found is not None:
        return reference(encoder, *found)
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and cls.__bases__ == (tuple,) and made_by_call(cls):
        return write_namedtuple(encoder, cls)
    try:
        where = find_class(cls)
    except SourceError as error:
        if isinstance(cls, enum.EnumMeta):
            return write_enum(encoder, cls)
        raise encoder.refusal(
            f"{error}", "write it as a `class` statement in a file, in a notebook cell, or in the block itself"
        ) from None
    return _ClassText(encoder, cls, where).write()


class _ClassText:
    """One class that travels by its text."""

    def __init__(self, encoder: Encoder, cls: type, where: Located) -> None:
        self.encoder = encoder
        self.cls = cls
        self.where = where
        module = sys.modules.get(cls.__module__)
        self.around: dict[str, Any] = vars(cls).get(_GLOBALS) or (vars(module) if module is not None else {})
        methods = list(methods_of(cls))
        if methods:
            self.around = methods[0].__globals__
        self.cells = {
            **(received[cls][1] if cls in received else {}),
            **self._cells_of(methods),
        }
        self.flags = methods[0].__code__.co_flags & FUTURES if methods else _flags_of(where)

    @staticmethod
    def _cells_of(methods: list[FunctionType]) -> dict[str, CellType]:
        return {
            name: cell
            for method in methods
            for name, cell in zip(method.__code__.co_freevars, method.__closure__ or ())
            if name != "__class__"
        }

    def write(self) -> int:
        encoder, cls, where = self.encoder, self.cls, self.where
        bases = [encoder.value(base, f"base `{getattr(base, '__name__', base)}`") for base in _bases(cls)]
        given, late = self._given()
        code = compile_class(where.node, self._around_names(), given, where.filename, self.flags, not where.owners)
        cells = {name: self._cell(name) for name in code.co_freevars}
        self._put_what_runs(code, cells)
        file = encoder.files.add(where.filename, where.first, where.lines[where.first - 1 : where.last])
        number = encoder.emit(
            "class",
            [file, where.first, where.last],
            [cls.__qualname__, self.flags, not where.owners],
            bases,
            given,
            space_of(encoder, self.around),
            {name: cell_of(encoder, cell) for name, cell in cells.items()},
        )
        encoder.number(cls, number)
        note_sent(cls)
        for name, cell in cells.items():
            fill_cell(encoder, cell, name, [()])
        used = uses(code)
        put_uses(encoder, self.around, used)
        for name, value in late.items():
            encoder.when_free(lambda name=name, value=value: self._set(number, name, value))  # type: ignore[misc]
        return number

    def _given(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write the values of the class's plain assignments; return those, and the attributes that come later."""
        given: dict[str, Any] = {}
        late: dict[str, Any] = {}
        if not _plain(self.cls):
            return given, late
        body = self.where.node.body
        bound = {name for one in body for name in _bound(one)}
        for name, value in vars(self.cls).items():
            function = _function_of(value)
            if name not in bound:
                if not _is_special(name) and (_is_data(value) or function is not None):
                    late[name] = value
            elif function is not None and not self._is_within(function):
                late[name] = value
        for one in body:
            name = self._plainly_bound(one)
            value = vars(self.cls).get(name)
            if name not in vars(self.cls) or not _is_data(value) or _is_special(name):
                continue
            try:
                given[name] = self.encoder.value(value, f".{name}")
            except Busy:
                given[name] = None
                late[name] = value
            except WireError:
                continue  # it is made again there
        return given, late

    def _plainly_bound(self, statement: ast.stmt) -> str:
        """Return the name that a statement of the class gives a value that is just that."""
        if isinstance(statement, ast.AnnAssign) and "__dataclass_fields__" in vars(self.cls):
            if "ClassVar" not in ast.unparse(statement.annotation):
                return ""  # it says more of a field than its value
        return target_of(statement) or ""

    def _is_within(self, function: FunctionType) -> bool:
        code = function.__code__
        other = (
            code.co_filename != self.where.filename or not self.where.first <= code.co_firstlineno <= self.where.last
        )
        return not other or function.__module__ != self.cls.__module__ or "__wrapped__" in vars(function)

    def _set(self, number: int, name: str, value: Any) -> None:
        try:
            self.encoder.emit("assign", number, name, self.encoder.value(value, f".{name}"))
        except WireError:
            if not self.where.node.decorator_list:
                raise
            # A decorator may have set it, and does so again there.

    def _around_names(self) -> list[str]:
        """Return the names that the class may read from functions around it."""
        functions = [one for one in self.where.owners if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))]
        bound: set[str] = set()
        for one in functions:
            scope = bindings([one]).inner[0]
            bound |= {name for name in scope.bound if scope.owns(name)}
        wanted = bindings([self.where.node]).wanted()
        return sorted((bound & wanted) | self.cells.keys())

    def _cell(self, name: str) -> CellType:
        """Return the variable of a function around the class, or one like it."""
        if name in self.cells:
            return self.cells[name]
        if name == self.cls.__name__:
            return CellType(self.cls)
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if name in frame.f_locals and self._is_around(frame.f_code):
                return CellType(frame.f_locals[name])
            frame = frame.f_back
        raise self.encoder.refusal(
            f"the class reads `{name}` of the function that it was written in, which is over and has left no trace of it",
            "define the class at the top of a module, or use the name in one of its methods",
        )

    def _is_around(self, code: CodeType) -> bool:
        return code.co_filename == self.where.filename and any(
            first_line(one) == code.co_firstlineno
            for one in self.where.owners
            if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))
        )

    def _put_what_runs(self, code: CodeType, cells: dict[str, CellType]) -> None:
        """Write, before the class, what running its text needs; what its methods need can come later."""
        body = next(one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == self.cls.__name__)
        # A class with type parameters has code around its body; then all is needed.
        for one in (code, body):
            used = uses(one, inner=False)
            own = set(vars(self.cls)) | {"__name__"}
            names = {name: chains for name, chains in used.names.items() if name not in own or one is code}
            put_uses(self.encoder, self.around, Uses(names, used.imports, {}))
            for name, chains in used.frees.items():
                if name in cells and cells[name] is not self.cells.get(self.cls.__name__):
                    self._fill_early(cells[name], name, chains)

    def _fill_early(self, cell: CellType, name: str, chains: Any) -> None:
        try:
            if cell.cell_contents is self.cls:
                return
        except ValueError:
            return
        fill_cell(self.encoder, cell, name, chains)


def _plain(cls: type) -> bool:
    return type(cls) in (type, abc.ABCMeta) and not issubclass(cls, tuple)


def _function_of(value: Any) -> FunctionType | None:
    """Return the function that a class attribute is, or wraps."""
    for one in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
        if isinstance(one, FunctionType):
            return one
    return None


def _is_data(value: Any) -> bool:
    """Whether a class attribute is a value, and not something that the text of the class makes."""
    if hasattr(type(value), "__get__") or hasattr(type(value), "__set_name__"):
        return False
    return not isinstance(value, type) and not callable(value)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") or name in ("_abc_impl", "_is_protocol")


def _bound(statement: ast.stmt) -> set[str]:
    return bindings([statement]).bound


def _bases(cls: type) -> tuple[Any, ...]:
    bases: tuple[Any, ...] = vars(cls).get("__orig_bases__", cls.__bases__)
    return () if bases == (object,) else bases


def _flags_of(where: Located) -> int:
    return (
        FUTURES
        & compile(
            "".join(line for line in where.lines if line.startswith("from __future__")), "<futures>", "exec"
        ).co_flags
    )


def _of_types(cls: type) -> tuple[str, str] | None:
    for name, found in vars(types).items():
        if found is cls:
            return "types", name
    return None


# -- over there ------------------------------------------------------------------------------------------------------


@makes("class")
def _make_class(decoder: Decoder, step: list[Any]) -> type:
    _, [file, first, last], [qualname, flags, in_module], bases, given, space, said = step
    filename = decoder.files.filename(file)
    node, text = parse_at(decoder.files.cut(file, first, last), first)
    code = compile_class(node, list(said), given, filename, flags & FUTURES, in_module is True)
    prefix = qualname.removesuffix(node.name)
    code = renamed(code, MADE_IN, prefix)
    keep_text(decoder, code, text, first)
    scopes = scopes_of(qualname, node.name) or ()
    give(code, text, first - 1, scopes)
    cells = tuple(decoder.value([said[name]]) for name in code.co_freevars)
    around = vars(decoder.value([space]))
    make = FunctionType(code, around, code.co_name, None, cells)
    values = {name: decoder.value(value) for name, value in given.items()}
    with modules_of(decoder).known():
        made: type = make(decoder.values(bases), values)
    type.__setattr__(made, _GLOBALS, around)
    kept = Sparse(dict(enumerate(text[1:], start=first)))
    owners = () if in_module is True else (*scopes, node)
    received[made] = Located(node, owners, filename, kept), dict(zip(code.co_freevars, cells))
    return made


@makes("assign")
def _make_assignment(decoder: Decoder, step: list[Any]) -> None:
    _, number, name, value = step
    cls = decoder.value([number])
    if not isinstance(cls, type) or cls.__module__ not in modules_of(decoder):
        raise WireError("an attribute is to be set of something else than a class that came along")
    setattr(cls, name, decoder.value(value))
