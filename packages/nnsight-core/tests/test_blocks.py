"""Blocks that are found, read and run later; what they do is compared with the same blocks run where they stand."""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import linecache
import os
import subprocess
import symtable
import sys
import textwrap
import traceback
import types
import warnings
from pathlib import Path

import pytest
from block_contexts import SAME, Inline, Later, in_new_python, run

from nnsight._core.blocks import (
    Names,
    find_with,
    is_with_head,
    snapshot,
    write_back,
)
from nnsight._core.blocks.bindings import bindings
from nnsight._core.errors import SourceError

# Heads


def test_a_call_knows_whether_it_is_the_head_of_a_with():
    seen = []

    class Context:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            return False

        def __getitem__(self, key):
            return self

    def call(*args, **kwargs):
        seen.append(is_with_head(sys._getframe(1)))
        return Context()

    def heads():
        with call():
            pass
        with call() as x:  # noqa: F841
            pass
        with call():
            pass
        with Context(), call() as y, call(1, *[2], k=3):  # noqa: F841
            pass
        for _ in range(2):
            with call(k=1):
                continue

    def others():
        call()
        x = call()
        with call(call())[0]:
            pass
        with (z := call()):
            pass
        [call() for _ in range(2)]
        with x:
            return call()

    async def asynchronous():
        async with call():
            pass
        async with call() as x, Context():  # noqa: F841
            call()

    heads()
    assert seen == [True] * 7
    seen.clear()
    others()
    assert seen == [False] * 8, "the call inside a call, the subscript and the := are not what is entered"
    seen.clear()
    asyncio.run(asynchronous())
    assert seen == [True, True, False]


def test_a_head_is_known_among_more_names_than_fit_one_byte():
    seen = []

    def call():
        seen.append(is_with_head(sys._getframe(1)))
        return Inline()

    fillers = "".join(f"n{i} = {i}\n" for i in range(300))
    long = "".join(f"    n{i} += n{i + 1}\n" for i in range(290))
    run(fillers + "with call() as z1:\n" + long + "call()\n", call=call)
    assert seen == [True, False]


# Finding


class Found(Inline):
    """Notes which item of which `with` it finds."""

    def __init__(self, number=0):
        self.number = number

    def __enter__(self):
        found = find_with(sys._getframe(1))
        FOUND.append((self.number, ast.unparse(found.item.context_expr), len(found.items_before), found.node.lineno))


FOUND: list = []

PLACES = """
def a():
    with Found(1): pass
    with Found(2), Found(3) as x, Inline(), Found(4): pass
    with (
        Found(5), Inline(
    ), Found(6)
        as y
    ):
        with Found(7): z = 1; w = 2
    for _ in range(2):
        with \\
            Found(8): continue
    try:
        1 / 0
    except ZeroDivisionError:
        with Found(9), Found(10): pass
    finally:
        with Found(11), Found(12):
            with Found(13):
                pass
    try:
        with Found(14): 1 / 0
    except ZeroDivisionError:
        pass
    finally:
        with Found(15), Found(16): pass
    "ä"; ü = 1
    with "ä" and Found(17): pass
with Found(18), Found(19): a()
class B:
    with Found(20): pass
    def c(self):
        async def d():
            with Found(21), Found(22): pass
        return d()
"""


def check_places():
    FOUND.clear()
    space = run(PLACES, Found=Found)
    with contextlib.suppress(StopIteration):
        space["B"]().c().send(None)
    text = PLACES.splitlines()
    assert sorted({number for number, *_ in FOUND}) == list(range(1, 23))
    for number, expression, _, line in FOUND:
        assert f"Found({number})" in expression
        assert "with" in text[line - 1]
    order = {number: before for number, _, before, _ in FOUND}
    assert [order[n] for n in (1, 2, 3, 4, 5, 6, 12, 16, 19, 22)] == [0, 0, 1, 3, 0, 2, 1, 1, 1, 1]


