"""`CONFIG`: the settings of this installation, from the defaults, the user's file and the environment.

The one idea: later sources win (default, file, `python -d`, environment, assignment), and only assignments are saved,
into the file as it is by then, so that neither two processes nor the environment of one of them undo what was saved.
The host program's command line is never looked at: it is not ours.
How one setting behaves is in `settings.py`, the file in `configfile.py`; what a setting does, in whatever reads it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from . import configfile
from .errors import ConfigError, NNsightWarning
from .settings import Section, ToDefault, UnknownSettingError

_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
# Names that are customary for these settings; NNSIGHT_<section>_<setting> comes first.
_FURTHER_VARIABLES = {"APP.DEBUG": "NNSIGHT_DEBUG", "API.APIKEY": "NDIF_API_KEY", "API.HOST": "NDIF_HOST"}
_SECRETS = {"API.APIKEY"}


class AppSettings(Section):
    """How nnsight behaves on this machine."""

    title = "APP"
    # Libraries for nnsight 0.6 set this while they are imported; blocks have been cached without asking since 0.7.
    retired: ClassVar[dict[str, Any]] = {"TRACE_CACHING": True}

    #: Show nnsight's own frames in tracebacks.
    DEBUG: bool = False
    #: Let an invoke read names that another invoke of the same trace binds.
    CROSS_INVOKER: bool = True
    #: Put `.save()` on tensors, lists, numbers and other kinds of values; `nnsight.save(x)` works either way.
    PYMOUNT: bool = True
    #: Show the state of a job that runs elsewhere while it runs.
    REMOTE_LOGGING: bool = True


class ApiSettings(Section):
    """How nnsight reaches a server."""

    title = "API"

    #: Address of the server; None is the default of the package that talks to it.
    HOST: str | None = None
    #: Key that the server knows the user by.
    APIKEY: str | None = None
    #: Encrypt the connection to a HOST that is written without `https://` or `http://`.
    SSL: bool = True
    #: Compress what is sent and fetched.
    COMPRESS: bool = True
    #: Addresses, separated by commas, of servers whose results may hold code, which runs here.
    TRUSTED: str | None = None


class Config:
    """All settings, read and written as attributes; `save` keeps them for the next process.

    >>> from nnsight import CONFIG
    >>> CONFIG.APP.CROSS_INVOKER
    True
    """

    APP: AppSettings
    API: ApiSettings
    path: Path

    def __init__(self) -> None:
        self.__dict__.update(APP=AppSettings(), API=ApiSettings())
        self.reload()

    def reload(self) -> None:
        """Read file and environment again; what was set in this process and not saved is forgotten."""
        self.__dict__["path"] = configfile.config_path()
        stored, problem = configfile.read(self.path, self._kinds())
        if problem:
            warnings.warn(
                f"nnsight's configuration in {self.path} cannot be used in full: {problem}. Defaults stand in for it; "
                "CONFIG.save() writes a new file and keeps this one beside it as .bak",
                NNsightWarning,
                stacklevel=2,
            )
        self._fill(stored)
        for section in self._sections():
            section.pending.clear()

    def reset(self) -> None:
        """Put every setting back to its default, or to what the environment says; `save` makes this last."""
        self._fill({})
        for section in self._sections():
            section.pending.update(dict.fromkeys(section.kinds, ToDefault))

    def save(self) -> None:
        """Write what was set in this process into the file at `path`, readable by its owner only.

        Settings that other processes saved since, keys that this version does not know, and what the environment says
        are left as they are. Raises `ConfigError` where the file cannot be written.
        """
        path = Path(os.path.realpath(self.path))  # a link to the file stays a link
        stored, problem = configfile.read(path, self._kinds())
        for section in self._sections():
            group = stored.setdefault(section.title, {})
            group.update(section.pending)
            for name in [name for name, value in section.pending.items() if value is ToDefault]:
                del group[name]
        try:
            configfile.write(path, stored, keep_old=problem is not None)
        except OSError as error:
            raise ConfigError(
                f"the configuration cannot be written to {path} ({error}); the environment variable NNSIGHT_CONFIG_DIR "
                "names another folder for it"
            ) from error
        for section in self._sections():
            self._warn_of_overruled(section)
            section.pending.clear()

    def set_default_api_key(self, key: str) -> None:
        """Set the key that the server knows the user by, and save it."""
        self.API.APIKEY = key
        self.save()

    def set_default_app_debug(self, debug: bool) -> None:
        """Set whether tracebacks show nnsight's own frames, and save it."""
        self.APP.DEBUG = debug
        self.save()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("APP", "API", "path"):
            raise ConfigError(f"CONFIG.{name} cannot be replaced; set what is in CONFIG.APP and CONFIG.API one by one")
        raise self._unknown(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by copying, pickling and notebooks, not by a user
            raise AttributeError(name)
        raise self._unknown(name)

    def __repr__(self) -> str:
        lines = [f"CONFIG, saved in {self.path}"]
        for section in self._sections():
            for name in section.kinds:
                value, setting = getattr(section, name), f"{section.title}.{name}"
                shown = "(hidden)" if value and setting in _SECRETS else repr(value)
                lines.append(f"  {setting:<19} {shown:<9} {section.origins[name]}")
        return "\n".join(lines)

    def _sections(self) -> tuple[Section, ...]:
        return (self.APP, self.API)

    def _kinds(self) -> dict[str, dict[str, Any]]:
        return {section.title: section.kinds for section in self._sections()}

    def _unknown(self, name: str) -> UnknownSettingError:
        homes = [f"CONFIG.{section.title}.{name}" for section in self._sections() if name in section.kinds]
        hint = f"it is {homes[0]}" if homes else "settings are in CONFIG.APP and CONFIG.API"
        return UnknownSettingError(f"CONFIG itself has no {name}; {hint}")

    def _fill(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Give every setting the value of the last source that names it."""
        for section in self._sections():
            group = stored.get(section.title, {})
            for name, kind in section.kinds.items():
                setting = f"{section.title}.{name}"
                value, origin = (group[name], "file") if name in group else (section.default(name), "default")
                if setting == "APP.DEBUG" and sys.flags.debug:
                    value, origin = True, "python -d"
                variable = _variable(setting)
                if variable:
                    value, origin = _parse(kind, variable), variable
                section.put(name, value, origin)

    def _warn_of_overruled(self, section: Section) -> None:
        """Say which of the settings just saved will not be what the next process sees."""
        for name, value in section.pending.items():
            variable = _variable(f"{section.title}.{name}")
            if variable and value is not ToDefault and _parse(section.kinds[name], variable) != value:
                warnings.warn(
                    f"CONFIG.{section.title}.{name} was saved, but the environment variable {variable} says otherwise "
                    "and wins when the next process starts",
                    NNsightWarning,
                    stacklevel=3,
                )


def _variable(setting: str) -> str | None:
    """Name of the environment variable that decides `setting`; an empty variable counts as absent."""
    names = (f"NNSIGHT_{setting.replace('.', '_')}", _FURTHER_VARIABLES.get(setting, ""))
    return next((name for name in names if os.environ.get(name)), None)


def _parse(kind: Any, variable: str) -> Any:
    """Read an environment variable as a value of `kind`."""
    text = os.environ[variable]
    if kind is not bool:
        return text
    if text.strip().lower() not in _TRUTH:
        raise ConfigError(f"the environment variable {variable} is {text!r}; it must be one of {', '.join(_TRUTH)}")
    return _TRUTH[text.strip().lower()]


CONFIG = Config()
