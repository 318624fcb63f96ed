"""The descriptor behind `.output`, `.input` and every value that an envoy class defines.

`eproperty` connects an attribute of an envoy with a site: reading it waits for the site and returns the value there,
assigning it waits and replaces. A *read map* shows the value in another form (heads instead of a flat vector), a
*write map* turns what was assigned back into the site's own form. How waiting works is `mediator.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .active import active, mediator_for
from .errors import NNsightError
from .here import Here, changed, mark, storage_of
from .sites import INPUT, OUTPUT, Place, site_name
from .structures import first, leaves

if TYPE_CHECKING:
    from .mediator import Mediator
    from .tree import Node

ReadMap = Callable[[Any, Any], Any]
WriteMap = Callable[[Any, Any, Any], Any]


def _getter(prop: eproperty) -> Callable[[Any], Any]:
    """Build what reading the property does. It is on the hot path of every read."""
    stage, scopes = prop.stage, active.get

    def get(envoy: Any) -> Any:
        try:
            place = prop.place(envoy) if prop.provided else envoy.__dict__["_tap"] or envoy._place()
            stack = scopes()
            mediator = stack[-1] if stack and place.owner in stack[-1].members else mediator_for(place)
            here = mediator.ask(place, stage)
            rows = mediator.rows
            value = here.value if rows is None and not here.rough else here.read(rows)
            if prop.read is None:
                return value
            shown = prop.read(envoy, value)
            if shown is not value and _copies(shown, value):
                here.roughen()
                here.backs.append(WriteBack(prop, envoy, mediator, shown))
            return shown
        except AttributeError as error:
            # The model's, or a read map's. Python would drop it and ask `__getattr__`, which raises it again.
            envoy.__dict__["_raised"] = error
            raise

    return get


def _setter(prop: eproperty) -> Callable[[Any, Any], None]:
    """Build what assigning to the property does."""
    stage, scopes = prop.stage, active.get

    def put(envoy: Any, value: Any) -> None:
        if prop.read is not None and prop.write is None:
            raise AttributeError(f"`{envoy._path}.{prop.name}` can be read only: its eproperty has no setter.")
        place = prop.place(envoy) if prop.provided else envoy.__dict__["_tap"] or envoy._place()
        stack = scopes()
        mediator = stack[-1] if stack and place.owner in stack[-1].members else mediator_for(place)
        here = mediator.ask(place, stage)
        if prop.write is not None:
            value = prop.write(envoy, here.read(mediator.rows), value)
        here.write(mediator.rows, value)
        if here.rough:
            mine = (prop, envoy, mediator.rows)
            here.backs[:] = [back for back in here.backs if (back.prop, back.envoy, back.rows) != mine]

    return put


class eproperty(property):  # noqa: N801 - a descriptor, named like `property`
    """A value of a module that its envoy serves while the model runs.

    Used as a decorator, the function is the read map, and `.setter` gives the write map::

        class Attention(Envoy):
            @eproperty(description="[batch, position, head, size]")
            def heads(self, output):
                return output[0].unflatten(-1, (self.num_heads, -1))

            @heads.setter
            def heads(self, output, value):
                return (value.flatten(-2), *output[1:])

    Args:
        read: the read map, `read(envoy, value)`; without one the site's own value is given.
        site: `"output"`, or `"input"` for the pair of positional and keyword arguments.
        provided: the value comes from outside the module: the family calls `nnsight.plugin.provide` with this name.
        stepless: a provided value that comes once, after the last step.
        description: shown beside the module in the envoy's repr.

    An edit in place of what a read map returned takes effect by itself if that is a view of the site's value, and
    otherwise through the write map; where there is none it is an error, never ignored.
    """

    def __init__(
        self,
        read: ReadMap | None = None,
        *,
        site: str = OUTPUT,
        provided: bool = False,
        stepless: bool = False,
        description: str | None = None,
    ) -> None:
        if site not in (INPUT, OUTPUT):
            raise ValueError(f"an eproperty's site is {INPUT!r} or {OUTPUT!r}, not {site!r}")
        self.read = read
        self.write: WriteMap | None = None
        self.stage = INPUT if site == INPUT else OUTPUT  # the constants themselves: stages are compared by identity
        self.provided = provided
        self.stepless = stepless
        self.description = description
        self.name = ""
        # A property in C calls these two functions; a `__get__` of our own would cost half as much again.
        super().__init__(_getter(self), _setter(self), doc=read.__doc__ if read is not None else description)

    def __call__(self, read: ReadMap) -> eproperty:
        """Take the read map, when used as `@eproperty(...)`."""
        self.read = read
        self.__doc__ = read.__doc__ or self.__doc__
        return self

    def setter(self, write: WriteMap) -> eproperty:  # type: ignore[override]  # a property's is another function
        """Take the write map: `write(envoy, value of the site, assigned value)` returns the site's new value."""
        self.write = write
        return self

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def place(self, envoy: Node) -> Place:
        """Return the place whose value this is, on one envoy."""
        if self.provided:
            return envoy._provided(self.name, self.stepless)
        tap: Place | None = envoy.__dict__["_tap"]
        return envoy._place() if tap is None else tap


