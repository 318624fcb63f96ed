"""`nnsight NAME ...`: the command line, whose commands come from plugins.

The one idea: the core finds a command by its name and hands it the rest of the line, unread. A command is any callable
that takes the list of its arguments and returns an exit status (None is 0), so each plugin parses as it likes.
Which plugin a name comes from, and what to install for one that is not there, is `plugins.py`'s to say.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import directory, plugins
from .errors import NNsightError

USAGE = "usage: nnsight COMMAND ...      (nnsight COMMAND --help says what one takes)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for a line that cannot be understood."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    if not line or line[0] in ("-h", "--help"):
        print(_help())
        return 0 if line else 2
    name, rest = line[0], line[1:]
    if name in ("-V", "--version"):
        from nnsight._version import __version__

        print(f"nnsight-core {__version__}")
        return 0
    if name == "plugins":
        print(plugins.plugins())
        return 0
    try:
        command = plugins.lookup("commands", name)
    except NNsightError as error:
        print(f"nnsight: {error}\n{USAGE}", file=sys.stderr)
        return 2
    return int(command(rest) or 0)


def _help() -> str:
    offered = plugins.offered("commands")
    missing = {name: owner.install_line for name, owner in directory.owned("commands").items() if name not in offered}
    rows = {"plugins": "list the plugins that are installed", **dict.fromkeys(sorted(offered), ""), **missing}
    wide = max(map(len, rows))
    return "\n".join([USAGE, "", "commands:", *(f"  {name:<{wide}}  {note}".rstrip() for name, note in rows.items())])
