"""Leaving out a block where it stands, under everything that watches a program; and tracebacks without the library."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
from block_contexts import GIVEN, SAME, Inline, Kept, Later, in_new_python, run

from nnsight._core.blocks import (
    Skipped,
    fold,
    skip,
    skipped,
)
from nnsight._core.errors import SourceError

skipping = sys.modules["nnsight._core.blocks.skip"]


# Skipping


def test_nothing_of_the_block_runs_where_it_stands():
    for text in (
        "with Kept(): ran.append(1)",
        "with Kept() as x: ran.append(1)",
        "with Kept() as (a, b): ran.append(1)",
        "with Kept() as ran[0]: ran.append(1)",
        "with Kept():\n    try:\n        ran.append(1)\n    finally:\n        ran.append(2)",
        "with Inline(), Kept(), Inline():\n    ran.append(1)",
        "while True:\n    with Kept():\n        ran.append(1)\n    break",
        "def f():\n    with Kept():\n        while True: ran.append(1)\nf()",
    ):
        run(text, ran=(ran := []))
        assert ran == []


def test_skipping_among_more_names_than_fit_one_byte():
    fillers = "".join(f"n{i} = {i}\n" for i in range(300))
    space = run(
        fillers + "with Later() as z1:\n    n299 = z1 + n298\n" + "".join(f"    n{i} += 1\n" for i in range(290))
    )
    assert space["n299"] == GIVEN + 298 and space["n0"] == 1


def test_recursion_and_threads_skip_their_own_block():
    space = run(
        """
        def f(n):
            with Later():
                below = f(n - 1) if n else []
                below = below + [n]
            return below
        """
    )
    results = {}

    def work(k):
        for _ in range(30):
            results.setdefault(k, []).append(space["f"](k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    finally:
        sys.setswitchinterval(switch)
    assert results == {k: [list(range(k + 1))] * 30 for k in range(4)}


def test_an_enter_that_fails_after_all_leaves_nothing_behind():
    class Failing(Kept):
        def __enter__(self):
            skip(sys._getframe(1))
            raise KeyError("after all")

    def f():
        reached = []
        for context in (Failing, Inline):
            try:
                with context():
                    reached.append(1)
            except KeyError:
                reached.append("failed")
        return reached

    assert f() == ["failed", 1]
    assert sys.gettrace() is None or skipping._Trace not in map(type, [sys.gettrace()])


def lines_seen(text, block, tracer):
    """The (event, line) that a trace function sees in `f` of a text, and what f returned."""
    space = run(text, block=block)
    code = space["f"].__code__
    seen = []

    def local(frame, event, arg):
        if frame.f_code is code:
            seen.append((event, frame.f_lineno))
        return local

    def thread(frame, event, arg):
        return local(frame, event, arg) if frame.f_code is code or tracer == "all" else None

    before = sys.gettrace()
    sys.settrace(thread)
    try:
        result = space["f"]()
        assert sys.gettrace() is thread
    finally:
        sys.settrace(before)
    return seen, result


TRACED = """
def f():
    a = 1
    with block():
        a += 1
        b = 2
    c = 3
    with block() as d, block():
        e = 4
    for i in range(2):
        with block():
            g = i
    frame = sys._getframe()
    return a, b, c, d, e, g, frame.f_trace is not None, frame.f_trace_opcodes, frame.f_trace_lines
