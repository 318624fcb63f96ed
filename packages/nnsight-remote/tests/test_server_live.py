"""Following a job over socket.io, and the status page in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import socketio
import torch
from serving import SECONDS, Client, Server

X = torch.ones(2, 4)


class Follower:
    """A client of socket.io that keeps what it hears."""

    def __init__(self, server: Server, key: str) -> None:
        self.client = socketio.Client()
        self.heard: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self.client.on("event", self.heard.append)
        self.client.on("end", lambda said: self.ended.set())
        where = {"socketio_path": "/ws/socket.io", "transports": ["websocket"]}
        self.client.connect(server.url, auth={"key": key}, wait_timeout=SECONDS, **where)

    def follow(self, job: str, after: int = 0) -> dict[str, Any]:
        return self.client.call("follow", {"job": job, "after": after}, timeout=SECONDS)


def test_a_job_is_followed_over_socket_io(server, model, encoded, request):
    key = server.key(request.node.name)
    user = Client(server.url, key)
    with model.trace(X, backend=encoded):
        print("from the block")
        model.output.save()
    follower = Follower(server, key)
    try:
        job = user.submit(encoded.data)["id"]
        assert follower.follow(job) == {"job": job}
        assert follower.ended.wait(SECONDS)
        assert follower.heard == list(user.follow(job))
        assert [event["text"] for event in follower.heard] == ["queued", "running", "from the block\n", "completed"]
        follower.heard.clear()
        follower.ended.clear()
        follower.follow(job, after=2)
        assert follower.ended.wait(SECONDS)
        assert [event["number"] for event in follower.heard] == [3, 4]
    finally:
        follower.client.disconnect()


def test_over_socket_io_too_another_users_job_does_not_exist(server, user, model, encoded, request):
    with model.trace(X, backend=encoded):
        model.output.save()
    job = user.wait(user.submit(encoded.data)["id"])["id"]
    with pytest.raises(socketio.exceptions.ConnectionError):
        Follower(server, "nns_wrong")
    other = Follower(server, server.key(request.node.name + " other"))
    try:
        assert other.follow(job)["reason"] == "job"
        assert other.client.call("follow", "nonsense", timeout=SECONDS)["reason"] == "request"
        assert other.heard == []
    finally:
        other.client.disconnect()


class Browser:
    """A browser without a window, spoken to over its debugging protocol."""

    def __init__(self, program: str, folder: Path) -> None:
        quiet = ["--no-first-run", "--disable-gpu", "--disable-background-networking", "--no-sandbox"]
        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                *quiet,
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        where = next(line.split(" on ")[1].strip() for line in self._process.stderr if "DevTools listening on" in line)
        import simple_websocket

        self._line = simple_websocket.Client(where)
        self._number = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        self._line.send(json.dumps({"id": self._number, "method": method, "params": parameters, **session}))
        while (said := json.loads(self._line.receive(SECONDS))).get("id") != self._number:
            pass
        assert "error" not in said, said
        return said["result"]

    def run(self, script: str) -> Any:
        """The value of an expression in the page, once it has one if it is a promise."""
        said = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until something holds in the page, which says so at its next change."""
        self.run(
            f"new Promise((done, fail) => {{ const look = () => ({condition}) && done(true); look();"
            "new MutationObserver(look).observe(document, {subtree: true, childList: true, attributes: true});"
            f"setTimeout(() => fail('never: ' + document.body.innerText), {SECONDS * 1000 / 2}) }})"
        )

    def close(self) -> None:
        self._line.close()
        self._process.terminate()
        self._process.wait(SECONDS)
        self._process.stderr.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    programs = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, programs)), None)
    if program is None:
        pytest.skip("no browser is installed")
    browser = Browser(program, tmp_path / "browser")
    yield browser
    browser.close()


def test_the_status_page_asks_for_a_key_and_shows_models_and_jobs(server, model, encoded, browser, request):
    name = "<b>ada</b>"  # what a user is called is text, not part of the page
    key = server.key(name)
    user = Client(server.url, key)
    with model.trace(X, backend=encoded):
        model.output.save()
    job = user.wait(user.submit(encoded.data)["id"])["id"]

    browser.call("Page.navigate", url=server.url + "/")
    browser.until("document.getElementById('ask') && !document.getElementById('ask').hidden")
    assert browser.run("document.getElementById('summary').textContent") == "This server wants a key."
    browser.run(f"document.getElementById('key').value = {json.dumps(key)}")
    browser.run("document.querySelector('#ask button').click()")
    browser.until("document.querySelectorAll('#jobs tbody tr').length === 1")
    cells = "[...document.querySelectorAll('%s tbody td')].map(cell => cell.textContent)"
    assert browser.run(cells % "#jobs")[:4] == [job[:8], name, "served_models:mlp", "completed"]
    assert browser.run(cells % "#models")[:1] == ["served_models:mlp"]
    assert browser.run("document.querySelector('b') === null")
    assert "0 waiting" in browser.run("document.getElementById('summary').textContent")

    with model.trace(X, backend=encoded):
        1 / 0
    user.submit(encoded.data)
    browser.until("document.querySelectorAll('#jobs tbody tr .failed').length === 1")  # it looks by itself
    assert "division by zero" in browser.run("document.getElementById('jobs').innerText")

    browser.call("Page.navigate", url=server.url + "/docs")
    browser.until("document.body && document.body.innerText.includes('POST /request')")
