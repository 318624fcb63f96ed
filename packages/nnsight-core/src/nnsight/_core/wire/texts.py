"""The lines of the user's files that travel, and what they are there for: to be compiled, and to be shown in tracebacks.

The one idea: lines keep their numbers and their columns, and lines that nothing needs stay at home.
"""

from __future__ import annotations

import linecache
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from ..blocks.lines import forget, remember
from ..errors import WireError

_LAST = 10_000_000  # no text has more lines; hostile bytes may say so


class Sparse(Sequence[str]):
    """The lines of a file of which few are known; the others are empty."""

    def __init__(self, known: Mapping[int, str]) -> None:
        self.known = known
        self._length = max(known, default=0)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self.known.get(number + 1, "\n") for number in range(*at.indices(self._length))]
        number = at if at >= 0 else at + self._length
        if not 0 <= number < self._length:
            raise IndexError(at)
        return self.known.get(number + 1, "\n")

    def __iter__(self) -> Iterator[str]:
        return (self.known.get(number, "\n") for number in range(1, self._length + 1))


class Sent:
    """The lines that a message takes along."""

    def __init__(self) -> None:
        self._files: list[tuple[str, dict[int, str]]] = []

    def __bool__(self) -> bool:
        return bool(self._files)

    def add(self, filename: str, first: int, lines: Sequence[str]) -> int:
        """Take lines of a file along, and return the number of the text that they are in."""
        numbered = {first + at: line for at, line in enumerate(lines)}
        for number, (name, known) in enumerate(self._files):
            if name == filename and all(known.get(line, text) == text for line, text in numbered.items()):
                known.update(numbered)
                return number
        self._files.append((filename, numbered))
        return len(self._files) - 1

    def as_json(self) -> list[list[Any]]:
        """Return each text: the file's name, and then first lines and what follows them without a gap."""
        return [[filename, *_runs(known)] for filename, known in self._files]


def _runs(known: Mapping[int, str]) -> list[list[Any]]:
    runs: list[list[Any]] = []
    following = 0
    for number in sorted(known):
        if number != following:
            runs.append([number, ""])
        runs[-1][1] += known[number] if known[number].endswith("\n") else known[number] + "\n"
        following = number + 1
    return runs


class Received:
    """The lines that came with a message, and their stay in this process."""

    def __init__(self, said: Any) -> None:
        self.files: list[tuple[str, dict[int, str]]] = []
        if not isinstance(said, list):
            raise WireError("the texts of files are no list")
        for entry in said:
            if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
                raise WireError("the text of a file is not stated as it should be")
            known: dict[int, str] = {}
            for run in entry[1:]:
                if not (isinstance(run, list) and len(run) == 2 and _is_line(run[0]) and isinstance(run[1], str)):
                    raise WireError("the lines of a file are not stated as they should be")
                # Not `splitlines`: a text may hold form feeds, and others that end no line of Python's.
                lines = run[1].removesuffix("\n").split("\n")
                known.update((number, line + "\n") for number, line in enumerate(lines, start=run[0]))
            self.files.append((entry[0], known))
        self._codes: list[Any] = []
        self._shown: dict[str, dict[int, str]] = {}

    def filename(self, number: Any) -> str:
        """Return the name of a file."""
        return self._file(number)[0]

    def cut(self, number: Any, first: Any, last: Any) -> list[str]:
        """Return the lines from `first` to `last`."""
        known = self._file(number)[1]
        if not (_is_line(first) and _is_line(last) and last - first < len(known)):
            raise WireError("lines are referred to that did not come along")
        lines = [known.get(line) for line in range(first, last + 1)]
        if None in lines or not lines:
            raise WireError("lines are referred to that did not come along")
        return [line for line in lines if line is not None]

    def keep(self, code: Any, lines: Sequence[str]) -> None:
        """Let blocks inside this code find their text, until `forget`."""
        remember(code, lines)
        self._codes.append(code)

    def show(self) -> None:
        """Let tracebacks show the lines, until `forget`."""
        by_name: dict[str, dict[int, str]] = {}
        for filename, known in self.files:
            by_name.setdefault(filename, {}).update(known)
        with _showing:
            for filename, known in by_name.items():
                if filename not in _shown:
                    if _is_here(filename, known):
                        continue
                    _before[filename] = linecache.cache.get(filename)
                _shown.setdefault(filename, []).append(known)
                self._shown[filename] = known
                _put(filename)

    def forget(self) -> None:
        """Give back what was shown and kept."""
        for code in self._codes:
            forget(code)
        self._codes.clear()
        with _showing:
            for filename, known in self._shown.items():
                others = _shown[filename]
                others[:] = [other for other in others if other is not known]
                if others:
                    _put(filename)
                    continue
                del _shown[filename]
                before = _before.pop(filename)
                if before is None:
                    linecache.cache.pop(filename, None)
                else:
                    linecache.cache[filename] = before
        self._shown.clear()

    def _file(self, number: Any) -> tuple[str, dict[int, str]]:
        if type(number) is not int or not 0 <= number < len(self.files):
            raise WireError("a file is referred to whose text did not come along")
        return self.files[number]


#: What is shown of each file, by message, the latest last; and what was there before the first.
_shown: dict[str, list[dict[int, str]]] = {}
_before: dict[str, Any] = {}
_showing = threading.RLock()


def _put(filename: str) -> None:
    """Show all lines of a file that messages brought: a model may have come with some, and a block with others."""
    together: dict[int, str] = {}
    for known in _shown[filename]:
        together.update(known)
    # Any sequence will do.
    linecache.cache[filename] = (0, None, Sparse(together), filename)  # type: ignore[assignment]


def _is_here(filename: str, known: Mapping[int, str]) -> bool:
    """Whether a file of this name is here and has these lines, as it has where both ends are on one machine."""
    # Only what looks like a module is opened: the name is the sender's, and some files of a system have no end.
    if filename not in linecache.cache and not (filename.endswith(".py") and os.path.isfile(filename)):
        return False
    here = linecache.getlines(filename)
    # Of a line that a block shares with its `with`, only the block came.
    return all(line <= len(here) and here[line - 1].endswith(text.lstrip()) for line, text in known.items())


def _is_line(number: Any) -> bool:
    return type(number) is int and 0 < number < _LAST
