"""The places where people run blocks: under debuggers, coverage and profilers, on the command line, in notebooks.

A body that runs where it stands needs nothing of them. One that is captured has to find its text there, and has to
leave whoever watches the code as it was.
"""

from __future__ import annotations

import atexit
import io
import pdb
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from fresh_python import in_fresh_python
from torch import nn

import nnsight

X = torch.rand(2, 4)

#: What each interpreter of its own is made to run: both kinds of bodies, checked against the modules called by hand.
# A batch of two invokes rounds otherwise than each of them alone, hence `close`.
PROGRAM = """
import functools
import torch
import nnsight
close = functools.partial(torch.allclose, atol=1e-5)
module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
model = nnsight.NNsight(module)
x = torch.rand(2, 4)
with model.trace(x) as tracer:
    inline = model[0].output
    for step in tracer.iter[:1]:
        last = model[1].output
assert close(inline, module[0](x)) and close(last, module(x))
"""
CAPTURED = """
with model.trace() as tracer:
    with tracer.invoke(x):
        first = model[0].output
    with tracer.invoke(x): second = model[0].output
with model.edit() as edited:
    edited[0].output = torch.zeros(2, 4)
after = close(first, second) and close(edited(x), module[1](torch.zeros(2, 4)))
print("right" if after and close(first, inline) else "wrong")
"""


@pytest.fixture
def model() -> nnsight.NNsight:
    torch.manual_seed(0)
    return nnsight.NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


# -- interpreters of their own -----------------------------------------------------------------------------------------

COVERED = """
def traced(x):
    before = 1
    with model.trace(x) as tracer:
        inline = model[0].output
        inline = model[1].output
    between = 2
    with model.trace() as tracer:
        with tracer.invoke(x):
            first = model[0].output
            unused = first if first is None else 0
        with tracer.invoke(x):
            second = model[0].output
    after = 3
    with model.edit() as edited:
        edited[0].output = torch.zeros(2, 4)
    edited(x)
    for number in range(2):
        after += number
    return after


assert traced(x) == 4
"""


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The interpreters that the tests below look at, begun at once: most of their time goes into importing torch."""
    folder = tmp_path_factory.mktemp("places")
    commands = {
        "command line": ["-d", "-c", PROGRAM + CAPTURED],
        "stdin": ["-"],
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for name, command in commands.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.wait()


def test_python_with_c_and_d(interpreters: dict[str, subprocess.Popen[str]]) -> None:
    out, error = interpreters["command line"].communicate(timeout=100)
    assert (out, interpreters["command line"].returncode) == ("right\n", 0), error


def test_python_from_stdin(interpreters: dict[str, subprocess.Popen[str]]) -> None:
    # The text of a captured block is lost as soon as it is compiled, and the error says what to do about it.
    lost = """
try:
    with model.trace() as tracer:
        with tracer.invoke(x):
            model[0].output
except nnsight.SourceError as error:
    print("told" if "Put it into a file" in str(error) else error)