def test_each_item_of_each_with_is_found():
    check_places()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 has no columns in any case")
def test_each_item_is_found_without_columns(tmp_path):
    script = f"""
    import sys
    import here
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import test_blocks
    test_blocks.check_places()
    print("ok")
    """
    done = in_new_python(script, "-X", "no_debug_ranges", tmp_path=tmp_path)
    assert done.stdout == "ok\n", done.stderr


def test_a_context_that_no_with_entered_is_refused():
    with contextlib.ExitStack() as stack, pytest.raises(SourceError, match="ExitStack"):
        stack.enter_context(Later())
    with pytest.raises(SourceError, match="with"):
        Later().__enter__()


def test_a_file_that_changed_since_its_import_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "def f(block):\n    x = 1\n    with block():\n        x = x + 1\n    return x\n"
    file = tmp_path / "changing_module.py"
    for index, new in enumerate((text.replace("x = x + 1", "y = z + 1"), "\n" + text, "def broken(:\n")):
        file.write_text(text)
        module = types.ModuleType(f"changing_{index}")
        exec(compile(text, str(file), "exec"), module.__dict__)
        file.write_text(new)
        linecache.checkcache(str(file))
        with pytest.raises(SourceError, match="changed"):
            module.f(Later)
        assert module.f(Inline) == 2


def test_text_that_nobody_kept_is_refused_with_what_to_do():
    with pytest.raises(SourceError, match="python -c"):
        exec(compile("with Later(): pass", "<gone>", "exec"), {"Later": Later})
    with pytest.raises(SourceError, match="python -c"):
        exec("with Later(): pass", {"Later": Later})


