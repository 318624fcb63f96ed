"""Keys of single servers, as `nnsight login SERVER` keeps them: a file beside the configuration, for its owner's eyes.

The one idea: the key in `CONFIG.API.APIKEY` is for any server; one that is kept here goes to its own server and to no other.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from nnsight import CONFIG, ConfigError


def path() -> Path:
    """Where they lie."""
    return CONFIG.path.with_name("keys.json")


def find(url: str) -> str:
    """Return the key of a server, or an empty text."""
    return _read().get(url, "")


def keep(url: str, key: str) -> None:
    """Keep the key of a server, or forget it if it is empty; raises ConfigError where it cannot be written."""
    known = {name: text for name, text in {**_read(), url: key}.items() if text}
    place = path()
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f"{place.name}.")  # for its owner only
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(known, file, indent=2)
            os.replace(temporary, place)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"the key cannot be written to {place}: {error}") from error


def _read() -> dict[str, str]:
    try:
        found = json.loads(path().read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"the keys in {path()} cannot be read ({error}); `nnsight login` writes them anew") from error
    if not (isinstance(found, dict) and all(isinstance(one, str) for one in found.values())):
        raise ConfigError(f"{path()} holds no table of keys; delete it, and log in again")
    return found
