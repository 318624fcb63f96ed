"""The file that settings are kept in: where it lies, how it is read, how it takes its predecessor's place.

The one idea: nothing in the file is ever lost. Reading takes what can be used and says what is wrong with the rest;
writing replaces the file in one step, and one that had something wrong is kept beside it. What the settings mean
is left to `config.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .settings import KIND_IN_WORDS


def config_path() -> Path:
    """Where the configuration of this user lies; the variable NNSIGHT_CONFIG_DIR names another folder."""
    chosen = os.environ.get("NNSIGHT_CONFIG_DIR")
    if chosen:
        return Path(chosen).expanduser() / "config.json"
    import platformdirs  # imported only where it is needed: it is a tenth of what importing nnsight may cost

    return Path(platformdirs.user_config_dir("nnsight", appauthor=False)) / "config.json"


def read(path: Path, kinds: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], str | None]:
    """Read a file of sections; return what of it can be used, and what is wrong with the rest, or None.

    `kinds` says for each section and setting which kind its value has. Keys that are not in it are kept.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:
        return {}, str(error)
    if not isinstance(found, dict):
        return {}, "it holds no table of settings"
    problems = []
    for title in kinds:
        group = found.get(title, {})
        if not isinstance(group, dict):
            problems.append(f"{title} is no table of settings")
            del found[title]
            continue
        for name, kind in kinds[title].items():
            if name in group and not isinstance(group[name], kind):
                problems.append(f"{title}.{name} is not {KIND_IN_WORDS[kind]}")
                del group[name]
    return found, "; ".join(problems) or None


def write(path: Path, stored: Mapping[str, Any], keep_old: bool) -> None:
    """Put `stored` in the file's place, readable by its owner only; keep the old file as `.bak` if asked to."""
    import tempfile

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written beside the file first: a reader sees the old one or the new one, never a half.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(stored, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        if keep_old:
            os.replace(path, _free_backup_name(path))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _free_backup_name(path: Path) -> Path:
    number = 0
    while (name := path.with_name(f"{path.name}.bak{number or ''}")).exists():
        number += 1
    return name
