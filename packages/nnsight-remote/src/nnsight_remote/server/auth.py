"""Who is asking: the key in a request, and the user it belongs to.

The one idea: a key comes in a header (`Authorization: Bearer KEY`, or `ndif-api-key: KEY`), never in an address, where it
would end in logs. Without a key there is `/ping`, the interface's description and the empty page; nothing else. A server
that is `open` knows one user; it listens to this machine only, and to no page of another site in a browser on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from .admission import Refused
from .keys import Keyring, User

ANYONE = User("anyone", "admin")


class Door:
    """Lets in who has a key.

    Args:
        keyring: the keys.
        open: let everybody in, as one user.
    """

    def __init__(self, keyring: Keyring, *, open: bool) -> None:
        self._keyring = keyring
        self._open = open

    def enter(self, headers: Mapping[str, str], key: str = "") -> User:
        """Return the user that a request comes from; raise Refused with 401."""
        if self._open:
            _refuse_other_sites(headers)
            return ANYONE
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = key or (token.strip() if scheme.lower() == "bearer" else headers.get("ndif-api-key", ""))
        if not key:
            raise Refused(401, "key", "a key is needed: send the header `Authorization: Bearer KEY`")
        user = self._keyring.find(key)
        if user is None:
            raise Refused(
                401, "key", "this key is not known here; whoever runs the server makes one: nnsight serve keys add"
            )
        return user


def _refuse_other_sites(headers: Mapping[str, str]) -> None:
    """Turn away a browser that a page of another site sent here, be it under a name that leads to this machine."""
    host = headers.get("host", "")
    name = urlsplit(f"//{host}").hostname
    origin = headers.get("origin")
    if name not in ("localhost", "127.0.0.1", "::1") or origin not in (None, f"http://{host}"):
        raise Refused(403, "origin", "this server is open to programs on its own machine, and to no other site's pages")
