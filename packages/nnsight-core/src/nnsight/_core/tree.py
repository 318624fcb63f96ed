"""The tree of envoys: build it, walk it, rename in it, show it. Knows nothing of traces.

A node mirrors one module. Children are made when they are first asked for and checked against the module each time, so
a submodule that is replaced under us is followed, and an envoy that the user holds stays valid when weights are loaded.
What a node serves while the model runs is added in `envoy.py`.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from .classes import children_of, class_for, without_collisions
from .naming import Naming
from .notebook import render_html
from .printing import draw, render
from .rigging import Rigging, reachable
from .served import descriptions, eproperty
from .sharding import call_whole
from .sites import Place
from .taps import Tap, tap_of

N = TypeVar("N", bound="Node")


class Node:
    """One module of the tree, and the way to its neighbours."""

    _module: torch.nn.Module
    _path: str
    _parent: Node | None
    _root: Node
    _children: dict[str, Node]
    #: Of a root: whether its weights are elsewhere for good, and none that it holds has numbers (they are on "meta").
    _is_hollow = False

    def __init__(self, module: torch.nn.Module, path: str = "model", parent: Node | None = None) -> None:
        own = self.__dict__
        own["_module"] = module
        own["_path"] = path
        own["_parent"] = parent
        own["_root"] = self if parent is None else parent._root
        own["_children"] = {}
        own["_tap"] = None
        own["_rigging"] = None
        #: Modules of a family that the model itself does not hold (a generator), by name; on a root only.
        own["_extras"] = {}
        #: What the last scan saw pass each module, by path; on a root only.
        own["_shapes"] = {}
        #: How the values of the model lie if it is spread over several processes; on a root only.
        own["_sharding"] = None

    # -- places ------------------------------------------------------------------------------------------------------

    def _place(self) -> Tap:
        tap: Tap | None = self.__dict__["_tap"]
        if tap is None:
            tap = self.__dict__["_tap"] = tap_of(self._module, self._path)
        return tap

    def _provided(self, name: str, stepless: bool = False) -> Place:
        tap = self._place()
        place = tap.provided.get(name)
        if place is None:
            place = tap.provided[name] = Place(f"{self._path}.{name}", tap, stepless)
        return place

    def _rig(self) -> Rigging:
        rigging: Rigging | None = self.__dict__["_rigging"]
        if rigging is None or rigging.root is not self._module:
            rigging = self.__dict__["_rigging"] = Rigging(self._module, self._path, self.__dict__["_extras"])
        return rigging

    # -- the tree ----------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The path of this module from the root, `model.transformer.h.0`."""
        return self._path

    @property
    def parent(self) -> Node | None:
        """The envoy of the module that holds this one; None at the root."""
        return self._parent

    @property
    def root(self) -> Node:
        """The envoy of the whole model."""
        return self._root

    def _relative(self) -> str:
        return self._path[len(self._root._path) + 1 :]

    def _child(self, name: str, module: torch.nn.Module) -> Node:
        child = self._children.get(name)
        if child is None:
            child = self._children[name] = self._make(name, module)
        elif child._module is not module:
            child._rebind(module)
        return child

    def _submodule(self, name: str) -> torch.nn.Module | None:
        extra: torch.nn.Module | None = self.__dict__["_extras"].get(name)
        return children_of(self._module).get(name) if extra is None else extra

    def _make(self, name: str, module: torch.nn.Module) -> Node:
        path = f"{self._path}.{name}"
        return class_for(module, path, self._root)(module, path, self)

    def _rebind(self, module: torch.nn.Module) -> None:
        """Mirror another module from now on, with all that lies below: weights were loaded, or a layer replaced."""
        own = self.__dict__
        own["_module"] = module
        own["_tap"] = None
        own["_rigging"] = None
        if self._parent is not None:
            fitting = class_for(module, self._path, self._root)
            if fitting is not type(self):
                object.__setattr__(self, "__class__", fitting)
        for name, child in list(self._children.items()):
            below = children_of(module).get(name, own["_extras"].get(name))
            if below is None:
                del self._children[name]
            else:
                child._rebind(below)

    def _naming(self) -> Naming:
        naming: Naming = self._root.__dict__["_names"]
        return naming

    def _walk(self, path: str) -> Node:
        node = self
        for name in path.split("."):
            module = node._submodule(name)
            if module is not None:
                node = node._child(name, module)
                continue
            found = getattr(node, name)
            if not isinstance(found, Node):
                raise AttributeError(f"`{node._path}.{name}` is no module")
            node = found
        return node

    def get(self, path: str) -> Any:
        """Return the envoy (or attribute) at a dotted path below this one, `model.get("transformer.h.0.mlp")`."""
        if not path:
            return self
        *way, last = path.split(".")
        node = self._walk(".".join(way)) if way else self
        module = node._submodule(last)
        return node._child(last, module) if module is not None else getattr(node, last)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        module = own.get("_module")
        if module is not None:
            # Walking to a module takes as long as stopping at it: a child that is known is given without another call.
            known = own["_children"].get(name)
            if known is not None and known.__dict__["_module"] is module._modules.get(name):
                return known
        if module is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # what copying and pickling look for is not the module's to answer
        child = children_of(module).get(name)
        if child is None:
            child = own["_extras"].get(name)
        if child is not None:
            return self._child(name, child)
        served = inspect.getattr_static(type(self), name, None)
        if isinstance(served, property):
            # It raised an AttributeError, which Python has dropped: the module knows nothing of it.
            error = own.pop("_raised", None)
            if error is not None:
                raise error
            return served.__get__(self)
        root = own["_root"]
        target = root.__dict__["_names"].resolve(root._module, self._relative(), module, name)
        if target is not None:
            return self._walk(target)
        value = getattr(module, name)
        if isinstance(value, torch.Tensor):
            value = root._tensor(module, name, value)
        if isinstance(value, torch.nn.Module):
            # A property of the module that gives one of its parts by another name.
            for path, part in reachable(module, ""):
                if part is value:
                    return self._walk(path) if path else self
        if inspect.ismethod(value) and value.__self__ is module:
            return self._method(name, value)
        sharding = root.__dict__["_sharding"]
        return value if sharding is None else sharding.read(f"{self._path}.{name}", value)

    def _method(self, name: str, method: Callable[..., Any]) -> Any:
        return method

    def _tensor(self, module: torch.nn.Module, name: str, value: torch.Tensor) -> Any:
        """Return what reading a module's tensor gives; families whose tensors lie elsewhere override this in the root."""
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        descriptor = getattr(type(self), name, None)
        if isinstance(descriptor, eproperty):
            descriptor.fset(self, value)  # type: ignore[misc]  # it always has one
            return
        if hasattr(type(descriptor), "__set__"):
            descriptor.__set__(self, value)  # type: ignore[union-attr]
            return
        own = self.__dict__
        module = own.get("_module")
        if isinstance(value, Node) and module is not None and name in module._modules:
            value = value._module
        if module is None or name in own or name.startswith("_nns"):
            object.__setattr__(self, name, value)
        elif isinstance(value, (torch.nn.Module, torch.nn.Parameter)) or _has(module, name):
            sharding = self._root.__dict__["_sharding"]
            if sharding is not None:
                value = sharding.assign(f"{self._path}.{name}", getattr(module, name, None), value)
            setattr(module, name, value)
            self._root.__dict__["_rigging"] = None
        else:
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            object.__delattr__(self, name)
        else:
            delattr(self._module, name)

    def __dir__(self) -> list[str]:
        aliases = self._naming().aliases(self._root._module, self._relative(), self._module)
        return sorted({*super().__dir__(), *dir(self._module), *aliases})

    # -- containers --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._module)  # type: ignore[arg-type]  # a module without length raises the usual TypeError

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        own = self.__dict__
        holder = own["_module"]
        if type(key) is int and isinstance(holder, torch.nn.ModuleList):
            # The shortest way, as in `__getattr__`: a list calls its modules "0", "1", ...
            name = str(key)
            child = holder._modules.get(name)
            known = own["_children"].get(name)
            if known is not None and known.__dict__["_module"] is child:
                return known
            if child is not None:
                return self._child(name, child)
        modules = children_of(holder)
        if isinstance(key, str):
            if modules.get(key) is None:
                raise KeyError(f"`{self._path}` has no submodule {key!r}; it has {', '.join(modules) or 'none'}")
            return self._walk(key)
        if not hasattr(type(self._module), "__getitem__"):
            raise TypeError(f"`{self._path}` is a {type(self._module).__name__}, which cannot be indexed")
        names = list(modules)
        if isinstance(key, slice):
            return [self._walk(name) for name in names[key]]
        try:
            name = names[key]
        except IndexError:
            raise IndexError(f"`{self._path}` has {len(names)} submodules, so index {key} is out of range") from None
        module = modules[name]
        assert module is not None
        return self._child(name, module)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._module, torch.nn.ModuleDict):
            return iter(list(children_of(self._module)))
        if not hasattr(type(self._module), "__iter__"):
            raise TypeError(f"`{self._path}` is a {type(self._module).__name__}, which cannot be iterated over")
        child = self._child
        return iter([child(name, module) for name, module in children_of(self._module).items() if module is not None])

    def named_modules(self, include: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
        """Return (path, envoy) of this module and all below it, outermost first, shared modules once."""
        found: list[Node] = []
        self._gather(found, set())
        return [(node._path, node) for node in found if include is None or include(node)]

    def _gather(self, found: list[Node], seen: set[torch.nn.Module]) -> None:
        found.append(self)
        seen.add(self._module)
        for name, module in children_of(self._module).items():
            if module is not None and module not in seen:
                self._child(name, module)._gather(found, seen)

    def modules(self, include: Callable[[Any], bool] | None = None) -> list[Any]:
        """Return the envoys of this module and all below it, outermost first, shared modules once."""
        return [node for _, node in self.named_modules(include)]

    # -- devices -----------------------------------------------------------------------------------------------------

    @property
    def devices(self) -> set[torch.device]:
        """The devices on which parameters and buffers of this module lie."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        return {tensor.device for tensor in tensors}

    @property
    def device(self) -> torch.device | None:
        """The device of the first parameter or buffer; None for a module without any."""
        # Lazily: every trace of a family asks, and walking a whole model takes milliseconds.
        for tensor in itertools.chain(self._module.parameters(), self._module.buffers()):
            return tensor.device
        return None

    def to(self: N, *args: Any, **kwargs: Any) -> N:
        """Move or cast the module, as `torch.nn.Module.to` does, and return this envoy."""
        self._module.to(*args, **kwargs)
        return self

    def cpu(self: N) -> N:
        """Move the module to the CPU."""
        return self.to("cpu")

    def cuda(self: N, device: int | torch.device | None = None) -> N:
        """Move the module to a CUDA device."""
        return self.to(torch.device("cuda") if device is None else device)

    # -- showing -----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return render(self._module, *self._shown())

    def _repr_html_(self) -> str:
        """Return the tree as notebooks show it."""
        return render_html(draw(self._module, *self._shown()), self._path)

    def _shown(self) -> tuple[Callable[..., list[str]], Callable[[str], list[str]], Callable[[str], str]]:
        """Return what a picture says of a module besides what torch says: lines, aliases, and shapes."""
        base = self._relative()
        naming, top = self._naming(), self._root._module
        seen = self._root.__dict__["_shapes"]

        def names(path: str) -> list[str]:
            return naming.names_of(top, f"{base}.{path}" if base and path else base or path)

        def describe(path: str, module: torch.nn.Module) -> list[str]:
            try:
                node = self._walk(path) if path else self
            except AttributeError:
                return []  # inside a scripted module: shown, but not to be reached
            served = descriptions(type(node))
            return [f"({name}): {text}" for name, text in served]

        def shapes(path: str) -> str:
            # One of the two is missing where the run was stopped in between.
            return " -> ".join(text or "..." for text in seen.get(f"{self._path}.{path}" if path else self._path, ()))

        return describe, names, shapes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module by hand, with values of the trace or outside of one; its sites are not part of any run."""
        sharding, module = self._root.__dict__["_sharding"], self._module
        return module(*args, **kwargs) if sharding is None else call_whole(sharding, self._path, module, args, kwargs)

    def __reduce__(self) -> Any:
        if self._parent is not None:
            return (_restore_below, (self._root, self._relative()))
        own = self.__dict__
        # Two halves, as what a user hung on the root may lead back to it: first all that a tree needs, then the rest.
        core = {name: own[name] for name in _CORE if name in own}
        rest = {name: value for name, value in own.items() if name not in _CORE and name not in _MADE_ANEW}
        return (_restore, (type(self).__dict__.get("_without", type(self)), core), rest)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


#: What a root must have before its envoys can be made, and what is made anew in a copy.
_CORE = ("_module", "_path", "_parent", "_extras", "_names", "_classes", "_default_class")
_MADE_ANEW = ("_root", "_children", "_tap", "_rigging", "_sharding")


def _restore(cls: type[Node], core: dict[str, Any]) -> Node:
    node = cls.__new__(without_collisions(cls, core["_module"]))
    node.__dict__.update(core, _root=node, _children={}, _tap=None, _rigging=None, _shapes={}, _sharding=None)
    return node


def _restore_below(root: Node, path: str) -> Node:
    return root._walk(path)


def _has(module: torch.nn.Module, name: str) -> bool:
    try:
        getattr(module, name)
    except AttributeError:
        return False
    return True
