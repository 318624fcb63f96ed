"""Which packages a user's code may import: those on a list, and whatever they import themselves.

The one idea: this is advice. It tells a user early, and by name, that a block wants something which the server does not
offer. It does not stop one who means harm: from any allowed module there is a way to any loaded one. What stops those is
the kernel, in `files.py` and `syscalls.py`.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

#: What a block may import on any server. Of the standard library: what computes, nothing that reaches out.
ALLOWED = frozenset(
    """
    __future__ abc array base64 bisect builtins calendar cmath collections colorsys contextlib copy dataclasses datetime
    decimal difflib enum fractions functools hashlib heapq inspect itertools json keyword locale logging math numbers
    operator pprint random re statistics string struct textwrap time timeit traceback types typing unicodedata uuid
    warnings weakref zlib zoneinfo
    PIL einops jaxtyping jinja2 nnsight nnterp numpy packaging pandas scipy sklearn sympy tokenizers torch tqdm
    transformers typing_extensions accelerate diffusers peft nnsight_hf nnsight_diffusers nnsight_vllm nnsight_remote
    """.split()
)


class ImportGuard:
    """Looks at imports that a user's code makes, in this process."""

    def __init__(self, further: Iterable[str] = ()) -> None:
        self._allowed = ALLOWED | {name.partition(".")[0] for name in further}
        # The objects, too: a user's module may carry any name.
        self._installed = {
            name: vars(module) for name, module in list(sys.modules.items()) if hasattr(module, "__dict__")
        }

    def check(self, name: str) -> None:
        """Raise ImportError unless a package is on the list."""
        root = name.partition(".")[0]
        if root not in self._allowed:
            raise ImportError(
                f"this server does not let a block import {name!r}. What it computes with is there (torch, numpy and the "
                "like); whoever runs the server can allow more: nnsight serve --allow-import " + root,
                name=name,
            )

    @contextmanager
    def on(self) -> Iterator[None]:
        """Look at imports until the end of this."""
        plain, plain_module = builtins.__import__, importlib.import_module

        def guarded(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
            if not level and not self._is_installed(globals):
                self.check(name)
            return plain(name, globals, locals, fromlist, level)

        def guarded_module(name: str, package: str | None = None) -> Any:
            around = sys._getframe(1).f_globals
            # What a request needs by its import path, nnsight imports for it.
            asked_by_request = str(around.get("__name__")).partition(".")[0] == "nnsight"
            if not name.startswith(".") and (asked_by_request or not self._is_installed(around)):
                self.check(name)
            return plain_module(name, package)

        builtins.__import__, importlib.import_module = guarded, guarded_module
        try:
            yield
        finally:
            builtins.__import__, importlib.import_module = plain, plain_module

    def _is_installed(self, names: Any) -> bool:
        """Whether code with these global names is a module that was not sent here."""
        if names is None:
            return False
        name = names.get("__name__")
        if self._installed.get(name) is names:
            return True
        # Imported since: by something installed, through the ordinary machinery, from a file that is there.
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or vars(module) is not names or getattr(module.__spec__, "has_location", False) is not True:
            return False
        self._installed[name] = names
        return True
