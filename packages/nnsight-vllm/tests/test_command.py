"""`nnsight vllm-serve`: what it makes of its own options, and that what it adds to vLLM's is there."""

from __future__ import annotations

from importlib import import_module

import pytest

import nnsight
from nnsight_vllm import command


def test_what_is_said_of_an_edit_is_read_or_refused(tmp_path) -> None:
    file = tmp_path / "calm.edit"
    file.touch()
    assert command._edit(f"calm={file}") == ("calm", str(file), [])
    assert command._edit(f"calm={file},tokenwise,every") == ("calm", str(file), ["tokenwise", "every"])
    for said, why in (
        (f"{file}", "NAME=FILE"),
        (f"calm={file},often", "NAME=FILE"),
        ("calm=nowhere", "there is no file"),
    ):
        with pytest.raises(ValueError, match=why):
            command._edit(said)


def test_a_line_that_cannot_be_understood_ends_with_a_message(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        command.serve(["model", "--edit", "calm"])
    assert ended.value.code == 2
    assert "an edit is given as NAME=FILE" in capsys.readouterr().err


def test_what_is_added_to_the_options_of_vllm_is_there_by_name() -> None:
    named = [option.partition("=")[2] for option in command.OPTIONS if "=" in option]
    assert len(named) == 3
    for name in named:
        module, _, thing = name.rpartition(".")
        assert callable(getattr(import_module(module), thing))


def test_the_command_is_offered() -> None:
    (found,) = [one for one in nnsight.plugins() if one.distribution == "nnsight-vllm"]
    assert "vllm-serve" in found.offers["commands"]
