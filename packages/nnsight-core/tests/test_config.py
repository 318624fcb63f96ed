"""`CONFIG`: kinds, sources, and the file, each seen as a fresh process would see it (a new `Config` is one)."""

from __future__ import annotations

import copy
import inspect
import json
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from block_contexts import ROOT, stub

from nnsight._core.config import Config
from nnsight._core.errors import ConfigError, NNsightError, NNsightWarning

VARIABLES = ("NNSIGHT_DEBUG", "NDIF_API_KEY", "NDIF_HOST")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("NNSIGHT_") or name in VARIABLES]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NNSIGHT_CONFIG_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def file(folder):
    return folder / "config.json"


def quiet_config():
    """A `Config` as a new process makes it, which must have nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Config()


def test_defaults_without_a_file(file):
    config = quiet_config()
    assert (config.APP.DEBUG, config.APP.CROSS_INVOKER, config.APP.PYMOUNT) == (False, True, True)
    assert (config.API.HOST, config.API.APIKEY) == (None, None)
    assert config.path == file and not file.exists()


def test_reading_a_setting_is_a_lookup_in_the_instance():
    app = quiet_config().APP
    app.DEBUG = True
    assert vars(app)["DEBUG"] is True
    assert type(app).__getattribute__ is object.__getattribute__


@pytest.mark.parametrize("value", [1, "yes", None])
def test_a_wrong_kind_is_refused_and_changes_nothing(value):
    config = quiet_config()
    with pytest.raises(ConfigError, match=r"CONFIG\.APP\.PYMOUNT is True or False.*" + type(value).__name__):
        config.APP.PYMOUNT = value
    assert config.APP.PYMOUNT is True


def test_a_refused_key_is_not_printed():
    with pytest.raises(ConfigError) as caught:
        quiet_config().API.APIKEY = b"secret"
    assert "secret" not in str(caught.value)


def test_unknown_names_say_which_there_are():
    config = quiet_config()
    with pytest.raises(ConfigError, match=r"no setting CONFIG\.APP\.DEBG; there are DEBUG, CROSS_INVOKER"):
        config.APP.DEBG = True
    with pytest.raises(ConfigError, match="there are HOST"):
        _ = config.API.KEY
    with pytest.raises(ConfigError, match=r"it is CONFIG\.APP\.DEBUG"):
        config.DEBUG = True
    with pytest.raises(ConfigError, match="cannot be replaced"):
        config.APP = None
    with pytest.raises(ConfigError, match="cannot be deleted"):
        del config.APP.DEBUG
    assert not hasattr(config.APP, "DEBG") and not hasattr(config, "DEBUG")
    assert issubclass(ConfigError, NNsightError)


def test_what_was_set_is_there_in_the_next_process(file):
    first = quiet_config()
    first.APP.DEBUG = True
    first.API.HOST = "https://example.org"
    assert quiet_config().APP.DEBUG is False
    first.save()
    second = quiet_config()
    assert (second.APP.DEBUG, second.API.HOST, second.APP.PYMOUNT) == (True, "https://example.org", True)
    second.APP.DEBUG = False
    second.save()
    assert quiet_config().APP.DEBUG is False


def test_only_what_was_set_is_written(file):
    config = quiet_config()
    config.APP.DEBUG = False
    config.save()
    assert json.loads(file.read_text()) == {"APP": {"DEBUG": False}, "API": {}}


def test_another_real_process_sees_it(folder):
    config = quiet_config()
    config.set_default_api_key("KEY-1")
    # Without `nnsight`'s own `__init__`, which would import torch.
    code = f"""
