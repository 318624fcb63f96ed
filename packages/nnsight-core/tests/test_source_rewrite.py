"""A rewritten function does what the function did, in the same order, on the same lines, and hands over its calls."""

from __future__ import annotations

import ast
import asyncio
import gc
import importlib
import linecache
import sys
import traceback
import types
import weakref
from itertools import count

import pytest
import source_examples
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from source_examples import Child

from nnsight._core.errors import SourceError
from nnsight._core.source.rewrite import rewrite

_texts = count()


def through(callee, /, *args, **kwargs):
    return callee(*args, **kwargs)


def passing(function, record=None):
    """The function with every call passed on, and noted in `record` by its operation's name."""
    rewritten = rewrite(function)

    def stand_in(operation):
        def noting(callee, /, *args, **kwargs):
            record.append(operation.name)
            return callee(*args, **kwargs)

        return through if record is None else noting

    return rewritten.bind(function, [stand_in(operation) for operation in rewritten])


def define(text, name="f", **variables):
    """Define a function as a notebook does: executed from text that only `linecache` knows."""
    filename = f"<cell {next(_texts)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    space = {"__name__": "cells", **variables}
    exec(compile(text, filename, "exec", dont_inherit=True, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), space)
    return space[name]


def names(function):
    return [operation.name for operation in rewrite(function)]


def outcome(call):
    try:
        return "returned", call()
    except Exception as error:
        return "raised", type(error), str(error)


EXAMPLES = [
    *[(method, (Child(), x)) for method in (Child.run, Child.inner_super) for x in (3, -2)],
    *[(source_examples.comprehensions, (rows,)) for rows in ([], [[1, 2], [0, -7]])],
    *[(source_examples.matched, (x,)) for x in range(5)],
    *[(function, (x,)) for function in (source_examples.shadowed, source_examples.decorated_inside) for x in (-5, 2)],
    *[
        (getattr(source_examples, name), (x,))
        for name in ("walrus", "managers", "conditional", "targets", "own_variables", "rescaled", "recursive")
        for x in (0, 1, 4)
    ],
]


@pytest.mark.parametrize(("function", "args"), EXAMPLES)
def test_results_and_errors_are_the_same(function, args, monkeypatch):
    monkeypatch.setattr(source_examples, "SCALE", 2)
    expected = outcome(lambda: function(*args))
    monkeypatch.setattr(source_examples, "SCALE", 2)
    record = []
    assert outcome(lambda: passing(function, record)(*args)) == expected
    assert record or function is source_examples.recursive


def test_methods_of_every_kind():
    child = Child()
    assert passing(Child.own_class)(child) == child.own_class() == ("child", 11)
    assert passing(Child.inner_class)(child, 4) == child.inner_class(4)
    make = vars(Child)["make"].__func__
    assert passing(make)(Child, -3) == Child.make(-3) == ("Child", 3)
    assert passing(vars(Child)["size"].fget)(child) == child.size == 9
    shift = vars(Child)["_Child__shift"].__func__
    assert passing(shift)(9) == 5


def test_private_names_are_mangled_as_in_their_class():
    hidden = Child._Child__hidden
    assert names(hidden) == ["max_0", "float_0", "type_0", "__shift_0"]
    assert passing(hidden)(Child(), -4) == Child()._Child__hidden(-4) == 1.0


def test_closures_share_their_variables():
    step = source_examples.counter(5)
    record = []
    other = passing(step, record)
    assert (step(2), other(1, 1, sign=-1), step(0, a=1, b=2)) == (7, 5, 7)
    assert record == ["sum_0", "len_0"]
    outer = passing(source_examples.counter)
    assert outer(1)(2) == 3


def test_unpacking():
    function = source_examples.unpacked
    assert passing(function)(-3, 2, q=1, p=0) == function(-3, 2, q=1, p=0)
    for keywords in ({"z": 1}, {"a": 1}):
        for called in (function, passing(function)):
            with pytest.raises(TypeError, match="multiple values for keyword argument"):
                called(1, **keywords)


def test_generators_take_and_give_values(capsys):
    def conversation(function):
        heard, talk = [], function(3)
        try:
            heard.append(next(talk))
            while True:
                heard.append(talk.send(len(heard) if len(heard) == 2 else None))
        except StopIteration:
            return heard

    assert conversation(passing(source_examples.generator)) == conversation(source_examples.generator)
    abandoned = [passing(source_examples.generator)(2), source_examples.generator(2)]
    assert [next(talk) for talk in abandoned] == [0, 0]
    one, other = (outcome(talk.close) for talk in abandoned)
    assert one == other and one[1] is RuntimeError  # for it yields once more when it is closed