class WriteBack:
    """Remembers a copy that a read map showed, to carry edits in place back to the site."""

    __slots__ = ("envoy", "marks", "mediator", "prop", "rows", "shown")

    def __init__(self, prop: eproperty, envoy: Node, mediator: Mediator, shown: Any) -> None:
        self.prop = prop
        self.envoy = envoy
        self.mediator = mediator
        self.rows = mediator.rows
        self.shown = shown
        self.marks = [mark(tensor) for tensor in leaves(shown)]

    def __call__(self, here: Here) -> None:
        """Carry the edits back that were made since the last time."""
        tensors = leaves(self.shown)
        if not any(map(changed, tensors, self.marks)):
            return
        if self.prop.write is None:
            raise NNsightError(
                f"{site_name(self.envoy._path, self.prop.name)} was edited in place, but it is a copy of the value at "
                "its site and its eproperty has no setter to carry the edit back. Give it one, or edit the site itself."
            )
        # The model is at work now, and the write map may ask for what the body noted.
        token = active.set((*active.get(), self.mediator))
        try:
            here.write(self.rows, self.prop.write(self.envoy, here.read(self.rows), self.shown))
        finally:
            active.reset(token)
        self.marks = [mark(tensor) for tensor in tensors]


def _copies(shown: Any, value: Any) -> bool:
    """Say whether an edit in place of what is shown would miss the value."""
    given = leaves(value)
    known = {id(tensor) for tensor in given}
    others = [tensor for tensor in leaves(shown) if id(tensor) not in known]
    if not others:
        return False
    inside = {storage_of(tensor) for tensor in given}
    return any(storage_of(tensor) not in inside for tensor in others)


def first_input(envoy: Node, value: Any) -> Any:
    """Show the first positional argument, or else the first keyword argument, of a module's call."""
    args, kwargs = value
    return first(args, kwargs)


def replace_first_input(envoy: Node, value: Any, new: Any) -> Any:
    """Replace what `first_input` shows."""
    args, kwargs = value
    if args:
        return (new, *args[1:]), kwargs
    if kwargs:
        return args, {**kwargs, next(iter(kwargs)): new}
    raise ValueError(
        f"`{envoy._path}` was called without arguments, so it has no `.input` to replace; assign `.inputs`."
    )


def skip(envoy: Node, value: Any) -> None:
    """Let the module not run in this visit, and take `value` as its output."""
    place = envoy._place()
    mediator = mediator_for(place)
    mediator.run.check_skip(place)
    here = mediator.ask(place, INPUT)
    if here.skipped is None:
        here.skipped = {}
    here.skipped[mediator.rows] = value


def descriptions(cls: type) -> list[tuple[str, str]]:
    """Return (name, description) of the values that a class of envoys defines, those of its bases first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, eproperty) and value.description:
                found[name] = value.description
    return list(found.items())
