"""`nnsight serve` on the command line: what is printed, what is refused, and that keys made beside it count at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nnsight
from nnsight_remote.server import command
from nnsight_remote.server.keys import Keyring
from nnsight_remote.server.store import Store


def test_it_is_a_command_of_nnsight():
    (found,) = [one for one in nnsight.plugins() if one.distribution == "nnsight-remote"]
    assert found.offers["commands"]["serve"] == "nnsight_remote.server.command:main"


def test_keys_are_made_listed_and_removed(store_folder, capsys):
    def keys(*line):
        status = command.main(["keys", *line, "--store", str(store_folder)])
        return status, capsys.readouterr()

    status, said = keys("add", "ada", "--limit", "memory_bytes=1G", "--admin")
    key = said.out.strip()
    assert status == 0
    status, said = keys("add", "ada")
    assert status == 2 and "has a key already" in said.err
    status, said = keys("list")
    assert said.out.split() == ["ada", "admin", "memory_bytes=1.07374e+09"]
    store = Store(store_folder)
    assert Keyring(store).find(key).is_admin
    status, said = keys("add", "ada", "--replace")
    assert status == 0 and Keyring(store).find(key) is None and Keyring(store).find(said.out.strip()).is_admin
    assert keys("remove", "ada")[0] == 0 and keys("remove", "ada")[0] == 2
    store.close()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (["m", "--open", "--host", "0.0.0.0"], "this machine only"),
        (["m", "--limit", "run_second=1"], "no limit run_second"),
        (["m", "m"], "one name"),
        (["modèle=m"], "so it is ASCII"),
        (["m", "--option", "bfloat16"], "NAME=VALUE"),
        (["m", "--ray-resource", "num_gpus=1"], "for --engine ray"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(line, complaint, store_folder, capsys):
    assert command.main([*line, "--store", str(store_folder)]) == 2
    assert complaint in capsys.readouterr().err
    assert not store_folder.exists()


def test_a_store_that_blocks_could_read_is_refused(capsys):
    store = Path(nnsight.__file__).parent / "store"
    assert command.main(["m", "--store", str(store)]) == 2
    assert "blocks may read" in capsys.readouterr().err and not store.exists()


def test_a_store_in_use_is_refused(store_folder, capsys):
    store = Store(store_folder)
    store.lock()
    assert command.main(["m", "--store", str(store_folder)]) == 2
    assert "another server works on" in capsys.readouterr().err
    store.close()


def test_without_the_extra_it_says_what_to_install(store_folder):
    code = (
        "import sys; sys.modules['fastapi'] = None; from nnsight_remote.server.command import main; "
        f"sys.exit(main(['m', '--store', {str(store_folder)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and 'pip install "nnsight-remote[server]"' in done.stderr
