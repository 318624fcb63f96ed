"""vLLM's own OpenAI-compatible server, with standing edits: middleware that it is started with.

One idea: the server stays vLLM's. What it is told with options that it documents is enough: `--middleware` brings this class,
which readies the workers when the server starts, answers a request for an edit that is not there, and lets an administrator
install and remove edits while it runs; the rest is done where every engine has it (`standing.py`). `command.py` gives the
options.

Edits are code. Whoever may install one may run anything in the server's workers, so this takes a key of its own, which the
server is started with; without one, there are the edits that were installed at the start, and no others.

relies on: the application's `state` has `engine_client` and `args`; vLLM 0.30 to 0.32.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote

from nnsight import NNsightError

from .errors import EditFailedError, PromptTooLongError, StandingError
from .fields import SALT, STANDING, TRACE, names_in
from .standing import Standing

#: What the server was started with: JSON, as `command.py` writes it.
SETTINGS = "NNSIGHT_VLLM_SERVER"
#: The key that lets its holder install edits.
KEY = "NNSIGHT_ADMIN_KEY"
PATH = "/nnsight/edits"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class StandingEdits:
    """ASGI middleware: standing edits in a server of vLLM's."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.standing = Standing()
        self.engine: Any = None
        self._changing = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Take part in one exchange."""
        if scope["type"] == "lifespan":
            return await self._live(scope, receive, send)
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == PATH or scope["path"].startswith(f"{PATH}/"):
            return await _answer(send, *await self._administer(scope, receive))
        if scope["method"] == "POST" and b"json" in dict(scope["headers"]).get(b"content-type", b""):
            receive, body = await _read(receive)
            refused = self._refused(body)
            if refused is not None:
                return await _answer(send, 400, _error(400, refused))
        await self.app(scope, receive, send)

    # -- the start -----------------------------------------------------------------------------------------------------

    async def _live(self, scope: Message, receive: Receive, send: Send) -> None:
        first = await receive()
        if first["type"] == "lifespan.startup":
            try:
                await self._begin(scope["app"].state)
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": f"nnsight: {error}"})
                return
        await self.app(scope, _again(first, receive), send)

    async def _begin(self, state: Any) -> None:
        """Ready the workers, and install what the server was started with."""
        settings = json.loads(os.environ.get(SETTINGS, "{}"))
        self.engine, self.args = state.engine_client, state.args
        await self.engine.collective_rpc("nnsight_begin", args=(settings.get("turn_seconds", 60.0),))
        self.standing.watch(self.engine)
        self.engine.generate = functools.partial(self._generate, self.engine.generate)
        for name, file, options in settings.get("edits", ()):
            await self._install(name, file, every="every" in options, tokenwise="tokenwise" in options)

    async def _install(self, name: str, edits: Any, *, every: bool, tokenwise: bool) -> None:
        one, data = self.standing.made(name, edits, every, tokenwise)
        self.standing.take(one, await self.engine.collective_rpc("nnsight_install", args=(one.name, one.digest, data)))

    # -- requests ------------------------------------------------------------------------------------------------------

    def _refused(self, body: bytes) -> str | None:
        """Say why a request asks for what it cannot have, if it does: before anything of it is begun, or streamed."""
        if f'"{STANDING}'.encode() not in body:  # with which all of our fields begin
            return None
        try:
            asked = json.loads(body)
            extra = asked.get("vllm_xargs") if isinstance(asked, dict) else None
            extra = extra if isinstance(extra, dict) else {}
            self.standing.chosen(names_in(extra))
            for name in (TRACE, SALT):
                if name in extra:
                    return f"{name!r} is written by nnsight itself, and not by those who send requests."
        except json.JSONDecodeError:
            return None  # the server says what is wrong with it
        except (NNsightError, TypeError) as error:
            return str(error)
        return None

    async def _generate(self, call: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Give what the engine gives; for a request whose edit raised, raise what its sender is to be told."""
        try:
            async for output in call(*args, **kwargs):
                for one in output.outputs:
                    if one.finish_reason == "error" and isinstance(one.stop_reason, str):
                        raise EditFailedError(f"A standing edit of this request raised {one.stop_reason}")
                yield output
        except Exception as error:
            if isinstance(error.__cause__, (PromptTooLongError, StandingError)):
                raise error.__cause__ from None  # the engine makes an error of its own of what is the sender's
            raise

    # -- the administrator ---------------------------------------------------------------------------------------------

    async def _administer(self, scope: Message, receive: Receive) -> tuple[int, Any]:
        key, given = os.environ.get(KEY, ""), dict(scope["headers"]).get(b"authorization", b"")
        if not key:
            return 403, _error(403, f"This server takes no edits while it runs: it was started without {KEY}.")
        if not hmac.compare_digest(given, f"Bearer {key}".encode()):
            return 401, _error(401, f"Edits are managed with the key in {KEY}: `Authorization: Bearer KEY`.")
        name, method = unquote(scope["path"][len(PATH) + 1 :]), scope["method"]
        if not name and method == "GET":
            return 200, {"edits": [vars(one) for one in self.standing.installed.values()]}
        if not name or method not in ("PUT", "DELETE"):
            return 405, _error(405, f"There are: GET {PATH}, PUT {PATH}/NAME and DELETE {PATH}/NAME.")
        if (getattr(self.args, "api_server_count", 1) or 1) > 1:
            said = (
                "Of several API servers only one would hear of it: install edits at the start, or use one API server."
            )
            return 409, _error(409, said)
        _, data = await _read(receive)
        try:
            async with self._changing:
                return await self._change(name, method, data, parse_qs(scope["query_string"].decode()))
        except Exception as error:  # in reading code that was sent; whatever it is, the sender is told
            return 400, _error(400, f"{type(error).__name__}: {error}")

    async def _change(self, name: str, method: str, data: bytes, options: dict[str, list[str]]) -> tuple[int, Any]:
        if method == "DELETE":
            self.standing.remove(name)
            await self.engine.collective_rpc("nnsight_uninstall", args=(name,))
            return 200, {"removed": name}
        said = {
            option: options.get(option, ["false"])[-1].lower() in ("1", "true") for option in ("every", "tokenwise")
        }
        await self._install(name, data, **said)
        return 200, vars(self.standing.installed[name])


def _again(first: Message, receive: Receive) -> Receive:
    """Return a `receive` that gives a message once more."""
    waiting = [first]

    async def give() -> Message:
        return waiting.pop() if waiting else await receive()

    return give


async def _read(receive: Receive) -> tuple[Receive, bytes]:
    """Read a request's body; return a `receive` that gives it again, and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return _again(message, receive), body
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return _again({"type": "http.request", "body": body, "more_body": False}, receive), body


def _error(code: int, message: str) -> dict[str, Any]:
    kind = "BadRequestError" if code == 400 else "NNsightError"
    return {"error": {"message": message, "type": kind, "param": "vllm_xargs" if code == 400 else None, "code": code}}


async def _answer(send: Send, code: int, content: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
