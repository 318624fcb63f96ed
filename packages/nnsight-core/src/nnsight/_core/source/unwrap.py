"""The function under a forward's decorators, and the same decorators around another function.

A decorated forward is a chain of links: closures, `functools.partial`s, bound methods, callable objects. A link counts
as a wrapper when it is *seen to hold* the next one (in a cell, a default, `__func__`, ...): `functools.wraps` alone
proves nothing, for it also serves to borrow a signature. `rebuild` makes each link anew around its changed inner one
and touches none of the old ones, so a run can use the new chain while others use the old.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

from ..errors import SourceError
from .rewrite import reclosed

_Callable = Callable[..., Any]
_STATIC = (staticmethod, classmethod)


def innermost(callable: _Callable) -> FunctionType:
    """Return the Python function that all of `callable`'s wrappers lead to; `callable` itself where there is none.

    Raises `SourceError` if that is no Python function: a class, a builtin, a method of a C type.
    """
    *_, last = _chain(callable)
    if not isinstance(last, FunctionType):
        what = "" if last is callable else f"; under its wrappers is {last!r}"
        kind = "a class" if isinstance(last, type) else f"of type {type(last).__name__}"
        raise SourceError(
            f"There are no operations to name in {callable!r}{what}: it is {kind}, and no Python function. "
            "Its own input and output can still be asked for."
        )
    return last


def rebuild(callable: _Callable, replacement: FunctionType) -> _Callable:
    """Return the same wrappers as those of `callable`, around `replacement` instead of its innermost function.

    State that a wrapper keeps in other cells or on its bound object is shared with the old one. Raises `SourceError`
    at a link that cannot be made anew, such as one written in C.
    """
    inner = _inner(callable)
    if inner is None:
        return replacement
    new = rebuild(inner, replacement)
    if isinstance(callable, MethodType):
        return MethodType(new, callable.__self__)
    if isinstance(callable, _STATIC):
        return type(callable)(new)
    if type(callable) is functools.partial:
        made = functools.partial(new, *callable.args, **callable.keywords)
        made.__dict__.update(vars(callable))
        return made
    if isinstance(callable, FunctionType):
        return _around(callable, inner, new, replacement)
    if isinstance(inner, MethodType) and inner.__self__ is callable:
        return new
    raise SourceError(
        f"The operations of {innermost(callable).__qualname__} cannot be reached: it is wrapped in {callable!r}, a "
        f"{type(callable).__name__} that cannot be made anew around another function. Take that wrapper off, or ask "
        "for the module's own input and output."
    )


def held_in(module: object, callable: _Callable) -> str | None:
    """Return the attribute of `module` through which its instance-level `callable` reaches the forward it replaced.

    accelerate and others put their own forward on the instance, keep the old one in an attribute, and look it up at
    each call. No link of such a chain holds the next: exchange the attribute's value for the time of a run instead.
    `None` if `callable` needs no attribute.
    """
    for link in _chain(callable):
        named = getattr(link, "__wrapped__", None)
        if named is None or (isinstance(link, FunctionType) and _holds(link, named)):
            continue
        read = _words(callable)
        for name, value in vars(module).items():
            if name in read and _same(value, named):
                return name
    return None


def _chain(callable: _Callable) -> Iterator[_Callable]:
    link: _Callable | None = callable
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = _inner(link)


def _inner(link: _Callable) -> _Callable | None:
    """Return what `link` is seen to call, `None` if it is no wrapper."""
    if isinstance(link, (MethodType, *_STATIC)):
        inner: _Callable = link.__func__
        return inner
    if isinstance(link, functools.partial):
        return link.func
    if isinstance(link, type):
        return None
    named: _Callable | None = getattr(link, "__wrapped__", None)
    if isinstance(link, FunctionType):
        return named if named is not None and _holds(link, named) else None
    if named is not None:
        return named
    call = inspect.getattr_static(type(link), "__call__", None)
    return MethodType(call, link) if isinstance(call, FunctionType) else None


def _holds(wrapper: FunctionType, inner: _Callable) -> bool:
    return any(_leads_to(value, inner, wrapper) for value in _held(wrapper))


def _held(wrapper: FunctionType) -> Iterator[object]:
    yield from map(_content, wrapper.__closure__ or ())
    yield from wrapper.__defaults__ or ()
    yield from (wrapper.__kwdefaults__ or {}).values()


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a cell that is still empty
        return None


def _leads_to(value: object, inner: _Callable, wrapper: FunctionType) -> bool:
    """Say whether a value that `wrapper` holds ends where `inner` does; a cell may hold `wrapper` itself."""
    return value is not wrapper and callable(value) and _end(value) is _end(inner)


def _end(link: object) -> object:
    """Follow whatever a link names as its inner one, whether it holds it or not."""
    seen: set[int] = set()
    while id(link) not in seen and not isinstance(link, type):
        seen.add(id(link))
        for name in ("__func__", "func" if isinstance(link, functools.partial) else "__wrapped__"):
            inner = getattr(link, name, None)
            if inner is not None:
                link = inner
                break
    return link


def _around(wrapper: FunctionType, inner: _Callable, new: _Callable, replacement: FunctionType) -> FunctionType:
    def exchanged(value: Any) -> Any:
        if value is inner:
            return new
        return rebuild(value, replacement) if _leads_to(value, inner, wrapper) else value

    cells = tuple(
        cell if exchanged(content := _content(cell)) is content else CellType(exchanged(content))
        for cell in wrapper.__closure__ or ()
    )
    made = reclosed(wrapper, wrapper.__code__, cells)
    if wrapper.__defaults__:
        made.__defaults__ = tuple(map(exchanged, wrapper.__defaults__))
    if wrapper.__kwdefaults__:
        made.__kwdefaults__ = {name: exchanged(value) for name, value in wrapper.__kwdefaults__.items()}
    made.__dict__["__wrapped__"] = new
    return made


def _words(callable: _Callable) -> set[str]:
    """Return the names and strings that the functions of a chain look attributes up by."""
    words: set[str] = set()
    for link in _chain(callable):
        if isinstance(link, FunctionType):
            words.update(link.__code__.co_names)
            words.update(const for const in link.__code__.co_consts if isinstance(const, str))
    return words


def _same(value: object, other: object) -> bool:
    if isinstance(value, MethodType) and isinstance(other, MethodType):
        return value.__self__ is other.__self__ and value.__func__ is other.__func__
    return value is other
