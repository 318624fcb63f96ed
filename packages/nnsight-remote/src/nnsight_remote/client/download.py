"""`Download`: a result on its way here, however often the connection breaks.

The one idea: what is here already is not fetched again: a broken download goes on where it stopped, if the server says that
it is still the same file, and begins anew if not. A small result is held in memory, a large one in a temporary file that is
gone with it. That the bytes arrived unchanged, the wire itself knows: they carry a checksum.
"""

from __future__ import annotations

import errno
import mmap
import re
import tempfile
from typing import IO, Any, BinaryIO, cast

import httpx

from .. import packed
from .connection import Connection
from .errors import DownloadError, ProtocolError
from .patience import Patience
from .protocol import Progress

#: A result of more bytes than this lies in a file while it is read.
IN_MEMORY = 64 << 20
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class Download:
    """Fetches one file from a server.

    Args:
        path: where it is there.
        progress: told how far it is.
        patience: for how many seconds nothing may come.
        job: whose result it is, for messages.

    Attributes:
        media_type: what the server says that it is; once it was read.
    """

    media_type = ""
    _encoding = "identity"

    def __init__(self, connection: Connection, path: str, progress: Progress, patience: float, job: str) -> None:
        self._connection = connection
        self._path = path
        self._progress = progress
        self._job = job
        self._patience = Patience(patience)
        self._file: IO[bytes] | None = None
        self._have = self._size = self._furthest = 0
        self._tag = ""

    def read(self) -> bytes | memoryview:
        """Fetch it, and return its bytes."""
        try:
            with self._connection.in_words():
                self._patience.keep_trying(self._fetch)
            return self._bytes()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DownloadError(
                f"there is no room for a result of {self._size or 'so many'} bytes in {tempfile.gettempdir()} "
                f"({error.strerror}). The server still has it: make room, or let the variable TMPDIR name another folder, "
                f"and call `nnsight_remote.job({self._job!r}, host={self._connection.address.url!r}).result()`"
            ) from error
        finally:
            if self._file is not None:
                self._file.close()

    def _fetch(self) -> None:
        """Fetch what is missing; an error of httpx's leaves what came so far."""
        # Packed, it is a file of the server's like another, and has places to go on from. On this machine it only takes time.
        headers = {"accept-encoding": "identity" if self._connection.address.is_this_machine else packed.ENCODING}
        if self._have and self._tag:
            headers |= {"range": f"bytes={self._have}-", "if-range": self._tag}
        with self._connection.stream(self._path, headers=headers) as answer:
            if answer.status_code == 206:
                self._go_on(answer)
            else:
                self._begin(answer)
            for part in answer.iter_raw():
                self._file.write(part)  # type: ignore[union-attr]  # was made by `_begin`
                self._have += len(part)
                if self._have > self._furthest:  # what only comes again is no progress
                    self._furthest = self._have
                    self._patience.heard()
                self._progress(self._have, self._size)
        if self._size and self._have != self._size:
            raise httpx.RemoteProtocolError(f"{self._have} of {self._size} bytes came")

    def _begin(self, answer: httpx.Response) -> None:
        if self._file is not None:
            self._file.close()
        self.media_type = answer.headers.get("content-type", "").partition(";")[0]
        self._encoding = answer.headers.get("content-encoding", "identity")
        if self._encoding not in ("identity", packed.ENCODING):
            raise ProtocolError(f"{self._path} came packed with {self._encoding}, which is not known here")
        self._size = int(answer.headers.get("content-length", 0))
        self._tag = answer.headers.get("etag", "")
        self._have = 0
        # A file that is written at the disk's own pace: what does not fit is noticed where it is written.
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)

    def _go_on(self, answer: httpx.Response) -> None:
        said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("content-range", ""))
        if said is None or int(said[1]) != self._have:
            raise ProtocolError(f"{self._path} was asked to go on at byte {self._have}, and went on elsewhere")

    def _bytes(self) -> bytes | memoryview:
        file: Any = self._file
        if self._encoding == packed.ENCODING:
            file = self._unpacked(file)
        if self._have <= IN_MEMORY:
            file.seek(0)
            found: bytes = file.read()
            return found
        file.flush()
        # Mapped, so that a large result does not lie in memory twice; the map outlives the file.
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def _unpacked(self, file: IO[bytes]) -> IO[bytes]:
        target = self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)
        file.seek(0)
        try:
            with file:
                self._have = packed.unpack(cast(BinaryIO, file), cast(BinaryIO, target))
        except packed.PackedWrongly as error:
            raise ProtocolError(f"the result of job {self._job} cannot be unpacked: {error}") from None
        return target