def test_coroutines():
    assert asyncio.run(passing(source_examples.awaited)(3)) == asyncio.run(source_examples.awaited(3))


def test_the_function_object_is_equal():
    def function(a, b=(1, []), /, c=2, *d, e: int = 3, f, **g) -> str:
        """What it says."""
        return str(a)

    function.mark = object()
    bound = passing(function)
    for part in ("__defaults__", "__kwdefaults__", "__annotations__", "__globals__", "__dict__", "__doc__"):
        assert getattr(bound, part) == getattr(function, part)
    for part in ("__name__", "__qualname__", "__module__"):
        assert getattr(bound, part) == getattr(function, part)
    assert bound.__defaults__[0] is function.__defaults__[0] and bound.__globals__ is function.__globals__
    assert bound.__code__.co_filename == __file__ and bound.__code__.co_firstlineno == function.__code__.co_firstlineno
    assert bound.__code__.co_flags & 0x0F == function.__code__.co_flags & 0x0F
    if sys.version_info >= (3, 11):
        assert bound.__code__.co_qualname == function.__code__.co_qualname


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters came with Python 3.12")
def test_type_parameters():
    text = """
class C[T]:
    def f[U: (int, str)](self, x: U) -> T:
        type V = list[U]
        return str(T), str(U), x, str(V)
"""
    method = define(text, "C").f
    assert passing(method)(None, 1) == method(None, 1) == ("T", "U", 1, "V")
    assert passing(method).__type_params__ == method.__type_params__


class Note:
    """A value whose every use is noted: called, indexed, assigned to."""

    def __init__(self, log, name):
        vars(self).update(log=log, name=name)

    def __call__(self, *args, **kwargs):
        arguments = [
            getattr(argument, "name", argument)
            for argument in args
            if not callable(argument) or isinstance(argument, Note)
        ]
        self.log.append((self.name, arguments, sorted(kwargs)))
        return Note(self.log, f"{self.name}()")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.log.append(f"{self.name}.{name}")
        return Note(self.log, f"{self.name}.{name}")

    def __setattr__(self, name, value):
        self.log.append(f"{self.name}.{name} = {value.name}")

    def __getitem__(self, key):
        key = (key.start.name, key.stop.name) if isinstance(key, slice) else getattr(key, "name", key)
        self.log.append(f"{self.name}[{key}]")
        return Note(self.log, f"{self.name}[]")

    def __bool__(self):
        self.log.append(f"bool {self.name}")
        return len(self.log) % 3 > 0

    def __iter__(self):
        self.log.append(f"iter {self.name}")
        return iter([Note(self.log, f"{self.name}*")] * 2)

    def keys(self):
        self.log.append(f"keys {self.name}")
        return ["key"]

    def __format__(self, spec):
        self.log.append(f"format {self.name} {spec}")
        return self.name

    def __lt__(self, other):
        self.log.append(f"{self.name} < {other.name}")
        return self


def order(function):
    log = []
    ended = outcome(lambda: function(lambda name: log.append(name) or Note(log, name)))
    return log, ended[0], ended[1] if ended[0] == "raised" else None


def test_every_part_is_evaluated_in_its_old_order():
    log, *_ = order(source_examples.ordered)
    assert order(passing(source_examples.ordered)) == (log, *_)
    assert log.index("f") < log.index("a") < log.index("b") < log.index("c") < log.index("d") < log.index("key")


# `v("name")` makes a value that notes what is done to it; 0, 1 and 2 are such expressions again.
TEMPLATES = [
    *("{0}({1}, {2})", "{0}.m({1}, {2})", "{0}.m(\n {1},\n *{2})\n", "{0}({1}, k={2}, **{1})", "{0}.a.b[{1}]({2})"),
    *(
        "({0} if {1} else {2})",
        "({0} and {1} or {2})",
        "(not {0}, {1} < {2})[0]",
        "(u := {0})({1}, u)",
        "{0}({1})({2})",
    ),
    *("v(str(len([{0} for w in {1} if w({2})])))", "v(str(len({{{0}: {1} for w in {2}}})))", "[*{0}][0]({1}, {2})"),
    *("(lambda x, y={0}: x({1}, y))({2})", "(lambda *a, **k: a[0](*a, **k))({0}, *{1}, **{2})", "{0}[{1}:{2}]()"),
    *(
        'v(f\'{{v("f"):>{{len("ab")}}}}\')({0}, {1}, {2})',
        "next(({0}({1}) for w in {2}))",
        "v({{**{0}, 1: {1}}}[1].name)",
    ),
]
EXPRESSIONS = st.recursive(
    st.integers(0, 9).map(lambda n: f"v('n{n}')"),
    lambda inner: st.tuples(st.sampled_from(TEMPLATES), inner, inner, inner).map(
        lambda parts: parts[0].format(*parts[1:])
    ),
    max_leaves=9,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=2))
