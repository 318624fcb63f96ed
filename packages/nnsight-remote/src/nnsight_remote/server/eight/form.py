"""A multipart form, taken apart: the parts that have a name, as bytes.

The one idea: the whole form is here and bounded, and its delimiter cannot stand inside a part, so it is cut at the
delimiters and nothing is decoded. RFC 2046, section 5.1; RFC 7578.
"""

from __future__ import annotations

import re
from email.message import Message

#: No client sends more than a handful.
_MOST = 16
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")


class FormError(ValueError):
    """It is no form; the text says why."""


def parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """Return the parts of a form by their names.

    Raises:
        FormError: it is none.
    """
    boundary = _parameter(content_type, "boundary")
    if not boundary or not _BOUNDARY.fullmatch(boundary):
        raise FormError("the content type of the form names no boundary")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("ascii"), _MOST + 1)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise FormError("the form is not whole, or has too many parts")
    found: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        head, empty, content = piece.lstrip(b" \t").partition(b"\r\n\r\n")
        if not empty or not head.startswith(b"\r\n"):
            raise FormError("a part of the form has no head")
        name = _name(head)
        if name in found:
            raise FormError(f"two parts of the form are called {name[:50]!r}")
        found[name] = content
    return found


def _name(head: bytes) -> str:
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition" and (name := _parameter(value.strip(), "name")):
            return name
    raise FormError("a part of the form has no name")


def _parameter(header: str, name: str) -> str:
    message = Message()
    message["content-type"] = header.replace("\r", " ").replace("\n", " ")
    found = message.get_param(name)
    return found if isinstance(found, str) else ""
