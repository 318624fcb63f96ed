"""Blocks for NDIF, run under nnsight's own classes: what comes back is what the block gives here.

The servers are those of nnsight-remote's tests; what runs the blocks is nnsight 0.8.1, and nnsight 0.7 for the protocol
before, each in a Python of its own, whose paths are in the variables of `PEERS` (`nox -s tests-integration` makes them).
"""

from __future__ import annotations

import enum
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import nnsight
import nnsight_remote
from nnsight import LanguageModel, WireError
from nnsight_remote import RemoteBackend
from nnsight_remote.client.address import Address
from nnsight_remote.client.errors import JobError
from nnsight_remote.client.handshake import speak

pytest.importorskip("starlette", reason="the extra [server] of nnsight-remote is not installed")
#: Variables that name a Python, by the version of nnsight that it has.
PEERS = {"0.8": "NNSIGHT_PEER_PYTHON", "0.7": "NNSIGHT_OLDER_PEER_PYTHON"}
TESTS = Path(__file__).parents[1] / "packages" / "nnsight-remote" / "tests"

#: Runs a block somewhere, and gives what it saved in an order that the test chose.
Block = Callable[[Any], Any]


@pytest.fixture(scope="module", params=PEERS)
def spoken(request: Any) -> str:
    """The version of nnsight that runs the blocks."""
    version: str = request.param
    if not os.environ.get(PEERS[version]):
        pytest.skip(f"{PEERS[version]} names no Python with nnsight {version}")
    return version


@pytest.fixture(scope="module")
def ndif(spoken: str) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS))
        from ndif_serving import OLDER_SERVER, SERVER, serving
    with serving(os.environ[PEERS[spoken]], SERVER if spoken == "0.8" else OLDER_SERVER) as server:
        yield server


class There:
    """Runs blocks on the server; keeps what was told of the last."""

    def __init__(self, url: str, followed: bool = True) -> None:
        self.jobs = speak(Address(url)).jobs
        self.followed = followed
        self.events: list[tuple[str, str]] = []

    def run(self, request: Any) -> dict[str, Any]:
        job = self.jobs.post(request, "tests/tiny-gpt2", print, followed=self.followed)
        self.events = [(one.kind, one.text) for one in self.jobs.watch(job, 0, 30.0) if one.number]
        return self.jobs.fetch(job, lambda done, size: None, 30.0, False)


@pytest.fixture(scope="module")
def there(ndif: Any) -> There:
    return There(ndif.url)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """The model of `ndif_peer.py`, made here in the same way."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *(f"w{i}" for i in range(62))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    return LanguageModel(GPT2LMHeadModel(config).eval(), tokenizer=fast, rename={"transformer.h": "layers"})


def same(block: Block, there: There) -> Any:
    """Run a block there and here, and compare what it saved."""
    theirs, ours = block(there), block("here")
    assert equal(theirs, ours), (theirs, ours)
    return theirs


@functools.cache
def versions(python: str) -> str:
    """Say which versions a Python has that decide about the numbers."""
    said = "import torch, transformers; print(torch.__version__, transformers.__version__)"
    return subprocess.run([python, "-I", "-c", said], capture_output=True, text=True, check=True).stdout


VERSIONS = f"{torch.__version__} {transformers.__version__}\n"


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) > 0 and all(map(equal, one, other))
    if isinstance(one, torch.Tensor):
        # Other versions of torch or transformers may be there.
        return (
            one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, atol=1e-6, rtol=1e-5)
        )
    return type(one) is type(other) and bool(one == other)


def test_one_layer_is_read(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace("w1 w2 w3", backend=backend):
            hidden = model.transformer.h[1].output.save()
        return hidden

    assert same(block, there).shape == (1, 3, 32)
    assert there.events[-2:] == [("state", "running"), ("state", "completed")]


def test_values_are_assigned_and_changed_in_place(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace("w1 w2 w3", backend=backend):
            model.transformer.h[0].output[:, 1] = 0
            model.transformer.h[1].output = model.transformer.h[1].output * 2
            logits = model.lm_head.output.save()
        return logits

    same(block, there)


def test_invokes_of_different_lengths_share_a_forward(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace(backend=backend) as tracer:
            with tracer.invoke("w1 w2 w3"):
                first = model.transformer.h[0].output[:, -1].save()
            with tracer.invoke("w4"):
                model.transformer.h[0].output[:] *= 2
                second = model.lm_head.output[:, -1].save()
            with tracer.invoke("w5 w6 w7 w8 w9"): third = model.lm_head.output[:, -1].save()  # fmt: skip  # noqa: E701
        return first, second, third

    same(block, there)


def test_an_invoke_may_begin_with_try(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace(backend=backend) as tracer:
            with tracer.invoke("w1"):
                try:
                    value = model.lm_head.output.save()
                finally:
                    found = [1].save()
        return value, found

    same(block, there)


def test_steps_of_a_generation_are_walked(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.generate("w1 w2", max_new_tokens=3, min_new_tokens=3, do_sample=False, backend=backend) as tracer:
            seen = [].save()
            for step in tracer.iter[:3]:
                seen.append((step, model.transformer.h[1].output))
            ids = tracer.result.save()
        return seen, ids

    assert len(same(block, there)[0]) == 3


def test_a_loop_over_all_steps_keeps_what_it_saw(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.generate("w1 w2", max_new_tokens=3, min_new_tokens=3, do_sample=False, backend=backend) as tracer:
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(model.transformer.h[1].output)
        return seen

    assert len(same(block, there)) == 3


def test_a_session_is_one_job(model: Any, there: There, ndif: Any) -> None:
    before = len(ndif.behave())

    def block(backend: Any) -> Any:
        with model.session(backend=backend):
            with model.trace("w1 w2"):
                hidden = model.transformer.h[0].output
            with model.trace("w5 w6"):
                model.transformer.h[0].output = hidden
                logits = model.lm_head.output.save()
        return logits

    same(block, there)
    assert len(ndif.behave()) == before + 1


OFFSET = torch.linspace(0, 1, 32)


class Scale:
    """A class of the user's with a private name."""

    def __init__(self, by: float) -> None:
        self.__by = by

    def __call__(self, value: Any) -> Any:
        return value * self.__by