"""


@pytest.mark.parametrize("tracer", ["all", "one function"])
def test_a_trace_function_sees_every_other_line_of_the_function(tracer):
    inline, expected = lines_seen(TRACED, Inline, tracer)
    later, result = lines_seen(TRACED, Later, tracer)
    assert result == expected
    in_blocks = {5, 6, 9, 12}
    assert {line for event, line in inline if event == "line"} - in_blocks == {
        line for event, line in later if event == "line"
    }
    assert [event for event, _ in later if event != "line"] == ["call", "return"]
    # The lines outside the blocks come in the same order; that of a `with` may come again when it is left.
    assert [line for _, line in later if line not in in_blocks | {4, 8, 11}] == [
        line for _, line in inline if line not in in_blocks | {4, 8, 11}
    ]


def test_a_trace_function_sees_every_opcode_it_asked_for():
    text = """
    def f(tracer):
        frame = sys._getframe()
        frame.f_trace, frame.f_trace_opcodes = tracer, True
        sys.settrace(tracer)
        a = 1
        with block() as d:
            b = 2
        c = a + b + d
        return c
    """
    opcodes = {}
    for block in (Inline, Later):
        seen = opcodes.setdefault(block, [])

        def local(frame, event, arg, seen=seen):
            if event == "opcode":
                seen.append(frame.f_lineno - frame.f_code.co_firstlineno)
            return local

        space = run(text, block=block)
        before = sys.gettrace()
        try:
            assert space["f"](local) == 1 + 2 + GIVEN
        finally:
            sys.settrace(before)
    for line in (4, 7, 8):
        assert opcodes[Later].count(line) == opcodes[Inline].count(line) > 0


def test_the_names_of_a_module_are_bound_under_a_trace_function():
    """A comprehension's variable called like another name makes 3.12 hide the module's names (see scope.py)."""
    text = """
    tracer = lambda *_: tracer
    x = 1
    squares = [x * x for x in range(3)]
    sys.settrace(tracer)
    sys._getframe().f_trace = tracer
    x = 2
    x = 3
    with block():
        y = x
        z = [x for x in range(2)]
        with block():
            z += [x]
    sys.settrace(before)
    result = x, y, z
    """
    expected = run(text, block=Inline, before=sys.gettrace())["result"]
    assert run(text, block=Later, before=sys.gettrace())["result"] == expected == (3, 3, [0, 1, 3])


def test_bodies_in_greenlets_capture_and_wait_in_turn():
    greenlet = pytest.importorskip("greenlet")
    space = run(
        """
        def f():
            with Kept():
                for i in range(3):
                    with Later():
                        total = [theirs + i for _ in range(1)]
                        class A: v = theirs
                    done.append((total, A.v))
        """,
        done=(done := []),
    )
    space["f"]()
    body = Kept.last
    main = greenlet.getcurrent()

    def elsewhere(name):
        if name != "theirs":
            raise KeyError(name)
        return main.switch(name)

    workers = []
    for _ in range(2):
        worker = greenlet.greenlet(body.run)
        worker.switch(body.names(elsewhere))
        workers.append(worker)
    value = 0
    while not all(worker.dead for worker in workers):
        for worker in workers:
            value += 1
            worker.switch(value)
    assert [total for total, _ in done] == [[5 * i + worker] for i in range(3) for worker in (1, 2)]
    done.clear()
    tracer = lambda *_: tracer  # noqa: E731
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        worker = greenlet.greenlet(body.run)
        worker.switch(body.names(elsewhere))
        while not worker.dead:
            worker.switch(1)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert done == [([1], 1), ([2], 1), ([3], 1)]


def test_profilers_and_monitoring_tools_go_on():
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event))
    try:
        profile = sys.getprofile()
        with Later():
            x = 1
        assert sys.getprofile() is profile
        len([x])
    finally:
        sys.setprofile(None)
    assert "c_call" in calls and x == 1
    if sys.version_info >= (3, 12):
        space = run(TRACED, block=Later)
        code, lines = space["f"].__code__, []
        monitoring = sys.monitoring
        monitoring.use_tool_id(0, "test")
        try:
            monitoring.register_callback(0, monitoring.events.LINE, lambda code, line: lines.append(line))
            monitoring.set_local_events(0, code, monitoring.events.LINE)
            space["f"]()
            assert monitoring.get_local_events(0, code) == monitoring.events.LINE
            assert {3, 4, 7, 8, 10, 11, 13, 14} == set(lines)
        finally:
            monitoring.set_local_events(0, code, 0)
            monitoring.free_tool_id(0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is only the trace function before 3.12")
def test_where_no_monitoring_tool_is_free_a_trace_function_does_it(monkeypatch):
    monkeypatch.setattr(skipping, "_tool", None)
    monkeypatch.setattr(skipping, "_take_tool", lambda: None)
    for name in ("plain", "as name", "loop", "nested", "two captured", "try", "class body", "one after another"):
        text = SAME[name]
        assert run(text, block=Later)["result"] == run(text, block=Inline)["result"]
    test_a_trace_function_sees_every_other_line_of_the_function("all")
    test_a_trace_function_sees_every_other_line_of_the_function("one function")
    assert sys.gettrace() is None or not isinstance(getattr(sys.gettrace(), "__self__", None), skipping._Trace)


def test_where_tracing_is_suspended_the_block_is_refused_and_does_not_run():
    space = run("def f():\n    with Later():\n        ran.append(1)", ran=(ran := []))
    caught = []

    def prompt(frame, event, arg):
        if not caught:
            caught.append(None)
            with pytest.raises(SourceError, match="prompt") as error:
                space["f"]()
            caught[0] = error
        return None

    before = sys.gettrace()
    sys.settrace(prompt)
    try:
        (lambda: 0)()
    finally:
        sys.settrace(before)
    assert caught[0] is not None and not ran
    space["f"]()
    assert ran == [1]


COVERED = """
from here import Later
def g(k):
    return k + 1