def test_any_expression_is_evaluated_in_its_old_order(expressions):
    text = "def f(v):\n" + "".join(f"    s{at} = ({text})\n" for at, text in enumerate(expressions))
    try:
        calls = [node for node in ast.walk(compile(text, "", "exec", ast.PyCF_ONLY_AST)) if isinstance(node, ast.Call)]
        function = define(text)
    except SyntaxError:
        reject()  # `:=` is forbidden in some parts of a comprehension
    record = []
    assert order(passing(function, record)) == order(function)
    assert set(record) <= set(names(function))
    assert len(names(function)) == len(set(names(function))) == len(calls)


def lines_of(call):
    """The lines that an error passed through, in the files of the examples."""
    with pytest.raises(Exception) as caught:
        call()
    frames = traceback.extract_tb(caught.value.__traceback__)
    kept = [(frame.lineno, frame.name) for frame in frames if frame.filename == source_examples.__file__]
    return kept, caught.type, str(caught.value)


@pytest.mark.parametrize(
    "kind",
    ["argument", "chain", "chain with keywords", "chain with stars", "attribute", "nested", "raise"],
)
def test_tracebacks_show_the_old_lines(kind):
    function = source_examples.failing
    expected = lines_of(lambda: function(kind))
    assert lines_of(lambda: passing(function)(kind)) == expected
    assert expected[0]


def test_names():
    text = """
def f(self, x, g, h):
    a = torch.relu(x)
    b = self.l(a)
    c = torch.relu(self.l(b)).sum(-1).view(-1).contiguous()
    c.sum(-1)
    self.h[0].attn(x); x[0].sum(); h[1](x)
    (x + 1).mean(); "{}".format(1); [].index(1)
    g(1)(2); (lambda: 0)(); (g or h)(3); (y := g)(4); {}[0](5)
    getattr(self, "x").foo.bar(6)
    self.__p(); super().__init__(); super(A, self).run()
    g(**g(g(0)))
    torch.nn.functional.scaled_dot_product_attention(x, größe(1))
"""
    assert names(define(text)) == [
        *("torch_relu_0", "self_l_0", "self_l_1", "torch_relu_1", "sum_0", "view_0", "contiguous_0", "c_sum_0"),
        *("self_h_attn_0", "x_sum_0", "h_0", "mean_0", "format_0", "index_0"),
        *("g_0", "call_0", "call_1", "call_2", "call_3", "call_4", "getattr_0", "foo_bar_0"),
        *("self___p_0", "__init___0", "run_0", "g_1", "g_2", "g_3"),
        *("größe_0", "torch_nn_functional_scaled_dot_product_attention_0"),
    ]


def test_names_count_in_nested_bodies_too_and_not_in_heads():
    text = """
def mark(x): return lambda f: f
@mark(mark(1))
def f(x: mark(2) = mark(3)) -> mark(4):
    @mark(5)
    def g(y: mark(6) = mark(7)) -> mark(8):
        return mark(9)
    z: mark(10) = mark(11)
    class A(mark(12).__class__): b = mark(13)
    return [mark(t) for t in mark(14)]
"""
    function = define(text)
    assert [operation.text for operation in rewrite(function)] == [
        *("mark(5)", "mark(7)", "mark(9)", "mark(11)", "mark(12)", "mark(13)", "mark(t)", "mark(14)"),
    ]


def test_an_operation_knows_its_place():
    function = source_examples.failing
    lines = linecache.getlines(source_examples.__file__)
    rewritten = rewrite(function)
    assert rewritten.by_name["text_replace_0"].callee == "text.replace"
    for operation in rewritten:
        first, last = lines[operation.lineno - 1].encode(), lines[operation.end_lineno - 1].encode()
        word = operation.callee.rpartition(".")[2]
        assert first[operation.col_offset :].startswith(word.encode() + b"(")
        assert last[: operation.end_col_offset].endswith(b")")
        assert rewritten.operations[operation.index] is operation
    assert rewritten.lines[0] == "def failing(kind):" == lines[rewritten.first_line - 1].rstrip("\n")
    assert rewritten.lines[-1] == "    return list(text)"


