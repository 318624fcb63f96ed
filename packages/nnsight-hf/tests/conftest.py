"""One checkpoint of each architecture for the whole run, saved where a user would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM

from nnsight import LanguageModel

#: Models that transformers before this release has in another form than the tests build, by a part of a test's name.
NEWER = {"fuyu": "5.23", "lightglue": "5.23"}

# Models this small are slower on several threads than on one.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for part, release in NEWER.items():
            if f"[{part}]" in item.name and Version(transformers.__version__) < Version(release):
                item.add_marker(pytest.mark.skip(reason=f"transformers before {release} builds it in another way"))


@pytest.fixture(scope="session", params=list(checkpoints.CONFIGS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoints.save(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="session")
def model(folder: str) -> Any:
    return LanguageModel(folder)


@pytest.fixture(scope="session")
def plain(folder: str) -> torch.nn.Module:
    """The same checkpoint, loaded by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoints.save(tmp_path_factory.mktemp("gpt2-once"), "gpt2")


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: str) -> Any:
    return LanguageModel(gpt2_folder)


@pytest.fixture(scope="session")
def plain_gpt2(gpt2_folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()


@pytest.fixture(scope="session")
def quanto() -> Any:
    """optimum-quanto with its C++ extension, which it compiles when first used, into its own folder.

    That takes a minute or two, and two processes that do so at once take the file away from each other.
    """
    library = pytest.importorskip("optimum.quanto")
    from filelock import FileLock
    from optimum.quanto.library.extensions import get_extension

    with FileLock(Path(library.__file__).parent / "nnsight-tests.lock"):
        get_extension("quanto_cpp").lib
    return library
