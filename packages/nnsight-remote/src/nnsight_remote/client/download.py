"""`Download`: a result on its way here, however often the connection breaks.

The one idea: what is here already is not fetched again: a broken download goes on where it stopped, if the server says that
it is still the same file, and begins anew if not. Nothing comes that was not announced: a server says how large a result is,
and what goes beyond that is none. A small result is held in memory, a large one in a temporary file that is
gone with it. That the bytes arrived unchanged, the wire itself knows: they carry a checksum.
"""

from __future__ import annotations

import errno
import mmap
import re
import tempfile
from collections.abc import Callable
from typing import IO, Any, BinaryIO, cast

import httpx

from .. import packed
from .connection import Connection
from .errors import DownloadError, ProtocolError
from .patience import Patience
from .protocol import Progress

#: A result of more bytes than this lies in a file while it is read.
IN_MEMORY = 64 << 20
#: The most bytes that a result may have, whatever a server says; assign another number if yours have more.
MOST = 64 << 30
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class Download:
    """Fetches one file from a server.

    Args:
        path: where it is there.
        progress: told how far it is.
        patience: for how many seconds nothing may come.
        job: whose result it is, for messages.
        announced: asks the server how many bytes there are, unpacked; None if it does not say.

    Attributes:
        media_type: what the server says that it is; once it was read.
    """

    media_type = ""
    _encoding = "identity"

    def __init__(
        self,
        connection: Connection,
        path: str,
        progress: Progress,
        patience: float,
        job: str,
        announced: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._path = path
        self._progress = progress
        self._job = job
        self._announced = announced
        self._patience = Patience(patience)
        self._file: IO[bytes] | None = None
        self._have = self._size = self._furthest = self._most = 0
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
            if answer.status_code == 206 and "range" in headers:
                self._go_on(answer)
            else:
                self._begin(answer)
            for part in answer.iter_raw():
                self._have += len(part)
                if self._have > self._most:
                    raise ProtocolError(
                        f"the result of job {self._job} has more than the {self._most} bytes it should have"
                    )
                self._file.write(part)  # type: ignore[union-attr]  # was made by `_begin`
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
        said = answer.headers.get("content-length", "")
        if said and not re.fullmatch(r"\d{1,18}", said, re.ASCII):
            raise ProtocolError(f"{self._path} is said to have {said[:100]!r} bytes, which is no number")
        self._size = int(said or 0)
        self._most = self._size if said else self._allowed()
        self._check(self._size)
        self._tag = answer.headers.get("etag", "")
        self._have = 0
        # A file that is written at the disk's own pace: what does not fit is noticed where it is written.
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)

    def _go_on(self, answer: httpx.Response) -> None:
        said = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d+|\*)", answer.headers.get("content-range", ""))
        if said is None or int(said[1]) != self._have:
            raise ProtocolError(f"{self._path} was asked to go on at byte {self._have}, and went on elsewhere")

    def _allowed(self) -> int:
        """Return how many bytes there may be, as the server says of the job."""
        announced = self._announced()
        return MOST if announced is None else min(announced, MOST)

    def _check(self, size: int) -> None:
        """Refuse more bytes than are taken, before the disk is full of them."""
        if size > MOST:
            raise DownloadError(
                f"the result of job {self._job} has {size} bytes, and {MOST} are taken. The server still has it: set "
                "`nnsight_remote.client.download.MOST` if it is that large, or save less"
            )

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
                size = packed.promised(cast(BinaryIO, file))
                self._check(size)
                # A few bytes can hold any number of them, so a second word is asked for.
                if size > IN_MEMORY and size > self._allowed():
                    raise ProtocolError(
                        f"the result of job {self._job} is packed, and would have {size} bytes, which is more than announced"
                    )
                self._have = packed.unpack(cast(BinaryIO, file), cast(BinaryIO, target), size)
        except packed.PackedWrongly as error:
            raise ProtocolError(f"the result of job {self._job} cannot be unpacked: {error}") from None
        return target
