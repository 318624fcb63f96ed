"""`nnsight serve MODEL ...` and `nnsight serve keys ...`: the command line of the server.

The one idea: what is safe needs no option. The server listens to this machine only, lets nobody in without a key, and
runs blocks with least power; each of these is given up by name. Reading options is all that happens here.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXTRA = 'the server needs packages that are not installed: pip install "nnsight-remote[server]"'
_MOST_FILES = 1 << 16
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `nnsight serve ...` and return its exit status."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _keys(line[1:]) if line[:1] == ["keys"] else _serve(line)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {
            "fastapi",
            "starlette",
            "uvicorn",
            "socketio",
            "prometheus_client",
        }:
            raise
        print(f"nnsight serve: {EXTRA}  ({error})", file=sys.stderr)
    except _Wrong as error:
        print(f"nnsight serve: {error}", file=sys.stderr)
    return 2


class _Wrong(Exception):
    """The line cannot be obeyed; the text says why."""


def _serve(line: Sequence[str]) -> int:
    options = _parser().parse_args(line)
    if sys.platform == "win32":
        raise _Wrong("the server needs Linux or, with --trusted, macOS; on Windows it runs in WSL")
    from .confine.files import code_folders
    from .engine import ModelSpec
    from .limits import Limits, parse_limits

    if options.at_once < 1:
        raise _Wrong("--at-once says how many jobs may run at once, at least 1")
    if options.open and options.host not in LOOPBACK:
        raise _Wrong(f"--open lets everybody in, so it listens to this machine only, not to {options.host}")
    try:
        limits = Limits().but(parse_limits(options.limit))
        specs = [ModelSpec.parse(text, options.family, _options(options.option)) for text in options.models]
    except ValueError as error:
        raise _Wrong(str(error)) from None
    if not options.trusted and (inside := [folder for folder in code_folders() if _lies_in(options.store, folder)]):
        raise _Wrong(
            f"blocks may read installed code, and the store {options.store} would lie in {inside[0]}, among it; name "
            "another folder with --store"
        )
    if len({spec.name for spec in specs}) < len(specs):
        raise _Wrong("two models have one name; write NAME=MODEL")

    import uvicorn

    from .app import Settings, make_app
    from .connections import Connections
    from .keys import Keyring
    from .logs import set_up
    from .store import Store, StoreInUse

    engine = _engine(options, [spec.name for spec in specs])
    set_up(options.log_level)
    _allow_connections()
    settings = Settings(
        folder=options.store,
        specs=specs,
        limits=limits,
        room=options.room or len(specs),
        queue_length=options.queue_length,
        kept_seconds=options.keep_hours * 3600,
        open=options.open,
        trusted=options.trusted,
        eight=not options.refuse_eight,
        public_status=options.public_status,
    )
    try:
        store = Store(options.store)
        store.lock()
    except StoreInUse as error:
        raise _Wrong(str(error)) from None
    try:
        listening = _listen(options.host, options.port)
    except OSError as error:
        raise _Wrong(f"{options.host}:{options.port} cannot be listened to: {error}") from None
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    print(f"nnsight serves {', '.join(spec.name for spec in specs)} at {address} (stop it with Ctrl-C)", flush=True)
    if options.host not in LOOPBACK:
        print("keys and results can be read on their way: put a proxy with TLS before it", flush=True)
    if not options.open:
        _first_key(Keyring(store))
    config = uvicorn.Config(
        make_app(settings, store, engine),
        http=Connections,
        log_config=None,
        timeout_graceful_shutdown=5,
        server_header=False,
        lifespan="on",
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        store.close()
    return 0


def _engine(options: argparse.Namespace, models: Sequence[str]) -> Any:
    from .cluster.options import ray_engine
    from .confine import Confinement
    from .processes import ProcessEngine

    confinement = Confinement(options.trusted, tuple(options.allow_import), tuple(options.allow_read))
    if options.engine == "ray":
        try:
            return ray_engine(options, confinement, models)
        except ValueError as error:
            raise _Wrong(str(error)) from None
    if options.ray_resource:
        raise _Wrong("--ray-resource says what a cluster gives; it is for --engine ray")
    threads = options.threads or max(1, (os.cpu_count() or 2) // 2)
    return ProcessEngine(confinement, options.isolation, threads, at_once=options.at_once)


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _listen(host: str, port: int) -> socket.socket:
    # With the protocol said: asyncio sends small answers at once (TCP_NODELAY) only where it knows that this is TCP.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError:
        listening.close()
        raise
    return listening


def _allow_connections() -> None:
    """Let this process have as many files open as it may: whoever waits for a job holds a connection."""
    import resource

    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    if few != resource.RLIM_INFINITY and few < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))


def _first_key(keyring: Any) -> None:
    if not keyring.users():
        key = keyring.add("admin", "admin")
        print(f"the first key, for admin, shown this once: {key}", flush=True)
        print("more of them: nnsight serve keys add NAME", flush=True)


def _keys(line: Sequence[str]) -> int:
    options = _keys_parser().parse_args(line)
    from .keys import Keyring
    from .limits import parse_limits
    from .store import Store

    store = Store(options.store)
    keyring = Keyring(store)
    try:
        if options.action == "add":
            if options.replace and keyring.named(options.name):
                print(keyring.replace(options.name))
            else:
                print(keyring.add(options.name, "admin" if options.admin else "user", parse_limits(options.limit)))
        elif options.action == "remove":
            if not keyring.remove(options.name):
                raise _Wrong(f"{options.name!r} has no key")
        else:
            for user in keyring.users():
                limits = " ".join(f"{name}={value:g}" for name, value in user.limits.items())
                print(f"{user.name}\t{user.role}\t{limits}".rstrip())
    except ValueError as error:
        raise _Wrong(str(error)) from None
    finally:
        store.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    from .cluster.options import add_options

    parser = argparse.ArgumentParser(
        prog="nnsight serve",
        description="Let users run blocks on models of this machine.",
        epilog="nnsight serve keys --help says how keys are made.",
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="[NAME=]MODEL", help="what a family loads, or module:function that makes a model")
    add("--family", default="LanguageModel", help="the family of the models (LanguageModel)")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the family, VALUE as in JSON",
    )
    add("--host", default="127.0.0.1", help="address to listen to (127.0.0.1: this machine only)")
    add("--port", type=int, default=8787, help="port to listen to (8787); 0 for any")
    _add_store(parser)
    add("--room", type=int, default=0, help="how many models may be loaded at once (all)")
    add("--limit", action="append", default=[], metavar="NAME=NUMBER", help="a limit of every user, as run_seconds=60")
    add("--queue-length", type=int, default=10_000, help="how many jobs may wait for each model (10000)")
    add("--keep-hours", type=float, default=24.0, help="how long finished jobs are kept (24)")
    add("--threads", type=int, default=0, help="threads that a job computes with (half the cores; its num_cpus on Ray)")
    add("--at-once", type=int, default=16, help="jobs that may run at once on a model that an engine serves (16)")
    add_options(parser)
    add("--isolation", choices=("auto", "fork", "resident"), default="auto", help="a process for each job, or not")
    add("--allow-import", action="append", default=[], metavar="PACKAGE", help="let blocks import this, too")
    add("--allow-read", action="append", default=[], metavar="PATH", help="let blocks read this file or folder")
    add("--open", action="store_true", help="want no keys: whoever is on this machine may use it")
    add("--refuse-0.8", action="store_true", dest="refuse_eight", help="take no jobs of clients of nnsight 0.8 in")
    add("--public-status", action="store_true", help="tell whoever has no key which models and versions there are")
    add("--trusted", action="store_true", help="run blocks with all the power of whoever starts the server")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


def _keys_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nnsight serve keys", description="Say who may use the server.")
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="make a key and print it; it cannot be seen again")
    add.add_argument("name")
    add.add_argument("--admin", action="store_true", help="may see all jobs, load and evict models")
    add.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER", help="a limit for this user")
    add.add_argument("--replace", action="store_true", help="make a new key for a user who has one, which is void then")
    remove = actions.add_parser("remove", help="let a user in no more")
    remove.add_argument("name")
    for action in (add, remove, actions.add_parser("list", help="show who has a key")):
        _add_store(action)
    return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("NNSIGHT_SERVER_STORE")
    if not default:
        import platformdirs

        default = str(Path(platformdirs.user_data_dir("nnsight", appauthor=False)) / "server")
    parser.add_argument("--store", type=Path, default=Path(default), help=f"folder of jobs and keys ({default})")


def _options(words: Sequence[str]) -> dict[str, Any]:
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"an option is written NAME=VALUE, not {word!r}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


if __name__ == "__main__":
    sys.exit(main())
