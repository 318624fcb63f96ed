"""`Address`: which server, and the key that goes there.

The one idea: an address is settled once, from what was written where the block stands, the configuration and the keys of
`nnsight login`, in this order; it is what connections are kept by. The key is never part of a text that is shown.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nnsight import CONFIG

from . import keys

#: Where `remote=True` leads if nothing says otherwise: the National Deep Inference Fabric.
DEFAULT = "https://api.ndif.us"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """A server and a key for it.

    Attributes:
        url: the server, without a slash at the end.
        key: what it knows the user by; empty for none.
    """

    url: str
    key: str = field(default="", repr=False)

    @classmethod
    def find(cls, host: str | None = None, key: str | None = None) -> Address:
        """Settle what `remote=` meant: a host, or None for the configured one. ValueError for what is no address."""
        url = normal(host or CONFIG.API.HOST or DEFAULT)
        # A key of its own is for a server what `nnsight login SERVER` was told; the general one is for all others.
        return cls(url, key or keys.find(url) or CONFIG.API.APIKEY or _colab_secret() or "")

    @property
    def is_this_machine(self) -> bool:
        """Whether the server is on this machine."""
        return urlsplit(self.url).hostname in _LOOPBACK

    @property
    def is_trusted(self) -> bool:
        """Whether the user said that results of this server may be more than data."""
        trusted = (CONFIG.API.TRUSTED or "").split(",")
        return any(self.url == normal(one.strip()) for one in trusted if one.strip())


def normal(host: str) -> str:
    """Write an address in full; one without `http://` or `https://` is encrypted unless it is this machine."""
    text = host.strip()
    if "://" not in text:
        plain = not CONFIG.API.SSL or urlsplit(f"//{text}").hostname in _LOOPBACK
        text = f"{'http' if plain else 'https'}://{text}"
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises for one that is no number
    except ValueError as error:
        raise ValueError(f"{host!r} is no address of a server: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or any(map(str.isspace, text)):
        raise ValueError(f"{host!r} is no address of a server; write it as 'http://host:8787' or 'https://host'")
    if parts.username or parts.query or parts.fragment:
        raise ValueError(
            f"the address {parts.hostname!r} holds more than a server; a key is given with `nnsight login`, or `key=`"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _colab_secret() -> str:
    """Return the secret NDIF_API_KEY of a notebook on Google Colab, if this is one that may read it."""
    if "google.colab" not in sys.modules:
        return ""
    from google.colab import userdata  # is on Colab only

    try:
        return userdata.get("NDIF_API_KEY") or ""
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return ""
