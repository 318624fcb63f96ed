"""What a user sees and types: the display of a job in each place, addresses and keys, the commands."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import answering, serving

from nnsight import CONFIG, ConfigError
from nnsight._core.commands import main
from nnsight.plugin import encode_results
from nnsight_remote.client import display, keys, ndif, notebook
from nnsight_remote.client.address import DEFAULT, Address, normal
from nnsight_remote.client.display import Display, Lines, in_bytes, make_display

WHO = {"name": "ada", "role": "user", "limits": {"queued": 100, "request_bytes": 1 << 30}}


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NDIF_API_KEY", "NDIF_HOST", "NNSIGHT_API_APIKEY", "NNSIGHT_API_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NNSIGHT_CONFIG_DIR", str(tmp_path / "config"))
    CONFIG.reload()
    yield
    monkeypatch.undo()
    CONFIG.reload()


# -- where it goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://lab:8787/", "http://lab:8787"),
        ("https://Lab.Example/nnsight", "https://lab.example/nnsight"),
        ("lab.example", "https://lab.example"),
        ("localhost:8787", "http://localhost:8787"),
        ("127.0.0.1:1", "http://127.0.0.1:1"),
    ],
)
def test_an_address_is_written_in_full(written, meant):
    assert normal(written) == meant


def test_a_host_without_a_scheme_is_encrypted_unless_the_configuration_says_otherwise(monkeypatch):
    monkeypatch.setattr(CONFIG.API, "SSL", False)
    assert normal("lab.example") == "http://lab.example"


@pytest.mark.parametrize("written", ["", "ftp://lab", "http://", "http://a b", "http://lab:port", "http://lab?key=1"])
def test_what_is_no_address_is_refused(written):
    with pytest.raises(ValueError, match="is no address|more than a server"):
        normal(written)


def test_an_address_with_a_password_in_it_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="nnsight login") as raised:
        normal("http://me:secret@lab")
    assert "secret" not in str(raised.value)


def test_the_server_and_the_key_come_from_the_configuration(monkeypatch):
    assert Address.find() == Address(DEFAULT, "")
    monkeypatch.setattr(CONFIG.API, "HOST", "lab.example")
    monkeypatch.setattr(CONFIG.API, "APIKEY", "general")
    assert Address.find() == Address("https://lab.example", "general")
    assert Address.find("http://other") == Address("http://other", "general")
    assert Address.find("http://other", "special") == Address("http://other", "special")
    assert "general" not in repr(Address.find())


def test_the_key_comes_from_the_environment_or_from_colab(monkeypatch):
    secrets = types.ModuleType("google.colab.userdata")
    secrets.SecretNotFoundError = type("SecretNotFoundError", (Exception,), {})
    secrets.NotebookAccessError = type("NotebookAccessError", (Exception,), {})
    secrets.get = {"NDIF_API_KEY": "of-colab"}.get
    colab = types.ModuleType("google.colab")
    colab.userdata = secrets
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert Address.find().key == "of-colab"

    def refuse(name: str) -> str:
        raise secrets.NotebookAccessError(name)

    secrets.get = refuse
    assert Address.find().key == ""
    monkeypatch.setenv("NDIF_API_KEY", "of-the-environment")
    CONFIG.reload()
    assert Address.find().key == "of-the-environment"


def test_a_key_for_one_server_goes_to_no_other():
    keys.keep("http://lab:8787", "its-own")
    assert Address.find("http://lab:8787/").key == "its-own" and Address.find("http://other").key == ""
    assert keys.path().stat().st_mode & 0o077 == 0
    keys.keep("http://lab:8787", "")
    assert keys.find("http://lab:8787") == ""
    for broken in ("{", "[]", '{"http://lab": 3}'):
        keys.path().write_text(broken)
        with pytest.raises(ConfigError, match=re.escape(str(keys.path()))):
            Address.find("http://lab")


# -- commands --------------------------------------------------------------------------------------------------------


def test_login_tries_a_key_and_keeps_it(monkeypatch, capsys):
    with answering(serving(**{"GET /whoami": WHO})) as server:
        monkeypatch.setattr(sys, "stdin", io.StringIO("the-key\n"))
        assert main(["login", server.url]) == 0
        assert "knows you as ada" in capsys.readouterr().out
        assert server.asked[-1][1]["authorization"] == "Bearer the-key"
        assert keys.find(server.url) == "the-key" and CONFIG.API.APIKEY is None

        monkeypatch.setattr(CONFIG.API, "HOST", server.url)
        assert main(["login", "--key", "another"]) == 0
        assert CONFIG.API.APIKEY == "another"
        assert json.loads(CONFIG.path.read_text())["API"]["APIKEY"] == "another"

        assert main(["whoami"]) == 0
        said = capsys.readouterr().out
        assert f"ada on {server.url}" in said and "1,073,741,824" in said
        assert "the-key" not in said and "another" not in said
        assert ndif.whoami()["role"] == "user"


def test_login_keeps_no_key_that_is_wrong_or_cannot_be_tried(monkeypatch, capsys):
    wrong = (401, {}, {"reason": "key", "message": "this key is not known here"})
    with answering(serving(**{"GET /whoami": wrong})) as server:
        assert main(["login", server.url, "--key", "wrong"]) == 1
        assert "not known here" in capsys.readouterr().err and not keys.path().exists()
    monkeypatch.setattr("nnsight_remote.client.connection.FIRST_CONTACT", 0.1)
    assert main(["login", "http://127.0.0.1:9", "--key", "k"]) == 1
    assert "--unchecked" in capsys.readouterr().err
    assert main(["login", "http://127.0.0.1:9", "--key", "k", "--unchecked"]) == 0
    assert keys.find("http://127.0.0.1:9") == "k"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["login", "http://127.0.0.1:9"]) == 1 and "no key" in capsys.readouterr().err
    assert main(["whoami", "ftp://nothing"]) == 1 and "no address" in capsys.readouterr().err


# -- displays --------------------------------------------------------------------------------------------------------

SCRIPT = """
    import sys, torch, nnsight
    from nnsight.testing.models import MLP
    model = nnsight.NNsight(MLP())
    with model.trace(torch.ones(1, 4), remote=sys.argv[1]):
        out = model.output.save()
    print("out", float(out))
