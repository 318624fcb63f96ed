"""`nnsight login` and `nnsight whoami`: keep a key, and see what it is.

The one idea: a key is tried before it is kept, and is never part of a command line unless the user puts it there: it is read
from the terminal without being shown, or from a pipe.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence

from nnsight import CONFIG, NNsightError

from . import keys
from .address import Address
from .errors import KeyRefusedError, RemoteError
from .handshake import speak


def login(arguments: Sequence[str]) -> int:
    """Run `nnsight login [SERVER]`."""
    parser = argparse.ArgumentParser(
        prog="nnsight login",
        description="Keep the key that a server knows you by. Without SERVER it is for the configured one and all others.",
    )
    parser.add_argument("server", nargs="?", help="keep it for this server only, as in http://lab:8787")
    parser.add_argument("--key", help="the key; it is asked for, or read from a pipe, if not given")
    parser.add_argument("--unchecked", action="store_true", help="do not ask the server whether it knows the key")
    options = parser.parse_args(arguments)
    try:
        key = options.key or _read_key()
        if not key:
            return _complain("login", "there is no key")
        address = Address.find(options.server, key)
        if not options.unchecked:
            try:
                name = speak(address).facts.whoami().get("name")
            except KeyRefusedError as error:
                return _complain("login", f"the key is not kept: {error}")
            except RemoteError as error:
                return _complain("login", f"{error}. The key is not kept; --unchecked keeps it all the same")
            print(f"{address.url} knows you as {name}")
        if options.server:
            keys.keep(address.url, key)
            print(f"the key for {address.url} is kept in {keys.path()}")
        else:
            CONFIG.set_default_api_key(key)
            print(f"the key is kept in {CONFIG.path}")
    except (NNsightError, ValueError) as error:
        return _complain("login", str(error))
    return 0


def whoami(arguments: Sequence[str]) -> int:
    """Run `nnsight whoami [SERVER]`."""
    parser = argparse.ArgumentParser(prog="nnsight whoami", description="Say who you are for a server.")
    parser.add_argument("server", nargs="?", help="the server; the configured one if not given")
    options = parser.parse_args(arguments)
    try:
        address = Address.find(options.server)
        found = dict(speak(address).facts.whoami())
    except (NNsightError, ValueError) as error:
        return _complain("whoami", str(error))
    print(f"{found.pop('name')} on {address.url}")
    limits = found.pop("limits", {})
    for name, value in {**found, **limits}.items():
        print(f"  {name:<20} {value:,}" if isinstance(value, (int, float)) else f"  {name:<20} {value}")
    return 0


def _read_key() -> str:
    if sys.stdin.isatty():
        return getpass.getpass("key: ").strip()
    return sys.stdin.readline().strip()


def _complain(command: str, said: str) -> int:
    print(f"nnsight {command}: {said}", file=sys.stderr)
    return 1
