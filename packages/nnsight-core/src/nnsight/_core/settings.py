"""`Section`: a group of settings whose kinds are checked when they are set.

The one idea: a setting is a plain instance attribute, as cheap to read as any other; where its value came from, whether
it waits to be saved and who wants to hear of a change is kept beside it. A section is a class with annotated
upper-case names. Files and the environment are left to `config.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, get_type_hints

from .errors import ConfigError

KIND_IN_WORDS = {bool: "True or False", str | None: "text or None"}


class UnknownSettingError(ConfigError, AttributeError):
    """A setting that does not exist was read or set; an AttributeError, so that `hasattr` answers."""


class ToDefault:
    """What is pending for a setting that `CONFIG.save` shall take out of the file."""


class Section:
    """A group of settings: upper-case attributes whose annotations are the kinds that they accept."""

    #: What this section is called after `CONFIG.`.
    title: ClassVar[str]
    #: Names that once were settings: they read as the value given here, and setting them only warns.
    retired: ClassVar[dict[str, Any]] = {}
    kinds: ClassVar[dict[str, Any]] = {}

    #: Values that were set here and wait to be saved.
    pending: dict[str, Any]
    #: Where each value came from, in words.
    origins: dict[str, str]
    _listeners: dict[str, list[Callable[[Any], None]]]

    def __init_subclass__(cls) -> None:
        cls.kinds = {name: kind for name, kind in get_type_hints(cls).items() if name.isupper()}

    def __init__(self) -> None:
        self.__dict__.update(pending={}, origins={}, _listeners={})
        for name in self.kinds:
            self.put(name, self.default(name), "default")

    def on_change(self, name: str, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call `callback(new value)` whenever the setting `name` changes; return a function that ends this.

        A callback that raises refuses the change: the setting keeps its value and the error reaches who set it.
        """
        self._check_name(name)
        listeners = self._listeners.setdefault(name, [])
        listeners.append(callback)
        return lambda: listeners.remove(callback)

    def default(self, name: str) -> Any:
        return getattr(type(self), name)

    def put(self, name: str, value: Any, origin: str) -> None:
        """Give `name` a value that was checked before, and tell the listeners if that is a change."""
        old = self.__dict__.get(name, value)
        self.__dict__[name] = value
        try:
            if value != old:
                for callback in tuple(self._listeners.get(name, ())):
                    callback(value)
        except BaseException:
            self.__dict__[name] = old
            raise
        self.origins[name] = origin

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.retired:
            warnings.warn(f"CONFIG.{self.title}.{name} has no effect any more", DeprecationWarning, stacklevel=2)
            return
        self._check_name(name)
        if not isinstance(value, self.kinds[name]):
            # The value is not shown: it may be a key.
            raise ConfigError(
                f"CONFIG.{self.title}.{name} is {KIND_IN_WORDS[self.kinds[name]]}, "
                f"and was given a value of type {type(value).__name__}"
            )
        self.put(name, value, "set here")
        self.pending[name] = value

    def __delattr__(self, name: str) -> None:
        raise ConfigError(f"CONFIG.{self.title}.{name} cannot be deleted; CONFIG.reset() gives all defaults back")

    def __getattr__(self, name: str) -> Any:
        if name in self.retired:
            return self.retired[name]
        if name.startswith("_"):  # asked for by copying, pickling and notebooks, not by a user
            raise AttributeError(name)
        raise self._unknown(name)

    def __dir__(self) -> list[str]:
        return [*self.kinds, "on_change"]

    def _check_name(self, name: str) -> None:
        if name not in self.kinds:
            raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownSettingError:
        return UnknownSettingError(f"there is no setting CONFIG.{self.title}.{name}; there are {', '.join(self.kinds)}")