"""


@pytest.fixture
def there() -> Iterator[str]:
    said = [("state", "queued"), ("state", "running"), ("log", "from the block\n"), ("state", "completed")]
    events = "".join(
        f"data: {json.dumps({'job': 'j1', 'number': number, 'at': 0, 'kind': kind, 'text': text})}\n\n"
        for number, (kind, text) in enumerate(said, start=1)
    )
    result = encode_results({"out": 1.5})
    with answering(serving(result, **{"GET /jobs/j1/events": (200, {}, events.encode())})) as server:
        yield server.url


def test_plain_lines_where_the_output_is_no_terminal(there):
    line = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), there]
    said = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert said.stdout == "from the block\nout 1.5\n", said.stderr
    lines = said.stderr.splitlines()
    said_states = [re.fullmatch(r"nnsight: job j1 on [\d.:]+: (.*) \(\d+\.\d s\)", line)[1] for line in lines]
    assert said_states == ["waiting for its turn", "running", "fetching the result", "done"]


def test_one_line_in_place_in_a_terminal(there):
    ours, theirs = pty.openpty()
    line = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), there]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # the terminal is closed
            break
        if not data:
            break
        seen += data
    os.close(ours)
    assert process.wait(60) == 0, seen
    text = seen.decode()
    assert "\x1b[2K" in text and "from the block" in text and "out 1.5" in text  # lines are written anew
    drawn = re.sub(r"\x1b\[[\d;?]*\w", "", text).replace("\r", "\n").splitlines()
    states = [line for line in drawn if "job j1" in line]
    assert states and re.search(r"✓ job j1 .*: done \(\d+\.\d s\)$", states[-1])


def test_a_notebook_gets_html_that_is_written_anew(monkeypatch):
    shown: list[str] = []

    class Handle:
        def update(self, html: Any) -> None:
            shown.append(html.data)

    shell = types.SimpleNamespace(kernel=object())
    import IPython
    import IPython.display

    def show(html: Any, display_id: bool) -> Handle:
        shown.append(html.data)
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(IPython.display, "display", show)
    made = make_display("<lab>")
    assert isinstance(made, notebook.Notebook)
    with made:
        made.show("running")
        made.loaded(5, 10)
        made.show("fetching")
        made.show("completed")
    assert all(html.startswith("<div") and "&lt;lab&gt;" in html for html in shown)
    assert any("<progress" in html for html in shown) and "●" in shown[-1] and "done" in shown[-1]


def test_a_display_says_how_far_it_is_and_how_it_ended(capsys):
    with pytest.raises(ValueError), Lines("lab") as lines:
        lines.show("queued")
        lines.remark("the server is busy")
        lines.show("fetching")
        lines.loaded(1500, 3_000_000)
        assert "1.5 KB of 3.0 MB" in lines.line()
        raise ValueError
    said = capsys.readouterr().err
    assert "the server is busy" in said and said.splitlines()[-1].startswith("nnsight: lab: failed")
    with pytest.raises(KeyboardInterrupt), Display("lab") as nothing:
        raise KeyboardInterrupt
    assert nothing.state == "cancelled" and capsys.readouterr().err == ""
    assert [in_bytes(size) for size in (1, 1500, 2_000_000, 3e9)] == ["1 B", "1.5 KB", "2.0 MB", "3.00 GB"]


def test_the_display_fits_the_place(monkeypatch, capsys):
    assert type(make_display("x")) is Lines and type(make_display("x", quiet=True)) is Display
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    with make_display("x") as nothing:
        nothing.show("running")
        nothing.show("completed")
    assert capsys.readouterr() == ("", "")
    assert type(make_display("x")) is Display and type(make_display("x", quiet=False)) is Lines
    assert not display.in_notebook()


def test_two_jobs_at_once_share_a_terminal(monkeypatch, capsys):
    from nnsight_remote.client.terminal import Terminal

    monkeypatch.setenv("TERM", "xterm")
    with Terminal("first") as first, Terminal("second") as second:
        first.show("running")
        second.show("running")
        second.show("completed")
        first.show("completed")
    said = capsys.readouterr().err
    assert "nnsight: second: running" in said and "nnsight: second: done" in said and "first: done" in said
    with Terminal("third") as third:
        third.show("completed")
    assert "✓ third: done" in capsys.readouterr().err
