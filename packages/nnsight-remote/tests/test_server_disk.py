"""A disk that is really full: what is said, what still works, and that everything goes on when there is room again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dying import Dying
from serving import SECONDS, Client

from nnsight import CONFIG
from nnsight_remote import JobError, RefusedError

#: A request of 320,000 bytes, whose result has 400,000.
X = torch.linspace(-1, 1, 80_000).reshape(-1, 4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of 8 MB."""
    folder = tmp_path / "store"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, *, leaving: int) -> Path:
    """Leave so many bytes of a disk free, or none."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with open(filler, "ab") as file:
        file.write(bytes(max(0, free - leaving)))
    return filler


def test_a_disk_that_is_full_loses_nothing_and_stops_nobody_for_good(
    model, servers: Dying, small_disk, endless, monkeypatch
):
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    url = servers.start(small_disk)
    user, logged = Client(url), len(servers.logged())

    with model.trace(X, remote=url, blocking=False) as done:
        out = model.output.save()
    done.wait(SECONDS)
    running = user.begin(endless)
    with model.trace(X, remote=url, blocking=False) as large:
        out = model.output.save()
    with model.trace(X, remote=url, blocking=False) as small:
        first = model.output[:1].save()

    filler = fill(small_disk, leaving=200_000)
    with pytest.raises(RefusedError, match="no room on its disk") as refused, model.trace(X, remote=url):
        model.output.save()
    assert (refused.value.status, refused.value.reason) == (507, "storage")
    user.http.delete(f"/jobs/{running}")
    with pytest.raises(JobError, match="could not write the result") as failed:
        large.result(SECONDS)
    assert failed.value.reason == "storage"
    assert torch.equal(small.result(SECONDS)["first"], model(X)[:1])

    running = user.begin(endless)
    with model.trace(X[:2], remote=url, blocking=False) as waiting:
        out = model.output.save()
    fill(small_disk, leaving=0)
    assert torch.equal(done.result(SECONDS)["out"], model(X))
    user.http.delete(f"/jobs/{running}")
    assert user.http.get("/status").json()["running"] == 1

    filler.unlink()
    assert user.wait(running)["state"] == "cancelled"
    assert torch.equal(waiting.result(SECONDS)["out"], model(X[:2]))
    with model.trace(X, remote=url):
        out = model.output.save()
    assert torch.equal(out, model(X))
    assert "Traceback" not in servers.logged()[logged:]
