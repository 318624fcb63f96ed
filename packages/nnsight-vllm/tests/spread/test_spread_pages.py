"""The pages about engines in processes of their own tell the truth: their examples run there."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from pathlib import Path

import pytest
from vllm.v1.engine import utils

# What runs a page is one for all packages.
_FILE = Path(__file__).parents[4] / "tests-integration" / "pages.py"
_spec = importlib.util.spec_from_file_location("pages", _FILE)
assert _spec is not None and _spec.loader is not None
pages = sys.modules["pages"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", pages.pages_of("nnsight-vllm/spread"), ids=lambda path: path.stem)
def test_the_examples_of_a_page_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A fork of this process, which has imported all that takes long to import.
    monkeypatch.setattr(utils, "get_mp_context", lambda: multiprocessing.get_context("fork"))
    pages.Page(path).run()


def test_there_are_pages():
    assert pages.ROOT / "docs" / "how-to" / "vllm-async.md" in pages.pages_of("nnsight-vllm/spread")
