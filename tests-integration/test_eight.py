"""Unmodified clients of nnsight 0.8.1 at our server: what they get there is what they get at home, bit for bit.

The client runs in a Python of its own, whose path is in the variable NNSIGHT_PEER_PYTHON (`nox -s tests-integration` makes
it); the cases are in `eight_client.py`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

pytest.importorskip("fastapi", reason="the extra [server] of nnsight-remote is not installed")
PEER = os.environ.get("NNSIGHT_PEER_PYTHON", "")
pytestmark = pytest.mark.skipif(not PEER, reason="NNSIGHT_PEER_PYTHON names no Python with nnsight 0.8.1")
CLIENT = Path(__file__).with_name("eight_client.py")
TESTS = Path(__file__).parents[1] / "packages" / "nnsight-remote" / "tests"
NAME = "tests/tiny-gpt2"


def _cases() -> list[str]:
    """The names of the cases, which only the peer can import."""
    functions = [node for node in ast.parse(CLIENT.read_text()).body if isinstance(node, ast.FunctionDef)]
    marked = [
        one for one in functions if any(getattr(mark, "id", "") in ("same", "case") for mark in one.decorator_list)
    ]
    return [one.name for one in marked]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that both load."""
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *(f"w{i}" for i in range(62))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    GPT2LMHeadModel(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What was wrong with each case, by its name; they run one after another in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS))
        from serving import Server
    store = tmp_path_factory.mktemp("eight") / "store"
    server = Server(store, "--public-status", models=[f"{NAME}={folder}"])
    with server.running():
        line = [PEER, "-I", str(CLIENT), server.url, server.admin, str(folder), NAME]
        run = subprocess.run(
            line, capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        assert run.returncode == 0, run.stderr
    return dict(json.loads(line) for line in run.stdout.splitlines() if line.startswith('["'))


@pytest.mark.parametrize("case", _cases())
def test_a_client_of_nnsight_0_8(said: Any, case: str) -> None:
    assert said[case] == "", said[case]
