"""Blocks that are read, skipped where they stand, and run later.

What a captured block does is compared with the same block run where it stands. `nnsight._core.blocks` needs neither torch nor
greenlet: where torch is not installed (`pytest --noconftest tests/test_blocks.py` on another Python), the package
around it is replaced by an empty one, so that its `__init__` does not run.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import importlib.util
import inspect
import itertools
import linecache
import os
import subprocess
import symtable
import sys
import textwrap
import threading
import traceback
import types
import warnings
from pathlib import Path

import pytest

STUB = """
import importlib, importlib.machinery, sys, types
def stub(root):
    for name, path in (("nnsight", root), ("nnsight._core", root + "/_core")):
        module = types.ModuleType(name)
        module.__path__ = [path]
        sys.modules[name] = module
"""

if importlib.util.find_spec("torch") is None:
    space: dict = {}
    exec(STUB, space)
    space["stub"](str(Path(__file__).parents[1] / "src" / "nnsight"))

from nnsight._core import blocks
from nnsight._core.blocks import (
    Names,
    Skipped,
    capture,
    find_with,
    fold,
    is_with_head,
    skip,
    skipped,
    snapshot,
    write_back,
)
from nnsight._core.blocks import skip as _skip_function  # noqa: F401
from nnsight._core.blocks.bindings import bindings
from nnsight._core.errors import SourceError

skipping = sys.modules["nnsight._core.blocks.skip"]
ROOT = str(Path(blocks.__file__).parents[2])
GIVEN = 7
_count = itertools.count()


class Inline:
    """The block runs where it stands."""

    def __enter__(self):
        return GIVEN

    def __exit__(self, kind, error, tb):
        return False


class Later:
    """The block is captured, skipped, and run when it has been left."""

    last = None

    def __enter__(self):
        self.frame = sys._getframe(1)
        self.body = capture(self.frame)
        Later.last = self.body
        skip(self.frame)

    def __exit__(self, kind, error, tb):
        if not skipped(error):
            return False
        names = self.body.names()
        self.body.assign(names, GIVEN)
        self.body.bind(self.frame, GIVEN)
        try:
            self.body.run(names)
        finally:
            write_back(self.frame, names)
        return True


class Kept(Later):
    """The block is captured and skipped; the test runs it."""

    def __exit__(self, kind, error, tb):
        return skipped(error)


def run(text, /, **names):
    """Run text that linecache knows, as a notebook does; give its names."""
    text = textwrap.dedent(text)
    filename = f"<block {next(_count)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    space = {"__name__": __name__, "Inline": Inline, "Later": Later, "Kept": Kept, "sys": sys, **names}
    exec(compile(text, filename, "exec"), space)
    return space


def in_new_python(script, *options, tmp_path, name="script.py", **more):
    """Run a script in a new interpreter in which `Later` is there."""
    (tmp_path / "here.py").write_text(
        STUB + f"stub({ROOT!r})\nimport sys\nfrom nnsight._core.blocks import *\n" + inspect.getsource(Later).replace("GIVEN", "7")
    )
    (tmp_path / name).write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, *options] if options and options[-1] == "-" else [sys.executable, *options, str(tmp_path / name)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path, **more)


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
        with (call()):
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
    for number, expression, before, line in FOUND:
        assert f"Found({number})" in expression
        assert "with" in text[line - 1]
    order = {number: before for number, _, before, _ in FOUND}
    assert [order[n] for n in (1, 2, 3, 4, 5, 6, 12, 16, 19, 22)] == [0, 0, 1, 3, 0, 2, 1, 1, 1, 1]


def test_each_item_of_each_with_is_found():
    check_places()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 has no columns in any case")
def test_each_item_is_found_without_columns(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_blocks\ntest_blocks.check_places()\nprint('ok')"
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
    script = "from here import Later\nwith Later():\n    x = [1 for _ in range(3)]\n    with Later(): y = 2\nprint(x, y)"
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
    assert lines[0] == "5 5" and "6" in lines and lines[-1] == "None" and "Error" not in done.stdout, done.stdout + done.stderr


# The same as where it stands

SAME = {
    "plain": "def f(n):\n    r = 0\n    with block():\n        r += n\n        s = r\n    return r, s\nresult = f(3), f(4)",
    "one line": "def f():\n    with block(): a = 1; b = 2\n    return a, b\nresult = f()",
    "one line module": "with block() as x: a = x; b = 2\nresult = a, b, x",
    "pass": "def f():\n    with block(): pass\n    return 1\nresult = f()",
    "ellipsis": "with block(): ...\nresult = 1",
    "docstring": 'def f():\n    with block():\n        """text"""\n        x = 1\n    return x, __doc__\nresult = f()',
    "try": "def f():\n    with block():\n        try:\n            1 / 0\n        except ZeroDivisionError as error:\n            x = str(error)\n        finally:\n            y = 2\n    return x, y\nresult = f()",
    "as name": "def f():\n    with block() as v:\n        w = v + 1\n    return v, w\nresult = f()",
    "as attribute": "class N: pass\ndef f():\n    n = N()\n    with block() as n.v:\n        w = n.v\n    return n.v, w\nresult = f()",
    "as item": "def f():\n    d = {}\n    with block() as d['k']:\n        w = d['k']\n    return d, w\nresult = f()",
    "as global": "v = 0\ndef f():\n    global v\n    with block() as v:\n        w = v\n    return w\nresult = f(), v",
    "loop": "def f():\n    out = []\n    for i in range(4):\n        with block():\n            out.append(i)\n            if i == 2: out.append('two')\n    return out\nresult = f()",
    "loop inside": "def f():\n    with block():\n        out = []\n        for i in range(9):\n            if i == 2: continue\n            if i == 5: break\n            out.append(i)\n        else:\n            out.append('else')\n        while True:\n            break\n    return out, i\nresult = f()",
    "nested scopes": "def f(n):\n    k = 2\n    with block():\n        m = n + 1\n        g = lambda x, d=m: x * k + m + d\n        c = [m * i for i in range(k)]\n        d = {i: (j for j in range(m)) for i in c if i < m}\n        def h(a, *b, z=k, **q):\n            def i(): return m + a + z\n            return i()\n        e = [g(1), h(2), sorted(d), sum(d[0])]\n    return c, e, g(3), h(4)\nresult = f(3)",
    "late binding": "def f():\n    with block():\n        g = lambda: x\n        x = 1\n        a = g()\n        x = 2\n        b = g()\n    return a, b\nresult = f()",
    "recursion": "def f(n):\n    with block():\n        def fact(k): return 1 if k < 2 else k * fact(k - 1)\n        x = fact(n)\n        y = f(n - 1) if n else []\n        y = y + [x]\n    return y\nresult = f(4)",
    "class": "def f(n):\n    with block():\n        m = 2\n        class A:\n            v = m + n\n            p = n + 1\n            w = [i for i in range(3)]\n            def g(self): return m + n, __class__.__name__, super().__repr__()[:1]\n        class B(A):\n            def g(self): return super().g() + (len(self.w),)\n        x = B().g(), A.v, A.p\n    return x\nresult = f(3)",
    "builtins shadowed": "def f():\n    with block():\n        sum = max\n        a = sum(1, 2)\n        g = lambda: sum(3, 4)\n        class A: v = sum(5, 6)\n    return a, g(), A.v, len([1])\nresult = f()",
    "cells": "def f():\n    x = 1\n    def get(): return x\n    with block():\n        x = 2\n        y = x\n    return x, y, get()\nresult = f()",
    "free": "def f():\n    x = 1\n    def g():\n        nonlocal x\n        with block():\n            x += 1\n            y = x\n        return y\n    return g(), x, g(), x\nresult = f()",
    "nonlocal inside": "def f():\n    x = 1\n    def g():\n        with block():\n            nonlocal x\n            x = 5\n    g()\n    return x\nresult = f()",
    "nonlocal deeper": "def f():\n    n = 0\n    t = 0\n    with block():\n        def add(k):\n            nonlocal n, t\n            n += k\n            for t in range(k): pass\n            def more():\n                nonlocal n\n                n += 100\n                return n\n            return more() + n\n        a = add(1)\n        b = add(2)\n    return n, a, b, t\nresult = f()",
    "nonlocal in between": "def f():\n    n = 0\n    with block():\n        def g():\n            n = 5\n            def h():\n                nonlocal n\n                n += 1\n                return n\n            return h(), n\n        a = g()\n    return n, a\nresult = f()",
    "nonlocal definitions": "def f():\n    h = j = k = None\n    with block():\n        def g():\n            nonlocal h, j, k\n            def h(): return 1\n            class j: v = 2\n            import math as k\n            return h(), j.v, k.pi\n        a = g()\n    return a, h(), j.v, k.pi\nresult = f()",
    "global": "count = 0\ndef read(): return count\ndef f():\n    global count\n    with block():\n        count += 1\n        a = read()\n        count = count + 1\n        b = [count for _ in range(1)]\n    return a, b\nresult = f(), count",
    "global inside": "def f():\n    with block():\n        global made\n        made = 1\n        made += 1\n        for made in (made, 9): pass\n        def g(): return made\n        a = g()\n    return a\nresult = f(), made",
    "global deeper": "t = 1\ndef f():\n    t = 2\n    with block():\n        def g():\n            global t\n            t += 10\n            del t\n            t = 20\n            def h(): return t\n            return t, h(), (lambda: t)()\n        a = g()\n        b = t\n    return a, b\nresult = f(), t",
    "global definitions": "def f():\n    global aa, bb, math\n    with block():\n        def aa(): return 1\n        class bb: pass\n        import math\n        x = aa(), bb.__name__, math.pi\n    return x\nresult = f(), aa(), bb.__name__, math.pi",
    "global builtin": "def f():\n    global len\n    with block():\n        a = len([1, 2])\n        len = lambda x: 9\n        b = len([])\n        del len\n    return a, b\nresult = f(), len([3])",
    "global unbound": "def f():\n    global never\n    with block():\n        try: never\n        except NameError as error: x = str(error)\n    return x\nresult = f()",
    "global walrus": "def f():\n    global ww\n    with block():\n        a = (ww := 3) + 1\n        b = [ww := i for i in range(3)]\n    return a, b\nresult = f(), ww",
    "walrus": "def f():\n    with block():\n        if (n := 3) > 2: m = n\n        a = [last := i for i in range(n)]\n        b = [[deep := j for j in range(i + 1)] for i in range(2)]\n        c = (lambda: (inner := 5) + inner)()\n    return n, m, a, last, deep, c\nresult = f()",
    "annotations": "def f():\n    with block():\n        x: Missing = 1\n        y: int\n        z: list[int] = [x]\n        class A:\n            v: int = 3\n            w: str\n    return x, z, A.__annotations__ if sys.version_info < (3, 14) else 0\nresult = f()",
    "del": "def f():\n    with block():\n        a, b = 1, 2\n        del a\n        try: a\n        except NameError: c = 'gone'\n    return b, c\nresult = f()",
    "del outer": "def f():\n    a = 1\n    with block():\n        del a\n        try: a\n        except NameError: c = 'gone'\n        a = 3\n    return a, c\nresult = f()",
    "unpacking": "def f():\n    with block():\n        (a, *b), c = [1, 2, 3], {}\n        c['x'], c['y'] = b\n        a += 1\n    return a, b, c\nresult = f()",
    "match": "def f(v):\n    with block():\n        match v:\n            case {'k': k, **rest}: r = k, rest\n            case [first, *others]: r = first, others\n            case str() as s: r = s\n            case other: r = other\n    return r\nresult = f({'k': 1, 'l': 2}), f([1, 2, 3]), f('s'), f(4)",
    "import": "def f():\n    with block():\n        import os.path\n        import os.path as p\n        from os import sep as s, getcwd\n    return os.path is p, s, getcwd is os.getcwd\nresult = f()",
    "import star": "with block():\n    from math import *\nresult = pi",
    "f-string": "def f(x):\n    with block():\n        s = f'{x!r:>{x}} {[x for _ in range(2)]} {(lambda: x)()}'\n    return s\nresult = f(3)",
    "other items": "import contextlib\ndef f():\n    log = []\n    @contextlib.contextmanager\n    def cm(n):\n        log.append(n)\n        yield n\n        log.append(-n)\n    with block() as a, cm(1) as b, cm(2):\n        log.append((a, b))\n    return log, a, b\nresult = f()",
    "two captured": "def f():\n    with block() as a, block() as b:\n        c = a + b\n    return a, b, c\nresult = f()",
    "three captured": "def f():\n    with block(), block(), block(): c = 1\n    return c\nresult = f()",
    "one after another": "def f():\n    with block(): a = 1\n    with block(): b = a + 1\n    with block(): c = a + b\n    return a, b, c\nresult = f()",
    "nested": "def f(n):\n    t = 0\n    with block():\n        for i in range(n):\n            with block():\n                t += i\n                with block(): u = [t for _ in range(2)]\n    return t, u\nresult = f(4)",
    "nested function": "def f(n):\n    with block():\n        def g(k):\n            with block():\n                r = k + n\n            return r\n        x = g(1)\n    return x, g(2)\nresult = f(4)",
    "nested global": "gg = 0\ndef f():\n    global gg\n    with block():\n        gg = 1\n        with block():\n            gg += 1\n            def h():\n                return gg\n            x = h()\n    return x\nresult = f(), gg",
    "super": "class A:\n    def f(self, n): return [n]\nclass B(A):\n    def f(self, n):\n        with block():\n            r = super().f(n)\n            r += [super().f(i) for i in range(1)] if sys.version_info >= (3, 12) else [[0]]\n            r += [__class__.__name__]\n            def g(me): return super().f(9)\n            r += g(self)\n            class C(A):\n                def f(self, n): return super().f(n) + [__class__.__name__]\n            r += C().f(1)\n        return r\nresult = B().f(3)",
    "super nested": "class A:\n    def f(self): return 1\nclass B(A):\n    def f(self):\n        with block():\n            with block():\n                r = super().f()\n        return r\nresult = B().f()",
    "classmethod": "class A:\n    @classmethod\n    def f(cls): return 1\nclass B(A):\n    @classmethod\n    def f(cls):\n        with block(): r = super().f() + 1\n        return r\nresult = B.f()",
    "private": "class A:\n    __k = 1\n    def __init__(self): self.__v = 2\n    def f(self, __p=3):\n        with block():\n            __l = self.__v + A.__k + __p\n            self.__v = 10\n            def __g(__q): return __q + __l\n            r = [__l, __g(1), dict(__x=1)]\n            class __I:\n                __z = 5\n            r += [sorted(n for n in vars(__I) if 'z' in n)]\n            import math as __m\n            from math import pi as __pi\n            try: 1 / 0\n            except ZeroDivisionError as __e: r += [str(__e)]\n        return r, __l, self.__v, __m.pi == __pi\nresult = A().f()",
    "private and global": "class A:\n    def f(self):\n        global __g\n        with block():\n            __g = 1\n        return __g\nresult = A().f(), _A__g",
    "class body": "class A:\n    a = 1\n    with block():\n        b = a + 1\n        def g(self): return self.b\n    c = b\nresult = A.a, A.b, A.c, A().g()",
    "class body in a function": "def f(n):\n    m = 2\n    class A:\n        with block():\n            b = n + m\n    return A.b\nresult = f(1)",
    "module": "a = 1\nfor i in range(3):\n    with block():\n        a += i\n        g = lambda: a\nresult = a, i, g()",
    "async": "import asyncio\nasync def f(n):\n    await asyncio.sleep(0)\n    with block():\n        r = n + 1\n    await asyncio.sleep(0)\n    return r\nasync def both(): return await asyncio.gather(f(1), f(2))\nresult = asyncio.run(both())",
    "generator": "def f():\n    for i in range(3):\n        with block(): r = i * 2\n        yield r\nresult = list(f())",
    "exec with locals": "space = {}\nfrom linecache import cache\ntext = 'with block():\\n    x = y + 1\\n    g = lambda: y\\nz = g() + x'\nname = f'<inner {id(space)}>'\ncache[name] = (1, None, text.splitlines(True), name)\nexec(compile(text, name, 'exec'), {'block': block, 'y': 1}, space)\nresult = space['x'], space['z']",
    "eval": "def f(n):\n    with block():\n        m = 2\n        r = eval('n + m')\n    return r\nresult = f(1)",
    "globals()": "def f():\n    with block():\n        globals()['made_here'] = 3\n        a = 'made_here' in globals(), globals()['made_here'], globals().get('nothing', 5)\n    return a\nresult = f(), made_here",
    "decorators": "def twice(g): return lambda *a: (g(*a), g(*a))\ndef f():\n    with block():\n        @twice\n        def h(x): return x\n        r = h(1)\n    return r\nresult = f()",
    "decorator first": "def f():\n    with block():\n        @staticmethod\n        def h(x):\n            return x\n    return h(2)\nresult = f()",
    "multi-line string": "def f():\n    with block():\n        s = '''a\n   b\n            c'''\n        t = 1\n    return s, t\nresult = f()",
    "starred": "def f(*a, **k):\n    with block():\n        r = [*a, *k], {**k}\n    return r\nresult = f(1, 2, z=3)",
    "future": "from __future__ import annotations\ndef f():\n    with block():\n        def g(x: Missing) -> Also: return 1\n    return g.__annotations__\nresult = f()",
    "comprehension scopes": "def f():\n    x = 5\n    with block():\n        r = [x for x in range(3)], x, {x: y for x in range(2) for y in range(x)}, [(lambda: x)() for x in (1, 2)]\n    return r, x\nresult = f()",
    "dataclass": "import dataclasses\ndef f():\n    with block():\n        @dataclasses.dataclass\n        class P:\n            x: int\n            y: int = 2\n        p = P(1)\n    return p.x, p.y\nresult = f()",
    "assert": "def f(n):\n    with block():\n        try:\n            assert n == 2, n\n            r = 'same'\n        except AssertionError as error:\n            r = str(error)\n    return r\nresult = f(2), f(3)",
    "lambda with": "def f():\n    with block():\n        g = lambda *a, k=1: [a, k]\n        r = list(map(lambda i: g(i, k=i), range(2)))\n    return r\nresult = f()",
    "error": "def f():\n    try:\n        with block():\n            x = 1\n            raise KeyError('mine')\n    except KeyError as error:\n        return x, error.args\nresult = f()",
    "unbound": "def f():\n    try:\n        with block():\n            print(nowhere)\n    except NameError as error:\n        return str(error), error.name\nresult = f()",
}
if sys.version_info >= (3, 12):
    SAME["type parameters"] = "def f():\n    with block():\n        m = 4\n        def g[T](x: T) -> T: return x + m\n        class A[T]:\n            v = m\n        type L = list[m]\n        r = g(1), A.v, L.__value__\n    return r\nresult = f()"
    SAME["f-string quotes"] = "def f(d):\n    with block():\n        s = f\"{d[\"k\"]}\"\n    return s\nresult = f({'k': 1})"
if sys.version_info >= (3, 11):
    SAME["except*"] = "def f():\n    with block():\n        try:\n            raise ExceptionGroup('g', [ValueError(1), KeyError(2)])\n        except* ValueError as error:\n            r = repr(error.exceptions)\n        except* KeyError:\n            s = 2\n    return r, s\nresult = f()"


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
            deep |= {s.get_name() for s in one.get_symbols() if s.is_referenced() and s.is_global() and not s.is_declared_global()}
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
        ("if x:\n            return", "return"),
        ("break", "break"),
        ("if x: continue", "continue"),
        ("for j in []: pass\n        else: break", "break"),
        ("yield 1", "yield"),
        ("z = yield", "yield"),
        ("yield from x", "yield"),
    ],
)
def test_leaving_or_pausing_the_function_is_refused_with_what_to_write_instead(statement, word):
    text = f"ran = []\ndef f(x):\n  for i in x:\n    with Later():\n        ran.append(1)\n        {statement}\ng = f([1])\nif g: next(g)"
    with pytest.raises(SourceError, match=rf"line \d+: .*`{word}` cannot work in it: \w+"):
        run(text, ran=(ran := []))
    assert not ran


@pytest.mark.parametrize("statement", ["await x", "y = [i async for i in x]", "async with x: pass", "async for i in x: pass"])
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
    space = run(fillers + "with Later() as z1:\n    n299 = z1 + n298\n" + "".join(f"    n{i} += 1\n" for i in range(290)))
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
    assert {line for event, line in inline if event == "line"} - in_blocks == {line for event, line in later if event == "line"}
    assert [event for event, _ in later if event != "line"] == ["call", "return"]
    # The lines outside the blocks come in the same order; the line of a `with` comes again when it is left, if it had a body.
    assert [line for _, line in later if line not in in_blocks | {4, 8, 11}] == [
        line for _, line in inline if line not in in_blocks | {4, 8, 11}
    ]


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
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "COVERAGE_CORE": core}
    command = [sys.executable, "-m", "coverage", "run", "--include=covered.py", *(["--branch"] if branch else []), "covered.py"]
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
    inside = script.replace("d = 5", "pdb.set_trace()\n            d = 5\n            x = y = 0\n            x = 1").replace("pdb.set_trace()\n        c", "c")
    out, err = pdb_session(inside, ["p 'in', a, c", "n", "n", "p 'd', d", "w", "c"], tmp_path)
    assert "('in', 2, 4)" in out and "('d', 5)" in out and "> " in out and "d = 5" in out and "(2, 3, 4, 5, 6)" in out, out + err


def test_a_breakpoint_in_the_block_stops_there(tmp_path):
    script = "from here import Later\ndef f():\n    with Later():\n        a = 1\n        b = a + 1\n    return b\nprint(f())\n"
    in_new_python(script, tmp_path=tmp_path, name="stopped.py")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    commands = "b stopped.py:5\nc\np 'here', a\nc\nq\n"
    done = subprocess.run(
        [sys.executable, "-m", "pdb", "stopped.py"], input=commands, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60
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
    middle = make("model.py", "def f():\n    try: deep()\n    except KeyError as e: raise ValueError(2) from e", deep=deep)
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