class Block(Later):
    def __exit__(self, *error):
        done = super().__exit__(*error)
        g(0)
        return done
def f(n):
    a = 1
    with Block():
        a += n
        b = [
            g(i) for i in range(2)
        ]
    c = a
    for i in range(2):
        with Block() as x: d = i
    with Block():
        try:
            e = g(1)
        finally:
            pass
    if n > 100:
        never = 1
    return a, b, c, d, e
def outer():
    r = f(1)
    s = g(1)
    return r, s
print(outer())
last = 1
with Block():
    last = 2
print(last)
"""
NEVER = {26}
CORES = ["ctrace", "pytrace"] + (["sysmon"] if sys.version_info >= (3, 12) else [])


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("branch", [False, True])
def test_coverage_sees_the_lines_of_the_block_and_of_all_around_it(core, branch, tmp_path):
    pytest.importorskip("coverage")
    if core == "sysmon" and branch and sys.version_info < (3, 14):
        pytest.skip("coverage measures branches this way from 3.14 on")
    done = in_new_python(COVERED, tmp_path=tmp_path, name="covered.py")
    assert done.returncode == 0, done.stderr
    env = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "COVERAGE_CORE": core,
        "COVERAGE_FILE": str(tmp_path / ".coverage"),
    }
    command = [
        sys.executable,
        "-m",
        "coverage",
        "run",
        "--include=covered.py",
        *(["--branch"] if branch else []),
        "covered.py",
    ]
    measured = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert measured.stdout == done.stdout, measured.stderr
    import coverage

    data = coverage.CoverageData(str(tmp_path / ".coverage"))
    data.read()
    seen = set(data.lines(str(tmp_path / "covered.py")))
    from coverage.parser import PythonParser

    parser = PythonParser(text=COVERED)
    parser.parse_source()
    assert parser.translate_lines(seen) == parser.statements - NEVER


def pdb_session(script, commands, tmp_path):
    done = in_new_python(script, tmp_path=tmp_path, name="debugged.py", input="\n".join(commands) + "\n")
    return done.stdout, done.stderr


def test_pdb_after_and_over_and_inside_a_skipped_block(tmp_path):
    script = """
    from here import Later
    import pdb
    def f():
        a = 1
        with Later():
            a = 2
        b = 3
        pdb.set_trace()
        c = 4
        with Later():
            d = 5
        e = 6
        return a, b, c, d, e
    print(f())
    """
    out, err = pdb_session(script, ["n", "n", "n", "p 'at', c, d", "n", "p 'e', e", "c"], tmp_path)
    assert "('at', 4, 5)" in out and "('e', 6)" in out and "(2, 3, 4, 5, 6)" in out, out + err
    assert "Skipped" not in out
    inside = script.replace(
        "d = 5", "pdb.set_trace()\n            d = 5\n            x = y = 0\n            x = 1"
    ).replace("pdb.set_trace()\n        c", "c")
    out, err = pdb_session(inside, ["p 'in', a, c", "n", "n", "p 'd', d", "w", "c"], tmp_path)
    assert (
        "('in', 2, 4)" in out and "('d', 5)" in out and "> " in out and "d = 5" in out and "(2, 3, 4, 5, 6)" in out
    ), out + err


def test_a_breakpoint_in_the_block_stops_there(tmp_path):
    script = """
    from here import Later
    def f():
        with Later():
            a = 1
            b = a + 1
        return b
    print(f())
    """
    in_new_python(script, tmp_path=tmp_path, name="stopped.py")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    commands = "b stopped.py:6\nc\np 'here', a\nc\nq\n"
    done = subprocess.run(
        [sys.executable, "-m", "pdb", "stopped.py"],
        input=commands,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        timeout=60,
    )
    assert "('here', 1)" in done.stdout and "(Pdb) 2\n" in done.stdout, done.stdout + done.stderr


# Tracebacks


def files(error):
    return [entry.tb_frame.f_code.co_filename for entry, _ in zip_tb(error.__traceback__)]


def zip_tb(entry):
    while entry is not None:
        yield entry, entry.tb_lineno
        entry = entry.tb_next


def make(filename, text, **names):
    space = dict(names)
    exec(compile(textwrap.dedent(text), filename, "exec"), space)
    return space["f"]


def test_frames_of_the_library_are_folded_out_of_the_error_and_all_that_hang_on_it():
    user = make("user.py", "def f(): raise KeyError(1)")
    deep = make("library.py", "def f(): user()", user=user)
    middle = make(
        "model.py", "def f():\n    try: deep()\n    except KeyError as e: raise ValueError(2) from e", deep=deep
    )
    top = make("library.py", "def f():\n    try: middle()\n    finally: pass", middle=middle)

    def is_library(filename):
        return filename == "library.py"

    with pytest.raises(ValueError) as caught:
        top()
    error = caught.value
    assert files(error) == [__file__, "library.py", "model.py"]
    assert fold(error, is_library, debugging=True) is error and "library.py" in files(error)
    assert fold(error, is_library) is error
    assert files(error) == [__file__, "model.py"]
    assert files(error.__cause__) == ["model.py", "user.py"]
    assert files(fold(error, lambda filename: True)) == []


def test_a_bare_raise_after_folding_shows_the_folded_traceback():
    user = make("user.py", "def f(): raise KeyError(1)")
    deep = make("library.py", "def f(): user()", user=user)

    class Folding:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, tb):
            fold(error, lambda filename: filename == "library.py")
            return False

    with pytest.raises(KeyError) as caught:
        with Folding():
            deep()
    assert files(caught.value) == [__file__, "user.py"]

    with pytest.raises(KeyError) as caught:
        try:
            deep()
        except KeyError as error:
            fold(error, lambda filename: filename == "library.py")
            raise
    assert files(caught.value) == [__file__, "user.py"]


def test_how_a_block_was_skipped_is_no_context_of_what_went_wrong():
    class Raising(Kept):
        def __exit__(self, kind, error, tb):
            assert isinstance(error, Skipped) and skipped(error)
            raise fold_context(KeyError("mine"))

    def fold_context(error):
        try:
            raise error
        except KeyError:
            return fold(error, lambda filename: False)

    with pytest.raises(KeyError) as caught:
        with Raising():
            pass
    assert isinstance(caught.value.__context__, Skipped), "raising anew sets it again"
    assert fold(caught.value, lambda filename: False).__context__ is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_members_of_a_group_are_folded_too():
    deep = make("library.py", "def f(): raise KeyError(1)")
    try:
        deep()
    except KeyError as error:
        group = ExceptionGroup("g", [error])  # noqa: F821
    fold(group, lambda filename: filename == "library.py")
    assert files(group.exceptions[0]) == [__file__]