def test_what_reads_its_callers_frame_is_called_directly():
    text = """
import inspect, sys
def f(self, x):
    super; locals(); globals(); vars(); dir(); eval("x"); exec("x")
    vars(self); dir(self)
    inspect.currentframe(); sys._getframe(); sys.exc_info()
    return inspect.currentframe().f_code.co_name, sys._getframe().f_code.co_name
"""
    function = define(text)
    assert names(function) == ["vars_0", "dir_0", "sys_exc_info_0"]
    assert passing(function)(Child(), 1) == ("f", "f")


def test_the_row_is_read_at_each_call():
    def function(x):
        return abs(x), abs(-x)

    row = [through, through]
    bound = rewrite(function).bind(function, row)
    assert bound(2) == (2, 2)
    row[1] = lambda callee, x: (callee.__name__, x)
    assert bound(2) == (2, ("abs", -2))


def test_a_function_without_calls():
    def function(x):
        return x + 1

    assert names(function) == [] and rewrite(function).bind(function, [])(1) == 2


def test_the_variable_for_the_row_hides_no_other():
    function = define(
        "operations_ = 1\ndef f(operations):\n    return abs(operations), operations_, sorted(locals())\n"
    )
    assert passing(function)(-2) == function(-2) == (2, 1, ["operations"])


def test_asserts_that_pytest_rewrote():
    def function(x):
        def inner(y):
            assert abs(y) > 1, str(y)
            return y

        assert len(str(inner(x))) == 1
        return inner(x)

    assert any("@py" in name for name in function.__code__.co_consts[1].co_names + function.__code__.co_names)
    assert passing(function)(5) == 5
    with pytest.raises(AssertionError, match="1"):
        passing(function)(1)


def test_two_closures_share_one_rewriting():
    one, other = source_examples.counter(0), source_examples.counter(10)
    assert one is not other and rewrite(one) is rewrite(other)
    assert (passing(one)(1), passing(other)(1), passing(one)(1)) == (1, 11, 2)
    with pytest.raises(SourceError, match="rewrite it first"):
        rewrite(one).bind(source_examples.walrus, [])


def test_equal_code_from_two_files_is_kept_apart():
    text = "def f(x):\n    return abs(x)\n"
    one, other = define(text), define(text)
    assert one.__code__ == other.__code__ and one.__code__.co_filename != other.__code__.co_filename
    assert rewrite(one).filename == one.__code__.co_filename
    assert rewrite(other).filename == other.__code__.co_filename


def test_nothing_is_kept_of_code_that_is_gone():
    function = define("def f(x):\n    return abs(x), [str(y) for y in range(x)]\n")
    bound, rewritten, code = passing(function), weakref.ref(rewrite(function)), weakref.ref(function.__code__)
    del bound.__globals__["f"], function
    gc.collect()
    assert code() is None and rewritten() is None
    assert bound(1) == (1, ["0"])


def test_a_cell_with_an_await_beside_the_function():
    text = "import asyncio\nasync def g(): pass\nif False: await g()\ndef f(x):\n    return abs(x)\n"
    space = {}
    filename = "<cell with await>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    cell = types.FunctionType(compile(text, filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), space)
    asyncio.run(cell()) if cell.__code__.co_flags & 0x80 else cell()
    assert passing(space["f"])(-1) == 1


def test_no_source():
    space = {}
    exec("def f(x):\n    return abs(x)", space)
    for function, why in (
        (space["f"], "compiled from a string"),
        (lambda x: abs(x), "is a lambda.*`def`"),
        (abs, "builtin_function_or_method"),
        (Child, "of type type"),
        (Child().run, "of type method"),
    ):
        with pytest.raises(SourceError, match=why):
            rewrite(function)


@pytest.mark.parametrize(
    "edited",
    [
        "def f(x):\n    return abs(x) + 3\n",
        "\n\ndef f(x):\n    return abs(x) + 2\n",
        "def f(x:\n",
        "f = abs\n",
        "if 0:\n  def f(x): 1\n",
    ],
)
def test_source_edited_since_it_was_imported(edited, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"edited_{next(_texts)}"
    path = tmp_path / f"{name}.py"
    path.write_text("def f(x):\n    return abs(x) + 2\n\n\ndef g(x):\n    return abs(x)\n")
    importlib.invalidate_caches()
    module = importlib.import_module(name)
    assert passing(module.g)(-1) == 1
    path.write_text(edited)
    with pytest.raises(SourceError, match="edited after it was imported"):
        rewrite(module.f)
    del sys.modules[name]


def test_code_that_an_import_hook_changed():
    function = define("def f(x):\n    return abs(x) + 2.0\n")
    code = function.__code__
    function.__code__ = code.replace(co_consts=tuple(2 if const == 2.0 else const for const in code.co_consts))
    with pytest.raises(SourceError, match="import hook"):
        rewrite(function)
