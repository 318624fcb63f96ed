"""Functions, classes and modules that travel by their text; what arrives is compared with what was sent.

None of it needs torch: under another Python without it, run `pytest --noconftest tests/test_wire_code.py`.
"""

from __future__ import annotations

import abc
import asyncio
import collections
import dataclasses
import enum
import functools
import gc
import importlib
import io
import json
import linecache
import math
import operator
import os
import pickle
import platform
import re
import shutil
import socket
import string
import struct
import subprocess
import sys
import textwrap
import threading
import traceback
import types
import typing
import weakref
import zlib
from pathlib import Path

import pytest
from block_contexts import ROOT, run, stub  # replaces nnsight by an empty package where there is no torch

from nnsight._core.errors import WireError
from nnsight._core.wire import Decoder, Encoder, origin
from nnsight._core.wire.texts import Received
from nnsight._core.wire.uses import uses

K = 3
seen = []


def send(value):
    encoder = Encoder()
    return encoder.pack("request", encoder.value(value, "`it`"), {})


def receive(data):
    decoder = Decoder(data, "request", trusted=True)
    return decoder.read()


def there(value):
    return receive(send(value))


# -- functions -------------------------------------------------------------------------------------------------------


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def counting():
    seen.append(1)
    return len(seen)


def renew():
    global K
    K += 1
    return K