def test_dash_c(tmp_path):
    script = (
        "from here import Later\nwith Later():\n    x = [1 for _ in range(3)]\n    with Later(): y = 2\nprint(x, y)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    in_new_python("", tmp_path=tmp_path)
    for options in (["-c", script], ["-W", "ignore", "-Xfaulthandler", "-sc", script], ["-c" + script, "argument"]):
        done = subprocess.run([sys.executable, *options], capture_output=True, text=True, env=env, timeout=60)
        assert done.stdout == "[1, 1, 1] 2\n", done.stderr
    same_name = "from here import Later\nexec('pass\\nwith Later():\\n    x = 1')"
    done = subprocess.run([sys.executable, "-c", same_name], capture_output=True, text=True, env=env, timeout=60)
    assert "SourceError" in done.stderr


def test_stdin_is_refused(tmp_path):
    done = in_new_python("", "-", tmp_path=tmp_path, input="from here import Later\nwith Later():\n    print('ran')\n")
    assert "SourceError" in done.stderr and "python -c" in done.stderr and "ran" not in done.stdout


def test_doctest():
    import doctest

    text = ">>> with Later():\n...     x = 5\n>>> x\n5\n"
    test = doctest.DocTestParser().get_doctest(text, {"Later": Later}, "here", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_ipython_cells_and_magics(tmp_path):
    pytest.importorskip("IPython")
    done = in_new_python(
        """
        from IPython.core.interactiveshell import InteractiveShell
        from here import Later
        shell = InteractiveShell.instance(colors="NoColor")
        shell.user_ns["Later"] = Later
        shell.run_cell("with Later():\\n    x = 5\\n!true\\nwith Later(): y = x", store_history=True)
        print(shell.user_ns.get("x"), shell.user_ns.get("y"))
        shell.run_cell("%%time\\nz = 1\\nwith Later():\\n    z = x + 1", store_history=True)
        print(shell.user_ns.get("z"))
        shell.run_cell("%%capture\\n%%timeit -n1 -r1\\nwith Later():\\n    w = []", store_history=True)
        print(shell.user_ns.get("w"))
        """,
        tmp_path=tmp_path,
        name="shell.py",
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "5 5" and "6" in lines and lines[-1] == "None" and "Error" not in done.stdout, (
        done.stdout + done.stderr
    )


# The same as where it stands


@pytest.mark.parametrize("text", SAME.values(), ids=SAME.keys())
def test_a_captured_block_does_what_it_does_where_it_stands(text):
    expected = run(text, block=Inline)["result"]
    space = run(text, block=Later)
    assert space["result"] == expected
    assert not [name for name in space if name.startswith(".")]


@pytest.mark.parametrize("text", SAME.values(), ids=SAME.keys())
def test_names_read_and_bound_agree_with_the_compilers_symbol_table(text):
    """A function made of the statements alone: what symtable calls its locals and its free or global names."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.With) or any(isinstance(n, (ast.Nonlocal, ast.ImportFrom)) for n in ast.walk(node)):
            continue
        if any(isinstance(n, ast.AnnAssign) and n.value is None for n in ast.walk(node)):
            continue  # symtable counts a declaration without a value
        scope = bindings(node.body)
        inside = "def body():\n" + textwrap.indent(ast.unparse(ast.Module(node.body, [])), " ")
        table = symtable.symtable(inside, "<body>", "exec").get_children()[0]
        local = {s.get_name() for s in table.get_symbols() if s.is_local() and not s.get_name().startswith(".")}
        targets = [n.target for n in ast.walk(node) if isinstance(n, ast.comprehension)]
        # From 3.12 on the compiler counts the variables of a comprehension among those of the function.
        of_comprehensions = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        assert scope.stored() <= local and local - scope.stored() <= of_comprehensions
        deep, waiting = set(), [table]
        while waiting:
            one = waiting.pop()
            deep |= {
                s.get_name()
                for s in one.get_symbols()
                if s.is_referenced() and s.is_global() and not s.is_declared_global()
            }
            waiting += one.get_children()
        declared = {name for n in ast.walk(node) if isinstance(n, ast.Global) for name in n.names}
        assert deep - declared - {"__class__"} <= scope.wanted()


# The body


def test_a_body_knows_its_place_its_text_and_its_names():
    space = run(
        """
        def f(a, b):
            unused = 0
            with Kept() as tracer:
                # a comment
                c = [a + i for i in range(2)]

                d = lambda: b + len(c)
                b += 1
                text = '''
            kept'''
        f(1, 2)
        """
    )
    body = Later.last
    assert body.filename == space["f"].__code__.co_filename and body.lineno == 4
    assert body.target == "tracer"
    assert body.writes == {"c", "d", "b", "text"}
    assert body.reads == {"a", "b", "c", "i", "range", "len"} - {"i"}
    assert body.outer == {"a": 1, "b": 2}
    assert body.source == "c = [a + i for i in range(2)]\n\nd = lambda: b + len(c)\nb += 1\ntext = '''\n    kept'''\n"
    names = body.names()
    body.run(names)
    assert dict(names) | {"d": names["d"]()} == {"c": [1, 2], "d": 5, "b": 3, "text": "\n    kept"}
    run("def f(a):\n    with Kept(), open(a) as q: a = q; b = a\nf(1)")
    assert Later.last.source == "with open(a) as q:\n    a = q; b = a\n" and Later.last.target is None
    run("with Inline() as first, Kept():\n    pass")
    assert [ast.unparse(item) for item in Later.last.items_before] == ["Inline() as first"]


def test_a_body_runs_any_number_of_times_and_each_run_has_names_of_its_own():
    run("def f(k):\n    with Kept():\n        k += 1\n        g = lambda: k\nf(1)\n")
    first, second = Later.last.names(), Later.last.names()
    Later.last.run(first)
    Later.last.run(second)
    second["k"] = 50
    assert first["k"] == 2 and first["g"]() == 2 and second["g"]() == 50


def test_names_outside_are_those_at_the_time_of_capture():
    run(
        """
        kept = []
        class Keep(Kept):
            def __exit__(self, *error):
                kept.append(self.body)
                return super().__exit__(*error)
        def f():
            for i in range(3):
                with Keep(): r = i * 10
            i = 99
        f()
        for i in range(3):
            with Keep(): r = i * 10
        i = 99
        for body in kept:
            names = body.names()
            body.run(names)
            results.append(names["r"])
        """,
        results=(results := []),
    )
    assert results == [0, 10, 20, 0, 10, 20]


def test_names_are_looked_for_among_siblings_first_then_outside_then_in_globals():
    asked = []

    def elsewhere(name):
        asked.append(name)
        return {"theirs": 1, "both": 2}[name]

    run(
        """
        in_globals = 5
        def f():
            both = 3
            here = 4
            with Kept():
                own = 0
                r = [own, theirs, both, here, in_globals, len([])]
                g = lambda: (own, theirs, both, here, in_globals, len([]))
                class A: v = (own, theirs, both, here, in_globals, len([]))
        f()
        """
    )
    names = Later.last.names(elsewhere)
    Later.last.run(names)
    assert tuple(names["r"]) == names["g"]() == names["A"].v == (0, 1, 2, 4, 5, 0)
    assert "own" not in asked and {"theirs", "both", "here", "in_globals", "len"} <= set(asked)
    assert set(names) == {"own", "r", "g", "A"}


def test_names_alone():
    names = Names({"a": 1, "b": 2}, {"c": 3, "__builtins__": builtins})
    names["d"] = 4
    assert [names[n] for n in "abcd"] == [1, 2, 3, 4] and names["len"] is len
    assert dict(names) == {"d": 4} and names.known("abcdx") == {"a": 1, "b": 2, "d": 4}
    del names["a"]
    for name in "ax":
        with pytest.raises(KeyError):
            names[name]
    with pytest.raises(KeyError):
        del names["c"]


def test_a_nested_capture_does_not_ask_siblings_until_the_name_is_needed():
    asked = []

    def elsewhere(name):
        asked.append(name)
        raise KeyError(name)

    run("def f():\n    with Kept():\n        with Later():\n            mine = 1\n            use = mine\nf()")
    names = Later.last.names(elsewhere)
    Later.last.run(names)
    assert names["use"] == 1 and "mine" not in asked


@pytest.mark.parametrize(
    "statement, word",
    [
        ("return 1", "return"),
        ("if x:\n                return", "return"),
        ("break", "break"),
        ("if x: continue", "continue"),
        ("for j in []: pass\n            else: break", "break"),
        ("yield 1", "yield"),
        ("z = yield", "yield"),
        ("yield from x", "yield"),
    ],
)
def test_leaving_or_pausing_the_function_is_refused_with_what_to_write_instead(statement, word):
    text = f"""
    def f(x):
      for i in x:
        with Later():
            ran.append(1)
            {statement}
    started = f([1])
    if started:
        next(started)
    """
    with pytest.raises(SourceError, match=rf"line \d+: .*`{word}` cannot work in it: \w+"):
        run(text, ran=(ran := []))
    assert not ran


@pytest.mark.parametrize(
    "statement", ["await x", "y = [i async for i in x]", "async with x: pass", "async for i in x: pass"]
)
def test_waiting_in_a_captured_block_is_refused(statement):
    with pytest.raises(SourceError, match="await before the block"):
        run(f"async def f(x):\n    with Later():\n        {statement}\nf(1).send(None)")


def test_functions_inside_the_block_may_do_all_of_that():
    text = """
    def f():
        with block():
            def g():
                for i in range(5):
                    if i == 3: return
                    yield i
            async def h():
                return [i async for i in k()]
            async def k():
                yield 1
            r = list(g())
        return r
    result = f()
    """
    assert run(text, block=Later)["result"] == run(text, block=Inline)["result"] == [0, 1, 2]


def test_what_cannot_be_sent_to_globals_is_refused():
    with pytest.raises(SourceError, match="'e' is declared global"):
        run("def f():\n    global e\n    with Later():\n        try: pass\n        except E as e: pass\nf()")


def test_a_traceback_shows_the_line_of_the_block_in_its_function():
    with pytest.raises(ZeroDivisionError) as caught:
        run("def outer(n):\n    with Later():\n        a = 1\n        b = [a / n for _ in range(1)]\nouter(0)")
    entries = traceback.extract_tb(caught.value.__traceback__)
    assert ("outer", 4, "b = [a / n for _ in range(1)]") in [(e.name, e.lineno, e.line) for e in entries]


def test_a_warning_in_a_block_that_runs_often_is_given_once():
    run("import warnings\ndef f():\n    with Kept(): warnings.warn('once')\nf()")
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("default")
        for _ in range(3):
            Later.last.run(Later.last.names())
    assert len(given) == 1


def test_a_block_is_read_once(monkeypatch):
    space = run("def f():\n    with Later():\n        x = 1\n    return x")
    space["f"]()
    body = Later.last
    monkeypatch.setattr(sys.modules["nnsight._core.blocks.body"], "find_with", None)
    assert space["f"]() == 1
    assert Later.last.block is body.block and Later.last is not body


def test_what_other_libraries_keep_on_nodes_that_all_trees_share_is_not_copied():
    class Tree:
        def __reduce_ex__(self, protocol):
            raise AssertionError("a tree of another file is copied with each block")

    load, plus = ast.parse("x", mode="eval").body.ctx, ast.parse("x + y", mode="eval").body.op
    assert load is ast.parse("y", mode="eval").body.ctx
    # As `executing` does when IPython has shown a traceback.
    load.parent = plus.parent = Tree()
    try:
        with Later():
            total = sum(i + 1 for i in range(3))
    finally:
        del load.parent, plus.parent
    assert total == 6


# The caller's frame


def test_values_are_taken_from_and_bound_in_every_kind_of_frame():
    def check(frame, **new):
        before = snapshot(frame, ["a", "b", "c", "absent"])
        write_back(frame, {name: before.get(name, 0) + 1 for name in ("a", "b", "c")})
        return before

    space = run(
        """
        c = 0
        def f(a):
            b = 2
            c = None
            del c
            def g(): return b
            before = check(sys._getframe())
            return before, a, b, c, g()
        in_function = f(1)
        def h():
            a, b, c = 1, 2, 3
            def inner():
                nonlocal b
                a = c
                before = check(sys._getframe())
                return before, a, b, c
            return inner(), a, b, c
        in_closure = h()
        class A:
            a = 1
            before = check(sys._getframe())
        a = 5
        b = 6
        in_module = check(sys._getframe()), a, b, c
        """,
        check=check,
    )
    assert space["in_function"] == ({"a": 1, "b": 2}, 2, 3, 1, 3)
    assert space["in_closure"] == (({"a": 3, "b": 2, "c": 3}, 4, 3, 4), 1, 3, 4)
    a = space["A"]
    assert (a.a, a.b, a.c, a.before) == (2, 1, 1, {"a": 1})
    assert space["in_module"] == ({"a": 5, "b": 6, "c": 0}, 6, 7, 1)


@pytest.mark.skipif(sys.gettrace() is not None, reason="a trace function is given all locals, and they are kept for it")
def test_reading_a_frame_keeps_nothing_of_it_alive():
    import gc
    import weakref

    class Big:
        pass

    def f():
        big = Big()
        gone = weakref.ref(big)
        with Later():
            x = 1
        del big
        gc.collect()
        return gone(), x

    assert f() == (None, 1)


def test_a_dict_that_locals_gave_out_is_left_alone():
    def f(a):
        mine = locals()
        with Later():
            b = a + 1
        return mine["a"], b

    assert f(1) == (1, 2)