import sys, types
{inspect.getsource(stub)}
stub({ROOT!r})
from nnsight._core.config import CONFIG
print(CONFIG.API.APIKEY, CONFIG.APP.DEBUG, CONFIG.APP.PYMOUNT, "torch" in sys.modules)
"""
    # `python -d` stands for debugging; the program's own -d and --debug do not.
    for options, debug in ([], "False"), (["-d"], "True"):
        done = subprocess.run(
            [sys.executable, *options, "-c", code, "-d", "--debug"], capture_output=True, text=True, timeout=120
        )
        assert done.stdout.split() == ["KEY-1", debug, "True", "False"], done.stderr
    assert "DEBUG" not in json.loads(config.path.read_text())["APP"]


def test_the_key_is_for_its_owner_only(file):
    file.write_text("{}")
    file.chmod(0o644)
    config = quiet_config()
    config.set_default_api_key("KEY-2")
    assert quiet_config().API.APIKEY == "KEY-2"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "KEY-2" not in repr(config) and "hidden" in repr(config)


def test_the_file_is_replaced_in_one_step(file, monkeypatch):
    config = quiet_config()
    config.set_default_api_key("KEY-3")
    before = file.read_bytes()

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    config.APP.DEBUG = True
    with pytest.raises(ConfigError, match=r"no space left.*NNSIGHT_CONFIG_DIR"):
        config.save()
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]
    monkeypatch.undo()
    monkeypatch.setenv("NNSIGHT_CONFIG_DIR", str(file.parent))
    config.save()
    assert quiet_config().APP.DEBUG is True


def test_a_link_to_the_file_stays_a_link(file, folder):
    real = folder / "elsewhere.json"
    real.write_text("{}")
    file.symlink_to(real)
    config = quiet_config()
    config.APP.DEBUG = True
    config.save()
    assert file.is_symlink() and json.loads(real.read_text())["APP"] == {"DEBUG": True}


def test_the_folder_is_made_when_something_is_saved(folder, monkeypatch):
    monkeypatch.setenv("NNSIGHT_CONFIG_DIR", str(folder / "a" / "b"))
    config = quiet_config()
    assert not (folder / "a").exists()
    config.APP.DEBUG = True
    config.save()
    assert quiet_config().APP.DEBUG is True


def test_without_the_variable_the_users_folder_is_asked_for(monkeypatch):
    import platformdirs

    monkeypatch.delenv("NNSIGHT_CONFIG_DIR")
    assert Config().path == Path(platformdirs.user_config_dir("nnsight", appauthor=False)) / "config.json"


def test_two_processes_do_not_undo_each_other():
    one, two = quiet_config(), quiet_config()
    one.API.APIKEY = "KEY-4"
    one.save()
    two.APP.DEBUG = True
    two.save()
    third = quiet_config()
    assert (third.API.APIKEY, third.APP.DEBUG) == ("KEY-4", True)


def test_unknown_keys_are_kept(file):
    file.write_text(json.dumps({"APP": {"FUTURE": 3}, "PLUGIN": {"A": 1}, "API": {"APIKEY": None}}))
    config = quiet_config()
    config.APP.DEBUG = True
    config.save()
    assert json.loads(file.read_text()) == {
        "APP": {"FUTURE": 3, "DEBUG": True},
        "PLUGIN": {"A": 1},
        "API": {"APIKEY": None},
    }


def test_environment_over_file_and_not_into_the_file(file, monkeypatch):
    file.write_text(json.dumps({"API": {"APIKEY": "FILE"}, "APP": {"PYMOUNT": True}}))
    monkeypatch.setenv("NDIF_API_KEY", "ENV")
    monkeypatch.setenv("NDIF_HOST", "https://env")
    monkeypatch.setenv("NNSIGHT_APP_PYMOUNT", "off")
    config = quiet_config()
    assert (config.API.APIKEY, config.API.HOST, config.APP.PYMOUNT) == ("ENV", "https://env", False)
    config.APP.DEBUG = True
    config.save()
    assert json.loads(file.read_text()) == {"API": {"APIKEY": "FILE"}, "APP": {"PYMOUNT": True, "DEBUG": True}}


def test_our_variable_comes_before_the_customary_one(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "THEIRS")
    monkeypatch.setenv("NNSIGHT_API_APIKEY", "OURS")
    assert quiet_config().API.APIKEY == "OURS"
    monkeypatch.setenv("NNSIGHT_API_APIKEY", "")
    assert quiet_config().API.APIKEY == "THEIRS"


@pytest.mark.parametrize("text, value", [("1", True), ("TRUE", True), (" on ", True), ("0", False), ("no", False)])
def test_truth_in_the_environment(monkeypatch, text, value):
    monkeypatch.setenv("NNSIGHT_APP_DEBUG", text)
    assert quiet_config().APP.DEBUG is value


def test_nonsense_in_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("NNSIGHT_APP_DEBUG", "maybe")
    with pytest.raises(ConfigError, match=r"NNSIGHT_APP_DEBUG is 'maybe'.*true"):
        Config()


def test_an_assignment_is_over_the_environment_and_a_save_says_who_wins_next(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "ENV")
    config = quiet_config()
    config.API.APIKEY = "MINE"
    assert config.API.APIKEY == "MINE"
    with pytest.warns(NNsightWarning, match="NDIF_API_KEY says otherwise"):
        config.save()
    monkeypatch.delenv("NDIF_API_KEY")
    assert quiet_config().API.APIKEY == "MINE"


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"{not json", "Expecting"),
        (b"\xff\xfe\xfa", "decode"),
        (b"[1, 2]", "no table"),
        (b'{"APP": 3}', "APP is no table"),
        (b'{"APP": {"DEBUG": "yes"}}', "APP.DEBUG is not True or False"),
    ],
)
def test_a_corrupt_file_gives_defaults_one_warning_and_is_kept(file, content, problem):
    file.write_bytes(content)
    with pytest.warns(NNsightWarning, match=problem) as caught:
        config = Config()
    assert len(caught) == 1 and str(file) in str(caught[0].message)
    assert config.APP.DEBUG is False
    assert file.read_bytes() == content

    config.set_default_api_key("KEY-5")
    assert file.with_name("config.json.bak").read_bytes() == content
    assert quiet_config().API.APIKEY == "KEY-5"


def test_an_older_backup_is_not_overwritten(file):
    file.with_name("config.json.bak").write_text("older")
    file.write_text("{broken")
    with pytest.warns(NNsightWarning):
        config = Config()
    config.save()
    assert file.with_name("config.json.bak").read_text() == "older"
    assert file.with_name("config.json.bak1").read_text() == "{broken"


def test_what_is_wrong_in_one_place_does_not_cost_the_rest(file):
    file.write_text('{"APP": {"DEBUG": "yes", "PYMOUNT": false}, "API": {"APIKEY": "KEY-6"}}')
    with pytest.warns(NNsightWarning):
        config = Config()
    assert (config.APP.PYMOUNT, config.API.APIKEY) == (False, "KEY-6")


def test_a_file_that_cannot_be_read(file):
    file.mkdir()
    with pytest.warns(NNsightWarning, match="cannot be used"):
        config = Config()
    config.APP.DEBUG = True
    config.save()
    assert quiet_config().APP.DEBUG is True and file.with_name("config.json.bak").is_dir()


def test_reset_gives_defaults_and_saves_as_such(file, monkeypatch):
    file.write_text(json.dumps({"APP": {"DEBUG": True, "FUTURE": 1}}))
    monkeypatch.setenv("NDIF_HOST", "https://env")
    config = quiet_config()
    config.API.HOST = "https://mine"
    config.reset()
    assert (config.APP.DEBUG, config.API.HOST) == (False, "https://env")
    assert quiet_config().APP.DEBUG is True
    config.save()
    assert json.loads(file.read_text()) == {"APP": {"FUTURE": 1}, "API": {}}
    config.APP.DEBUG = True
    config.save()
    assert quiet_config().APP.DEBUG is True


def test_reload_reads_again(file):
    config = quiet_config()
    config.APP.PYMOUNT = False
    file.write_text(json.dumps({"APP": {"DEBUG": True}}))
    config.reload()
    assert (config.APP.DEBUG, config.APP.PYMOUNT) == (True, True)
    config.save()
    assert json.loads(file.read_text())["APP"] == {"DEBUG": True}


def test_listeners_hear_changes_only(file):
    config = quiet_config()
    heard = []
    end = config.APP.on_change("PYMOUNT", heard.append)
    config.APP.PYMOUNT = True
    config.APP.DEBUG = True
    config.APP.PYMOUNT = False
    config.reset()
    file.write_text(json.dumps({"APP": {"PYMOUNT": False}}))
    config.reload()
    assert heard == [False, True, False]
    end()
    config.APP.PYMOUNT = True
    assert heard == [False, True, False]
    with pytest.raises(ConfigError, match="PYMONT"):
        config.APP.on_change("PYMONT", heard.append)


def test_a_listener_can_refuse():
    config = quiet_config()

    def refuse(value):
        raise RuntimeError("not now")

    config.APP.on_change("PYMOUNT", refuse)
    with pytest.raises(RuntimeError, match="not now"):
        config.APP.PYMOUNT = False
    assert config.APP.PYMOUNT is True
    config.save()
    assert quiet_config().APP.PYMOUNT is True


def test_settings_of_old_libraries_are_taken_with_a_warning():
    config = quiet_config()
    with pytest.warns(DeprecationWarning, match="TRACE_CACHING has no effect"):
        config.APP.TRACE_CACHING = False
    assert config.APP.TRACE_CACHING is True


def test_repr_says_where_values_come_from(file, monkeypatch):
    file.write_text(json.dumps({"APP": {"CROSS_INVOKER": False}}))
    monkeypatch.setenv("NNSIGHT_APP_DEBUG", "1")
    config = quiet_config()
    config.APP.PYMOUNT = False
    lines = [line.split(maxsplit=2) for line in repr(config).splitlines()[1:]]
    origins = {name: (value, origin) for name, value, origin in lines}
    assert origins["APP.DEBUG"] == ("True", "NNSIGHT_APP_DEBUG")
    assert origins["APP.CROSS_INVOKER"] == ("False", "file")
    assert origins["APP.PYMOUNT"] == ("False", "set here")
    assert origins["API.HOST"] == ("None", "default")


def test_copies_are_possible():
    config = quiet_config()
    config.APP.DEBUG = True
    assert copy.deepcopy(config).APP.DEBUG is True
