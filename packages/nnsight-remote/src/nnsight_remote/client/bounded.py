"""Answers of a server, read so that none takes more memory or time than an answer may.

The one idea: what is read is counted while it comes, and reading stops where no answer of a server goes on. So answers are
asked for as they are: what is packed has any size. Results are another matter; see `download.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import httpx

from .errors import ProtocolError

#: Bytes of an answer that is read at once, and of one line of an answer that tells what happens.
ANSWER, LINE = 8 << 20, 16 << 20
#: Seconds that an answer may take once it began.
SECONDS = 60.0


def whole(answer: httpx.Response) -> httpx.Response:
    """Read an answer to its end, and return it as one that was read.

    Raises:
        ProtocolError: it is larger than answers are, or packed.
        httpx.TransportError: it is cut, or does not end in time.
    """
    with closing(answer):
        _check_encoding(answer)
        end, data = time.monotonic() + SECONDS, bytearray()
        for part in answer.iter_raw():
            data += part
            if len(data) > ANSWER:
                raise ProtocolError(f"{_place(answer)} answered with more than {ANSWER} bytes, which no answer has")
            if time.monotonic() > end:
                raise httpx.ReadTimeout(f"the answer did not end within {SECONDS:.0f} s", request=answer.request)
    read = httpx.Response(answer.status_code, headers=answer.headers, content=bytes(data), request=answer.request)
    read.encoding = "utf-8"  # what the answer says of itself may name a codec that unpacks
    return read


def lines(answer: httpx.Response) -> Iterator[str]:
    """Give the lines of an answer as they come; what is left without an end of line is none.

    Raises:
        ProtocolError: one is longer than lines are, or the answer is packed.
    """
    _check_encoding(answer)
    begun = bytearray()
    for part in answer.iter_raw():
        first, *others = part.split(b"\n")
        begun += first
        for other in others:
            yield begun.decode("utf-8", "replace").rstrip("\r")
            begun = bytearray(other)
        if len(begun) > LINE:
            raise ProtocolError(f"{_place(answer)} told something in more than {LINE} bytes, which nothing takes")


def _check_encoding(answer: httpx.Response) -> None:
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ProtocolError(
            f"{_place(answer)} answered packed with {encoding[:100]}, though nothing but plain was asked for"
        )


def _place(answer: httpx.Response) -> str:
    return str(answer.request.url)[:300]