"""
    out, error = interpreters["stdin"].communicate(PROGRAM + lost, timeout=100)
    assert (out, interpreters["stdin"].returncode) == ("told\n", 0), error


def test_coverage_sees_every_line(tmp_path: Path) -> None:
    coverage = pytest.importorskip("coverage")
    covered, data = tmp_path / "covered.py", str(tmp_path / "data")
    covered.write_text(PROGRAM + COVERED)
    # What `python -m coverage` does.
    code = "import sys; from coverage.cmdline import main; sys.exit(main(sys.argv[1:]))"
    done = in_fresh_python(code, "run", f"--data-file={data}", str(covered), folder=tmp_path, COVERAGE_CORE="ctrace")
    assert done.returncode == 0, done.stderr
    report = coverage.Coverage(data_file=data)
    report.load()
    _, lines, missing, _ = report.analysis(str(covered))
    text = covered.read_text().splitlines()
    assert len(lines) > 25
    assert [text[number - 1].strip() for number in missing] == []


# -- debuggers ---------------------------------------------------------------------------------------------------------


class Scripted(pdb.Pdb):
    """A debugger that is told beforehand what to do at its prompt."""

    def __init__(self, *commands: str) -> None:
        self.said = io.StringIO()
        super().__init__(stdin=io.StringIO("\n".join(commands) + "\n"), stdout=self.said, nosigint=True, readrc=False)
        self.use_rawinput = False


@pytest.fixture(autouse=True)
def _no_trace_function_is_left() -> Iterator[None]:
    before = sys.gettrace(), sys.getprofile()
    yield
    after = sys.gettrace(), sys.getprofile()
    sys.settrace(before[0])
    sys.setprofile(before[1])
    assert after == before


def test_stepping_through_an_inline_body(model: Any) -> None:
    debugger = Scripted("next", "next", "p 'seen', tuple(hidden.shape)", "p 'sum', last.sum().item()", "continue")

    def body() -> torch.Tensor:
        with model.trace(X):
            debugger.set_trace()
            hidden = model[0].output
            last = model[1].output
            done = last + 1
        return done

    done = body()
    module = model._module
    torch.testing.assert_close(done, module(X) + 1)
    assert "('seen', (2, 4))" in debugger.said.getvalue()
    assert f"('sum', {module(X).sum().item()})" in debugger.said.getvalue()


def test_asking_the_model_from_the_prompt(model: Any) -> None:
    debugger = Scripted("p 'asked', model[0].output.sum().item()", "continue")

    def body() -> torch.Tensor:
        with model.trace(X):
            debugger.set_trace()
            last = model[1].output
        return last

    torch.testing.assert_close(body(), model._module(X))
    assert f"('asked', {model._module[0](X).sum().item()})" in debugger.said.getvalue()


def test_stepping_over_and_into_invokes(model: Any) -> None:
    debugger = Scripted(*["next"] * 4, "p 'after', first.sum().item()", "continue")

    def body() -> tuple[torch.Tensor, torch.Tensor]:
        debugger.set_trace()
        with model.trace() as tracer:
            with tracer.invoke(X):
                first = model[0].output
            with tracer.invoke(X):
                second = model[1].output
        done = 1
        return first, second

    first, second = body()
    torch.testing.assert_close([first, second], [model._module[0](X), model._module(X)])
    assert "SourceError" not in debugger.said.getvalue()


def test_breakpoint_in_both_kinds_of_bodies(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inline, captured = (
        Scripted("next", "next", "p 'value', hidden.sum().item()", "continue"),
        Scripted("next", "next", "p 'value', other.sum().item()", "continue"),
    )
    waiting = [inline, captured]

    def hook() -> None:
        waiting.pop(0).set_trace(sys._getframe(1))

    monkeypatch.setattr(sys, "breakpointhook", hook)

    def body() -> None:
        with model.trace(X):
            breakpoint()
            hidden = model[0].output
            hidden = hidden + 0
            nothing = None
        with model.trace() as tracer:
            with tracer.invoke(X):
                breakpoint()
                other = model[0].output
                other = other + 0
                nothing = None

    body()
    expected = f"('value', {model._module[0](X).sum().item()})"
    assert expected in inline.said.getvalue()
    assert expected in captured.said.getvalue()
    assert waiting == []


# -- tracers and profilers ---------------------------------------------------------------------------------------------


def _watched(model: Any) -> list[torch.Tensor]:
    with model.trace(X):
        inline = model[0].output
        inline = inline + 0
    between = 1
    with model.trace() as tracer:
        with tracer.invoke(X):
            first = model[0].output
        with tracer.invoke(X):
            second = model[1].output
    after = 2
    with model.edit() as edited:
        edited[0].output = torch.zeros(2, 4)
    replaced = edited(X)
    return [inline, first, second, replaced]


def _check_watched(model: Any, values: list[torch.Tensor]) -> None:
    module = model._module
    zeros = module[1](torch.zeros(2, 4))
    torch.testing.assert_close(values, [module[0](X), module[0](X), module(X), zeros])


def _own_lines(function: Callable[..., Any]) -> dict[int, str]:
    first = function.__code__.co_firstlineno
    text = Path(__file__).read_text().splitlines()
    numbers = {line for _, _, line in function.__code__.co_lines() if line is not None and line != first}
    return {number: text[number - 1].strip() for number in numbers}


def test_a_trace_function_sees_every_line(model: Any) -> None:
    seen: set[int] = set()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != __file__:
            return None
        if event == "line":
            seen.add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        values = _watched(model)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(None)
    _check_watched(model, values)
    assert [text for number, text in _own_lines(_watched).items() if number not in seen] == []


def test_a_profiler_sees_calls_and_returns_in_pairs(model: Any) -> None:
    depth: dict[Any, int] = {}
    called: set[str] = set()

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            depth[frame] = depth.get(frame, 0) + 1
            called.add(frame.f_code.co_name)
        elif event == "return" and frame in depth:
            depth[frame] -= 1

    sys.setprofile(profile)
    try:
        values = _watched(model)
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
    _check_watched(model, values)
    assert "_watched" in called and "forward" in called
    assert {frame.f_code.co_name: count for frame, count in depth.items() if count} == {}


def test_cprofile(model: Any) -> None:
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    values = profiler.runcall(_watched, model)
    _check_watched(model, values)
    names = {name for _, _, name in pstats.Stats(profiler).stats}  # type: ignore[attr-defined]
    assert "_watched" in names and "forward" in names


# -- text that is compiled where it is used ----------------------------------------------------------------------------


def test_exec_and_compile() -> None:
    around: dict[str, Any] = {}
    exec(PROGRAM, around)
    torch.testing.assert_close(around["last"], around["module"](around["x"]))
    with pytest.raises(nnsight.SourceError, match="exec"):
        exec(CAPTURED, around)
    # What was announced to linecache can be read.
    import linecache

    linecache.cache["<announced>"] = (len(CAPTURED), None, CAPTURED.splitlines(keepends=True), "<announced>")
    exec(compile(CAPTURED, "<announced>", "exec"), around)
    assert around["after"]


# -- IPython and notebooks ---------------------------------------------------------------------------------------------

CELLS = [
    PROGRAM,
    "with model.trace() as tracer:\n"
    "    with tracer.invoke(x):\n"
    "        first = model[0].output\n"
    "    with tracer.invoke(x): second = model[1].output\n",
    "%%time\n"
    "with model.trace() as tracer:\n"
    "    with tracer.invoke(x):\n"
    "        timed = model[0].output\n",
    "%%capture out\n"
    "with model.edit() as edited:\n"
    "    edited[0].output = torch.zeros(2, 4)\n"
    "print('shown')\n",
    "%time repeated = [model.trace(x, trace=False) for _ in range(2)]\n",
    "assert close(first, inline) and close(second, last) and close(timed, first)\n"
    "assert close(edited(x), module[1](torch.zeros(2, 4)))\n"
    "assert out.stdout == 'shown\\n' and close(repeated[1], last)\n"
    "print('all right')\n",
]  # fmt: skip


def test_an_ipython_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr(sys, "displayhook", sys.displayhook)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    try:
        for cell in CELLS:
            shell.run_cell(cell, store_history=True).raise_error()
        again = "with model.trace(x):\n    never = model[0].nothing\n"
        failed = shell.run_cell(again, silent=True)
        assert isinstance(failed.error_in_exec, AttributeError)
    finally:
        atexit.unregister(shell.atexit_operations)
        shell.atexit_operations()
        InteractiveShell.clear_instance()
    assert capsys.readouterr().out.count("all right\n") == 1


def test_a_notebook(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(
        notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert notebook.cells[-1].outputs[-1].text == "all right\n"


def test_the_text_of_the_programs_is_a_program() -> None:
    compile(textwrap.dedent(PROGRAM + CAPTURED + COVERED), "places", "exec")