def twice(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return 2 * function(*args, **kwargs)

    return wrapper


@twice
def decorated(a, b=2, *rest, c, d=K, **more):
    """Say what it does."""
    return a + b + c + d + sum(rest) + sum(more.values())


@functools.cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@functools.singledispatch
def by_type(x):
    return "object"


@by_type.register
def _(x: int):
    return "int"


def squares(n):
    for at in range(n):
        yield at**2


async def later(n):
    await asyncio.sleep(0)
    return n * K


def with_imports(n):
    import math as m
    from fractions import Fraction

    return Fraction(m.floor(n), 2)


def test_functions_call_each_other_there():
    assert there(even)(10) and not there(odd)(10) and there(fib)(20) == fib(20)


def test_arguments_and_defaults_are_the_same():
    arrived = there(decorated)
    assert arrived(1, c=1) == decorated(1, c=1) and arrived(1, 2, 3, 4, c=5, d=6, e=7) == decorated(
        1, 2, 3, 4, c=5, d=6, e=7
    )
    assert (arrived.__name__, arrived.__doc__, arrived.__qualname__) == ("decorated", "Say what it does.", "decorated")


def test_generators_coroutines_and_imports_work_there():
    assert list(there(squares)(4)) == [0, 1, 4, 9]
    assert asyncio.run(there(later)(2)) == 2 * K
    assert there(with_imports)(5.5) == with_imports(5.5)


def test_globals_are_shared_there_and_not_with_here():
    first, again, change = there((counting, counting, renew))
    assert first is again and first() == 1 and first() == 2 and seen == []
    assert change() == K + 1 and change() == K + 2


def test_variables_of_a_function_around_are_shared():
    def counter(start):
        def add(n):
            nonlocal start
            start += n
            return start

        def read():
            return start

        return add, read

    add, read = there(counter(5))
    assert add(2) == 7 and read() == 7


def test_a_function_may_close_over_itself_and_over_nothing_yet():
    def down(n):
        return n and down(n - 1)

    def early():
        return unbound

    assert there(down)(5) == 0
    with pytest.raises(NameError):
        there(early)()
    unbound = 1


def test_several_lambdas_on_a_line_are_told_apart():
    one = 1
    fs = [lambda x: x + 1, lambda x: x + 2, lambda x, y=(lambda: 4): x * y(), lambda x: x + one]  # fmt: skip
    assert [f(10) for f in there(fs)] == [f(10) for f in fs] == [11, 12, 40, 11]
    long = [
        lambda x: (
            x,
            "ü", lambda: x,
        )
    ]  # fmt: skip
    [long] = there(long)
    assert long(3)[:2] == (3, "ü") and there(long(3)[2])() == 3
    same = run("f = [\nlambda x: x + 1,\nlambda x: x + 2]\ng = 'ü', lambda x: 'ü' + x\n")
    assert [f(1) for f in there(same["f"])] == [2, 3] and there(same["g"][1])("a") == "üa"


def test_what_a_library_made_of_a_function_travels():
    add = functools.partial(operator.add, 2)
    assert there(add)(3) == 5 and there(operator.itemgetter(1))("ab") == "b"
    assert there(functools.partial(even, 4))() is True and there(re.compile("a+")).match("aa")
    assert there(by_type)(1) == "int" and there(by_type)("") == "object"
    assert there(types.MappingProxyType({1: 2}))[1] == 2 and there(int | None) == int | None
    assert there([len, math.sqrt, str.upper, "x".join, [].append, dict.fromkeys])[2]("a") == "A"
    assert there("-".join)("ab") == "a-b" and there(functools.reduce) is functools.reduce


def test_attributes_of_functions_come_along():
    def marked():
        return marked.count

    marked.count = 4
    assert there(marked)() == 4


def test_default_values_are_not_computed_again():
    def collect(into=[]):  # noqa: B006
        into.append(1)
        return into

    collect()
    arrived = there(collect)
    assert arrived() == [1, 1] and arrived() == [1, 1, 1] and len(collect()) == 2


def test_functions_that_call_each_other_in_a_long_row_travel():
    text = "".join(f"def f{number}(n):\n    return f{number + 1}(n)\n" for number in range(200))
    limit = sys.getrecursionlimit()
    first = run(text + "def f200(n):\n    return n + 1\n")["f0"]
    assert there(first)(1) == 2 and sys.getrecursionlimit() == limit


def test_only_names_that_are_used_travel():
    used = uses(decorated.__wrapped__.__code__)
    assert not used.names.keys() & {"K", "seen"} and uses(renew.__code__).names.keys() == {"K"}
    data = send(even)
    assert b"odd" in data and b"counting" not in data and len(data) < 1000


def test_lines_of_one_file_that_came_with_two_messages_are_shown_together():
    name = "/nowhere/of_two.py"
    model, block = Received([[name, [3, "three"]]]), Received([[name, [7, "seven"]]])
    model.show()
    block.show()
    assert [linecache.getline(name, number) for number in (3, 7)] == ["three\n", "seven\n"]
    block.forget()
    assert [linecache.getline(name, number) for number in (3, 7)] == ["three\n", ""]
    model.forget()
    assert name not in linecache.cache


def test_the_lines_of_the_user_are_in_a_traceback():
    def boom():
        return {}["the key"]

    with pytest.raises(KeyError) as raised:
        there(boom)()
    last = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert last.filename == __file__ and last.line == 'return {}["the key"]' and last.name == "boom"
    assert last.lineno == boom.__code__.co_firstlineno + 1


# -- classes ---------------------------------------------------------------------------------------------------------

made = []


def registered(cls):
    made.append(cls.__name__)
    cls.guard = threading.Lock()
    return cls


@registered
@dataclasses.dataclass
class Point:
    x: int
    y: int = dataclasses.field(default=2, repr=False)
    tags: list[str] = dataclasses.field(default_factory=list)
    scale: typing.ClassVar[int] = 1

    def norm(self) -> float:
        return math.hypot(self.x, self.y) * self.scale

    def __hidden(self):
        return "hidden"

    @property
    def hidden(self):
        return self.__hidden()


class Deep(Point):
    table = {"a": [1]}
    lock = threading.Lock()

    def __init__(self, x):
        super().__init__(x, tags=["deep"])

    def norm(self):
        return super().norm() + K

    @classmethod
    def make(cls, x):
        return cls(x)

    @staticmethod
    def fixed():
        return K

    @functools.cached_property
    def cached(self):
        return Deep.table["a"] + [self.x]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return True

    class Inner:
        def who(self):
            return type(self).__qualname__


class Shape(abc.ABC):
    __slots__ = ()

    @abc.abstractmethod
    def area(self): ...


class Square(Shape):
    __slots__ = ("side",)

    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side**2


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"

    def nice(self):
        return self is Colour.RED


class Flags(enum.IntFlag):
    A = 1
    B = 2


class Meta(type):
    def __new__(mcls, name, bases, space, tag=None):
        made = super().__new__(mcls, name, bases, space)
        made.tag = tag
        return made

    def __init__(cls, name, bases, space, tag=None):
        super().__init__(name, bases, space)


class Tagged(metaclass=Meta, tag="t"):
    pass


class Plugin:
    known: typing.ClassVar[list] = []

    def __init_subclass__(cls, **options):
        Plugin.known.append(cls.__name__)


class First(Plugin):
    pass


T = typing.TypeVar("T")


class Box(typing.Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item


class Row(typing.NamedTuple):
    a: int
    b: str = "b"

    def both(self):
        return self.b * self.a


Pair = collections.namedtuple("Pair", "left right", defaults=(2,))


class Doubled:
    def __set_name__(self, owner, name):
        self.name = "_" + name

    def __get__(self, thing, owner=None):
        return 2 * getattr(thing, self.name)


class Holder:
    value = Doubled()

    def __init__(self):
        self._value = 4


class Failure(ValueError):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code


class Tree:
    root = None

    def __init__(self, up=None):
        self.up = up
        self.below = []
        if up:
            up.below.append(self)


Tree.root = Tree()


@dataclasses.dataclass(frozen=True)
class Key:
    name: str


def test_inheritance_super_private_names_and_properties():
    arrived = there(Deep(3))
    assert arrived.norm() == Deep(3).norm() and arrived.hidden == "hidden" and arrived.tags == ["deep"]
    assert arrived.fixed() == K and type(arrived.make(2)) is type(arrived) and arrived.cached == [1, 3]
    assert type(arrived).__mro__[1].__name__ == "Point" and repr(arrived) == repr(Deep(3))
    assert type(arrived) is not Deep and type(arrived).__module__ == Deep.__module__
    assert there(Deep.Inner)().who() == "Deep.Inner" == there(Deep).Inner().who()
    with arrived:
        raise ValueError


def test_dataclasses_are_such_there():
    arrived = there(Point(1, 3))
    assert arrived.guard.acquire(blocking=False)
    assert arrived == type(arrived)(1, 3) and repr(arrived) == repr(Point(1, 3))
    assert [field.name for field in dataclasses.fields(arrived)] == ["x", "y", "tags"]
    assert there({Key("a"): 1, Key("b"): [Key("a")]})


def test_class_attributes_keep_the_values_that_they_have(monkeypatch):
    monkeypatch.setitem(Deep.table, "a", [7])
    monkeypatch.setattr(Point, "scale", 5)
    monkeypatch.setattr(Deep, "extra", ["new"], raising=False)
    monkeypatch.setattr(Deep, "fixed", staticmethod(lambda: "changed"))
    monkeypatch.setattr(Square, "area", lambda self: -1)
    arrived = there(Deep(3))
    assert arrived.cached == [7, 3] and arrived.extra == ["new"] and arrived.norm() == Deep(3).norm()
    assert there(Square(2)).area() == -1 and arrived.fixed() == "changed"


def test_kinds_of_classes():
    square = there(Square(3))
    assert square.area() == 9 and not hasattr(square, "__dict__")
    with pytest.raises(TypeError, match="abstract"):
        there(Shape)()
    red, blue, both = there((Colour.RED, Colour.BLUE, Flags.A | Flags.B))
    assert red.nice() and not blue.nice() and type(red) is type(blue) and int(both) == 3 and both & type(both).A
    assert there(Tagged).tag == "t" and type(there(Tagged)).__name__ == "Meta"
    assert there(First).known[-1] == "First"
    assert there(Box[int](4)).item == 4
    row = there(Row(2))
    assert (
        row.both() == "bb" and row == (2, "b") and there(Pair(1)) == (1, 2) and there(Pair)._fields == ("left", "right")
    )
    assert there(Holder()).value == 8
    made = enum.Enum("Made", "A B")
    assert there(made.B).name == "B" and there(made)(1).name == "A"


def test_cycles_between_classes_and_objects():
    child = Tree(Tree.root)
    arrived = there(child)
    assert (
        arrived.up.below[-1] is arrived
        and type(arrived).root is arrived.up
        and isinstance(type(arrived).root, type(arrived))
    )
    del Tree.root.below[:]


def test_a_class_in_a_function_keeps_what_it_reads_there():
    base, factor = 10, 2

    def tag(cls):
        cls.tagged = True
        return cls

    @tag
    class Local(Point):
        start = [base]

        def scaled(self):
            return self.norm() * factor + len(type(self).start)

    arrived = there(Local(3, 4))
    assert arrived.scaled() == 11 and arrived.tagged and arrived.start == [10]
    assert type(arrived).__qualname__ == Local.__qualname__ and arrived.scaled.__qualname__ == Local.scaled.__qualname__


def test_methods_travel_with_their_objects():
    point = Point(3, 4)
    norm, same = there((point.norm, point))
    assert norm() == 5 and norm.__self__ is same
    assert there(Point.norm)(point) == 5 and there(Deep.make)(1).x == 1


def test_exceptions_travel():
    arrived = there(Failure(3))
    assert arrived.code == 3 and str(arrived) == "code 3" and isinstance(arrived, ValueError)


class Stateful:
    def __init__(self):
        self.lock = threading.Lock()
        self.data = {"n": 1}

    def __getstate__(self):
        return {"data": self.data}

    def __setstate__(self, state):
        self.data = state["data"]
        self.lock = threading.Lock()


class Reduced:
    def __init__(self, n):
        self.n = n

    def __reduce__(self):
        return Reduced, (self.n,), {"extra": self.n * 2}


class Grown(dict):
    label = "g"


class Listed(list):
    pass


def test_objects_say_themselves_how_they_are_copied():
    assert there(Stateful()).data == {"n": 1} and there(Stateful()).lock.acquire(blocking=False)
    assert (there(Reduced(2)).n, there(Reduced(2)).extra) == (2, 4)
    grown = Grown(a=1)
    grown.own = grown
    arrived = there(grown)
    assert arrived == {"a": 1} and arrived.own is arrived and arrived.label == "g"
    assert list(there(Listed([1, 2]))) == [1, 2]


def test_the_same_class_is_one_class_there():
    a, b, cls = there([Point(1), Point(2), Point])
    assert type(a) is type(b) is cls


# -- modules ---------------------------------------------------------------------------------------------------------

PACKAGE = {
    "tools_w/__init__.py": "from .maths import double\nVERSION = 'v1'\n",
    "tools_w/maths.py": """
        import threading
        from . import facts
        lock = threading.Lock()
        state = {'calls': 0}
        def double(x):
            state['calls'] += 1
            return x * facts.TWO
        def locked(x):
            with lock:
                return x
        def around(x):
            return locked(x)
        def lazy(x):
            from .facts import THREE
            import tools_w.more as more
            return x * THREE + more.one()
        """,
    "tools_w/facts.py": "TWO = 2\nTHREE = 3\n",
    "tools_w/more.py": "def one():\n    return 1\nfile = open(__file__)\n",
    "single_w.py": """
        import tools_w
        import tools_w.maths as m
        def six(x):
            return m.double(x) + tools_w.maths.double(x) * 2
        """,
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Modules of the user's; `leave` makes them unknown, as they are at the other end."""
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)

    def leave():
        more = sys.modules.get("tools_w.more")
        if more is not None:
            more.file.close()
        sys.path.remove(str(tmp_path))
        for name in [name for name in sys.modules if name.split(".")[0] in ("tools_w", "single_w")]:
            del sys.modules[name]
        importlib.invalidate_caches()

    yield leave
    if str(tmp_path) in sys.path:
        leave()


def test_what_is_used_of_a_module_travels(package):
    import single_w

    def use(x):
        return single_w.six(x)

    data = send(use)
    package()
    assert receive(data)(1) == 6
    assert b"locked" not in data and b"VERSION" not in data and "single_w" not in sys.modules


def test_imports_inside_functions_find_what_travelled(package):
    from tools_w.maths import lazy

    data = send(lazy)
    package()
    with pytest.raises(ImportError):
        importlib.import_module("tools_w")
    assert receive(data)(2) == 7


def test_a_module_that_is_used_whole_travels_whole_but_for_what_cannot(package):
    import tools_w.maths

    def use(name, x):
        return getattr(tools_w.maths, name)(x)

    def look():
        return vars(tools_w)["VERSION"]

    data = send([use, look])
    package()
    use, look = receive(data)
    assert use("double", 4) == 8 and look() == "v1"
    with pytest.raises(AttributeError, match="`lock`: a lock"):
        use("lock", 1)
    for name in ("locked", "around"):
        with pytest.raises(AttributeError, match="`lock`: a lock"):
            use(name, 1)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        use("missing", 1)


def test_what_could_not_travel_once_cannot_the_second_time(package):
    import tools_w.maths

    def use(name):
        return getattr(tools_w.maths, name)(1), tools_w.maths.around(1)

    def held():
        return threading.Lock() and inner()

    def inner():
        return lock

    lock = threading.Lock()
    with pytest.raises(WireError, match="`around` -> `locked` -> `lock`"):
        send(use)
    encoder = Encoder()
    for _ in range(2):
        with pytest.raises(WireError, match="closure `inner` -> closure `lock`: a lock"):
            encoder.value(held)


def test_the_state_of_a_module_travels(package):
    import tools_w.maths as maths

    maths.double(1)
    maths.facts.TWO = 20

    def use():
        return maths.double(1), maths.state["calls"]

    data = send(use)
    package()
    assert receive(data)() == (20, 2)


def test_what_cannot_travel_is_named_with_the_way_through_modules(package):
    import tools_w.maths as maths

    def use():
        return maths.locked(1)

    with pytest.raises(WireError, match="`it` -> closure `maths` -> `locked` -> `lock`: a lock"):
        send(use)


def test_installed_modules_go_by_name_unless_they_are_registered(monkeypatch):
    monkeypatch.setattr(origin, "_registered", set())
    assert there(textwrap.dedent) is textwrap.dedent and there(json) is json
    assert there(collections.OrderedDict) is collections.OrderedDict
    origin.register("textwrap")
    arrived = there(textwrap.indent)
    assert arrived is not textwrap.indent and arrived("a", "- ") == "- a"


def test_what_is_not_installed_there_is_named_with_its_version(package, tmp_path):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "rare_w.py").write_text("__version__ = '1.2'\ndef f(): pass\n")
    sys.path.insert(0, str(tmp_path / "site-packages"))
    import rare_w

    data = send(rare_w.f)
    sys.path.remove(str(tmp_path / "site-packages"))
    del sys.modules["rare_w"]
    with pytest.raises(WireError, match=r"`f` of `rare_w` is needed.* has rare_w 1.2: install .*register\('rare_w'\)"):
        receive(data)


# -- what cannot travel ----------------------------------------------------------------------------------------------


def handed_in():
    yield 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: open(os.devnull), "an open file .*open it in the block"),
        (threading.Lock, "a lock .*make one in the block"),
        (threading.Event, "a lock"),
        (handed_in, "a generator .*list"),
        (socket.socket, "a socket"),
        (lambda: sys._getframe(), "running program"),
        (lambda: even.__code__, "compiled code .*send the function"),
        (lambda: weakref.ref(even), "weak reference"),
        (lambda: threading.local(), "cannot be copied .*make it in the block"),
        (lambda: types.FunctionType(compile("1", "<x>", "eval"), {}), "kept nowhere.*write it in a file"),
        (lambda: eval("lambda: 1"), "kept nowhere"),
        (lambda: type("Made", (), {"f": even}), "class Made is kept nowhere.*`class` statement"),
        (lambda: functools.reduce(lambda inner, _: [inner], range(100_000), []), "nested too deeply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_belongs_to_this_process_is_refused_with_what_to_do(make, message):
    thing = make()
    with pytest.raises(WireError, match=message) as error:
        send({"a": thing})
    assert str(error.value).startswith("`it` -> ['a']") and len(str(error.value)) < 600
    if isinstance(thing, (io.IOBase, socket.socket)):
        thing.close()
    while isinstance(thing, list) and thing:  # or it would be freed by a recursion too deep for some Pythons
        thing = thing.pop()


def test_the_only_one_of_its_kind_goes_by_name():
    from os import environ

    def home():
        return environ.get("HOME")

    assert b"PATH" not in send(home) and there(environ) is os.environ
    assert there([dataclasses.MISSING])[0] is dataclasses.MISSING and there(string.printable) == string.printable


def test_text_for_a_newer_python_is_named_as_such():
    encoder = Encoder()
    data = encoder.pack("request", encoder.value(even), {"python": "9.9.9"})
    newer = data.replace(b"return n == 0 or odd(n - 1)", b"return n === 0 or odd(n- 1)")
    newer = newer[:12] + struct.pack("<I", zlib.crc32(newer[24:])) + newer[16:]
    with pytest.raises(WireError, match=f"for Python 9.9.9 is no Python {platform.python_version()}"):
        receive(newer)


def test_characters_that_end_no_line_of_python_are_kept(tmp_path):
    path, space = tmp_path / "lines_w.py", {"__name__": "lines_w"}
    path.write_text(
        "X = 'a\x0cb\u2028c'\n\x0c\ndef f():\n    'a\x0cb'\n    return 'd\u2028e', 1 / 0\n", encoding="utf-8"
    )
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
    with pytest.raises(ZeroDivisionError) as raised:
        there(space["f"])()
    assert traceback.extract_tb(raised.value.__traceback__)[-1].lineno == 5


def test_a_file_that_changed_since_is_not_sent(tmp_path):
    path = tmp_path / "changing_w.py"
    path.write_text("def f():\n    return 1\n")
    space = {"__name__": "changing_w"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    path.write_text("def g():\n    return 22\n")
    linecache.checkcache(str(path))
    with pytest.raises(WireError, match="is not what is running"):
        send(space["f"])


# -- the other Pythons -----------------------------------------------------------------------------------------------


def pythons():
    """Other interpreters on this machine, from 3.10 on."""
    found = {}
    places = [Path(path) for minor in range(10, 15) if (path := shutil.which(f"python3.{minor}"))]
    for path in [*places, *Path.home().glob(".pyenv/versions/3.*/bin/python")]:
        try:
            said = subprocess.run(
                [path, "-I", "-S", "-c", "import sys; print(*sys.version_info[:2])"],
                capture_output=True,
                text=True,
                timeout=30,
            )
        except OSError:
            continue
        major, _, minor = said.stdout.strip().partition(" ")
        if said.returncode == 0 and (int(major), int(minor)) >= (3, 10):
            found.setdefault(f"{major}.{minor}", path)
    found.pop(f"{sys.version_info[0]}.{sys.version_info[1]}", None)
    return found


def compute(deep, red, fs, counter, row):
    add, read = counter
    add(3)
    with deep:
        raise ValueError
    return [
        deep.norm(),
        deep.hidden,
        deep.cached,
        red.nice(),
        [f(2) for f in fs],
        read(),
        row.both(),
        even(7),
        *squares(3),
    ]


def counter(start):
    def add(n):
        nonlocal start
        start += n

    return add, lambda: start


def test_the_same_bytes_are_read_by_other_pythons(tmp_path):
    others = pythons()
    if not others:
        pytest.skip("there is no other Python here")
    given = (Deep(3), Colour.RED, [lambda x: x + 1, lambda x: [y * K for y in range(x)]], counter(4), Row(2))  # fmt: skip
    (tmp_path / "data").write_bytes(send((compute, given)))
    script = tmp_path / "script.py"
    import inspect

    script.write_text(
        f"import sys, types\n{inspect.getsource(stub)}\nstub({ROOT!r})\n"
        "from nnsight._core.wire import Decoder\n"
        "decoder = Decoder(open(sys.argv[1], 'rb').read(), 'request', trusted=True)\n"
        "compute, given = decoder.read()\nprint(compute(*given))\n"
    )
    want = str(compute(*there(given)))
    for version, path in others.items():
        done = subprocess.run([path, "-I", script, tmp_path / "data"], capture_output=True, text=True, timeout=60)
        assert (version, done.stdout.strip(), done.stderr) == (version, want, "")


def test_nothing_of_a_request_is_kept_when_it_is_over():
    function = there(even)
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None


def test_the_bytes_are_no_pickle():
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(send([even, Point(1)]))


def test_a_class_goes_on_from_where_its_module_is_not_with_its_module_and_what_its_text_reads(tmp_path, monkeypatch):
    (tmp_path / "wire_far.py").write_text(
        "LIMIT = 3\n"
        "class TooMany(KeyError):\n"
        "    most = [LIMIT, LIMIT + 1]\n"
        "    least: int = len(most) - LIMIT\n"
        "def make():\n"
        "    class Inner(TooMany):\n"
        "        pass\n"
        "    return Inner\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import wire_far

    for cls in (wire_far.TooMany, wire_far.make()):
        monkeypatch.setitem(sys.modules, "wire_far", wire_far)
        data = send(cls)
        monkeypatch.delitem(sys.modules, "wire_far")
        for _ in range(2):
            found = receive(data)
            assert found is not cls
            assert (found.__module__, found.__qualname__) == (cls.__module__, cls.__qualname__)
            assert (found.most, found.least, found.__mro__[-4:]) == ([3, 4], -1, KeyError.__mro__[-4:])
            data = send(found)
    kept = weakref.ref(found)
    del found
    gc.collect()
    assert kept() is None
