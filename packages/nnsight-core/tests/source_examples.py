"""Functions that use the language in every way that a rewriting might upset. `test_source_rewrite.py` runs them.

They are kept out of the test module because pytest compiles that one from changed source. Odd on purpose: no linter has
anything to say here.
"""
# ruff: noqa: B008, C408, F821, PIE804, UP008, UP018

from __future__ import annotations

import asyncio
import contextlib
import functools

SCALE = 2


class Base:
    scale = 10

    def run(self, x):
        return x + self.scale

    @classmethod
    def make(cls, x):
        return cls.__name__, abs(x)

    @property
    def size(self):
        return len("base")


class Child(Base):
    def run(self, x):
        return super().run(abs(x)) + self.__hidden(x)

    def __hidden(self, x):
        __local = max(x, 0)
        return float(__local) + type(self).__shift(1)

    @staticmethod
    def __shift(x):
        return min(x, 5)

    def own_class(self):
        return __class__.__name__.lower(), super(Child, self).run(1)

    def inner_class(self, x):
        outer = str(x)

        class Inner(Base, *[object for _ in range(0)]):
            label = outer.upper()
            names = sorted(name for name in locals() if not name.startswith("__"))

            def run(self, y):
                return super().run(y), self.label, outer

        return Inner().run(x), Inner.names

    def inner_super(self, x):
        def later():
            return super(Child, self).run(x)

        return [later() for _ in range(2)], (lambda: self.run(x))()

    @classmethod
    def make(cls, x):
        return super().make(x)

    @property
    def size(self):
        return super().size + len("child")


def counter(start):
    count = start

    def step(by=1, *more, sign=+1, **named):
        nonlocal count
        count += sum((by, *more)) * sign + len(named)
        return count

    return step


def comprehensions(rows):
    total = [sum(y for y in row if bool(y)) for row in list(rows)]
    squares = {pow(x, 2): str(x) for x in sorted({abs(t) for t in total})}
    return total, squares, {min(k, 3) for k in squares}, [[len(str(a * b)) for a in range(2)] for b in range(2)]


def generator(n):
    try:
        for i in range(n):
            got = yield abs(i)
            if got is not None:
                yield from map(str, (got, (yield len(str(got)))))
    finally:
        yield print("end", end="") or "closed"


def walrus(x):
    if (y := abs(x)) > 2 and any((last := z) > 1 for z in range(y)):
        return y, last, f"{(w := str(y))!r:>5} {w.rjust(4, '0')} {'a'.join([w, w])}"
    return (lambda a, *b, c=len("xyz"): (a, sum(b), c))(y, *range(x))


def unpacked(*args, **kwargs):
    def show(*a, **k):
        return a, sorted(k.items())

    return show(0, *args, *map(abs, args), a=1, **kwargs, **dict(z=max(args, default=0)))


def managers(x):
    events = []

    @contextlib.contextmanager
    def noted(name):
        events.append(f"in {name}")
        try:
            yield name.upper()
        except ZeroDivisionError as error:
            events.append(str(error))
        finally:
            events.append(f"out {name}")

    with noted("a") as a, noted("b") as b:
        events.append(a + b)
        divmod(1, x)
    return events


def conditional(x):
    return abs(x) if bool(x) else str(x) or repr(x), (not bool(x)) and int(x), divmod(7, 2)[bool(x)]


def targets(x):
    box, other = dict(), [0, 0, 0]
    box[str(x)] = other[abs(x) % 3] = len(other)
    other[int(x) % 3] += sum(other)
    box.setdefault("list", []).append(x)
    first, *rest = sorted(other)
    annotated: undefined_name(x) = str(first)
    for box["item"] in range(2):
        continue
    del box[str(x)]
    return box, other, first, rest, annotated


def matched(x):
    match divmod(x, 3):
        case (0, r) if bool(r):
            return str(r)
        case (int(q), 0):
            return abs(q)
        case _:
            return repr(x)


def own_variables(x):
    before = sorted(locals())
    doubled = [abs(v) for v in range(x)]
    return (
        before,
        sorted(vars()),
        dir(),
        locals()["doubled"],
        eval("x + 1"),
        sorted(vars(Base))[:0],
        "SCALE" in globals(),
    )


def rescaled(x):
    global SCALE
    SCALE = max(SCALE, x)
    return SCALE * abs(x)


def recursive(n):
    return 1 if n <= 0 else n * recursive(n - 1)


def shadowed(x, len=abs):
    eval = str
    return len(x), eval(x)


def decorated_inside(x):
    def twice(function=None, *, by=int(2)):
        if function is None:
            return functools.partial(twice, by=by)
        return functools.wraps(function)(lambda *a: function(*a) * by)

    @twice(by=abs(-3))
    def inner(y: undefined_name(1) = len("abc")) -> undefined_name(2):
        """An inner one."""
        return y + 1

    return inner(x), inner(), inner.__doc__, inner.__qualname__


async def awaited(x):
    async def double(y):
        await asyncio.sleep(0)
        return y * 2

    async def numbers(n):
        for i in range(n):
            yield await double(i)

    pairs = await asyncio.gather(double(x), double(abs(x)))
    return pairs, [await double(n) async for n in numbers(x)], {n async for n in numbers(int(x))}


# fmt: off
def failing(kind):
    text = "ab"
    if kind == "argument":
        return len(
            text.replace(
                "a",
                str(undefined_name),
            )
        )
    if kind == "chain":
        return (
            text.upper()
            .lower()
            .index(
                "z",
            )
        )
    if kind == "chain with keywords":
        return (
            text.upper()
            .encode(encoding="ascii")
            .decode(
                encoding="no-such-codec",
            )
        )
    if kind == "chain with stars":
        return (
            text.upper()
            .index(
                *["z"],
            )
        )
    if kind == "attribute":
        return text.upper().no_such_method(1)
    if kind == "nested":
        return [
            int(part)
            for part in text
            if part
        ]
    if kind == "raise":
        raise ValueError(
            text.upper(),
        )
    return list(text)
# fmt: on


def ordered(note):
    """Every part says when it is evaluated."""
    note("with").pair = note("value")
    return note("f")(note("a"), *[note("b")], k=note("c"), **{"d": note("d")}).g[note("key")](
        note("e") if note("test") else note("f"), lambda default=note("default"): note("late")
    )