class Double(Scale):
    """One that inherits."""

    def __init__(self) -> None:
        super().__init__(2.0)


def shifted(value: Any) -> Any:
    """A function of the user's that uses a global."""
    return value + OFFSET


def test_functions_classes_and_closures_travel(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        double, three = Double(), 3
        minus, plus = lambda value: value - three, lambda value: value + three  # noqa: E731
        with model.trace("w1 w2", backend=backend):
            hidden = minus(shifted(double(model.transformer.h[0].output))).save()
            more = plus(hidden).save()
        return hidden, more

    same(block, there)


@dataclass
class Settings:
    """A class whose methods a decorator wrote."""

    by: float
    deep: int = 3


class Way(enum.Enum):
    """A choice."""

    UP = 1
    DOWN = 2


def repeated(value: Any, times: int) -> Any:
    """Call itself."""
    return value if times == 0 else repeated(value + 1, times - 1)


def test_choices_and_functions_that_call_themselves_travel(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        by, way = 0.5, Way.DOWN

        def inner(value: Any) -> Any:
            return value * by if way is Way.DOWN else value

        with model.generate("w1 w2", max_new_tokens=1, do_sample=False, progress=False, backend=backend):
            hidden = repeated(inner(model.transformer.h[0].output), 3).save()
        return hidden

    same(block, there)


def test_data_classes_travel_where_they_are_admitted(model: Any, there: There, spoken: str) -> None:
    def block(backend: Any) -> Any:
        settings = Settings(0.5)
        with model.trace("w1 w2", backend=backend):
            hidden = (model.transformer.h[0].output * settings.by + settings.deep).save()
        return hidden

    if spoken == "0.8":
        same(block, there)
        return
    with pytest.raises(WireError, match="`settings` cannot be sent to NDIF: `Settings` is a data class.*a plain class"):
        block(there)


def test_tensors_arrays_weights_and_modules_travel(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        tensor, array = torch.arange(32.0), np.arange(32, dtype=np.float32)
        weight, layer = model.lm_head.weight, model.layers[1]
        with model.trace(torch.tensor([[1, 2, 3]]), backend=backend):
            hidden = (layer.output + tensor + torch.tensor(array)).save()
            logits = (hidden @ weight.T).detach().save()
            numbers = [1, "two", 3.0, (4, None), {"five": 5}].save()
        return hidden, logits, numbers

    same(block, there)


def test_an_edited_model_is_edited_there(model: Any, there: There) -> None:
    with model.edit() as edited:
        edited.transformer.h[0].output[:] *= 2

    def block(backend: Any) -> Any:
        with edited.trace("w1 w2", backend=backend):
            logits = edited.lm_head.output.save()
        with model.trace("w1 w2", backend=backend):
            plain = model.lm_head.output.save()
        assert not torch.equal(logits, plain)
        return logits, plain

    same(block, there)


def test_gradients_are_read(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace("w1 w2", backend=backend):
            hidden = model.transformer.h[0].output
            with model.lm_head.output.sum().backward():
                gradient = hidden.grad.save()
        return gradient

    same(block, there)


def test_a_module_is_skipped_and_a_run_stopped(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace("w1 w2", backend=backend) as tracer:
            model.transformer.h[0].skip(model.transformer.h[0].input)
            hidden = model.transformer.h[1].output.save()
            tracer.stop()
        return hidden

    same(block, there)


def test_a_barrier_lets_one_invoke_use_what_another_saw(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace(backend=backend) as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke("w1 w2"):
                words = model.transformer.wte.output
                barrier()
            with tracer.invoke("w3 w4"):
                barrier()
                model.transformer.wte.output = words
                logits = model.lm_head.output.save()
        return logits

    same(block, there)


def test_aliases_and_the_library_are_known_there(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace("w1 w2", backend=backend):
            hidden = nnsight.save(model.layers[0].output)
        return hidden

    same(block, there)


def test_what_a_block_prints_is_told(model: Any, there: There) -> None:
    with model.trace("w1 w2", backend=there):
        print("shape", tuple(model.transformer.h[0].output.shape))
        one = [1].save()
    assert one == [1] and ("log", "shape (1, 2, 32)\n") in there.events


def test_an_error_of_the_block_is_told(model: Any, there: There) -> None:
    with pytest.raises(JobError, match="ZeroDivisionError"):
        with model.trace("w1 w2", backend=there):
            model.transformer.h[0].output
            1 / 0  # noqa: B018


def test_a_job_that_nobody_waits_for_is_polled(model: Any, ndif: Any) -> None:
    there = There(ndif.url, followed=False)

    def block(backend: Any) -> Any:
        with model.trace("w1 w2", backend=backend):
            logits = model.lm_head.output.save()
        return logits

    same(block, there)


def test_a_result_that_lies_elsewhere_is_fetched(model: Any, there: There, ndif: Any) -> None:
    ndif.behave(by_url=True)
    try:
        test_one_layer_is_read(model, there)
    finally:
        ndif.behave()


def test_remote_finds_out_that_it_is_ndif(model: Any, ndif: Any) -> None:
    def block(backend: Any) -> Any:
        with model.trace("w1 w2", backend=backend):
            logits = model.lm_head.output.save()
        return logits

    same(block, RemoteBackend(ndif.url, model="tests/tiny-gpt2", quiet=True))
    with model.trace("w1 w2", backend=RemoteBackend(ndif.url, model="tiny-gpt2", blocking=False, quiet=True)) as job:
        later = model.lm_head.output.save()
    assert torch.equal(nnsight_remote.job(job.id, ndif.url).result()["later"], block("here"))
    job.result()
    assert torch.equal(later, block("here"))


def test_a_whole_output_comes_back_as_what_it_is(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace("w1 w2", backend=backend):
            whole = model.output.save()
        return whole

    theirs, ours = block(there), block("here")
    assert type(theirs) is type(ours) and theirs.keys() == ours.keys()
    assert equal(theirs.logits, ours.logits) and theirs["logits"] is theirs.logits
    [*mine], [*other] = theirs.past_key_values.layers, ours.past_key_values.layers
    assert equal([one.keys for one in mine], [one.keys for one in other])


def test_objects_that_are_not_known_here_are_refused(model: Any, there: There) -> None:
    with pytest.raises(WireError, match="neither a tensor nor a plain value"):
        with model.trace("w1 w2", backend=there):
            config = [model.config].save()  # noqa: F841


def test_rows_of_different_lengths_in_a_session_are_what_each_is_alone(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.session(backend=backend):
            with model.trace(["w1 w2 w3", "w4"]):
                rows = model.lm_head.output[:, -1].save()
            with model.trace() as tracer:
                with tracer.invoke("w1 w2 w3 w5"):
                    first = model.lm_head.output[:, -1].save()
                with tracer.invoke("w1"):
                    second = model.lm_head.output[:, -1].save()
        return rows, first, second

    same(block, there)


def test_names_that_a_block_reads_and_binds_keep_what_they_were(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        total = 2.0
        with model.trace("w1 w2", backend=backend):
            total = total + model.transformer.h[0].output.sum()
            total.save()
        return total

    same(block, there)


def test_strings_of_several_lines_stay_what_they_are(model: Any, there: There) -> None:
    def block(backend: Any) -> Any:
        with model.trace(backend=backend) as tracer:
            with tracer.invoke("w1"):
                found = [
                    """one
                       two
                """,
                    model.transformer.h[0].output,
                ].save()
        return found

    assert same(block, there)[0].startswith("one\n   ")


def test_their_own_client_is_served_by_the_server_of_these_tests(ndif: Any, spoken: str) -> None:
    if spoken != "0.7":
        pytest.skip("the server for clients of 0.8 is tried by nnsight-remote's tests")
    line = [os.environ[PEERS[spoken]], "-I", str(TESTS / "ndif_older_client.py"), ndif.url]
    said = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert said.stdout.splitlines() == ["trace True", "generate (1, 4)", "later True", "error True"], said.stderr
