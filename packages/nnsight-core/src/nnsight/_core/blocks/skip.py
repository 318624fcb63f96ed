"""Making the interpreter skip the body of a `with`.

The one idea: an exception raised at the first opcode after the context is entered, where the value for `as` is stored
or dropped, is already inside the `with`, so `__exit__` receives it and swallows it; nothing of the body has run.
Since 3.12 `sys.monitoring` raises it, beside whatever else watches; before that it is a trace function in place of
the one that is there, which is told everything meanwhile and put back when the exception arrives.

relies on: an exception from a monitoring callback for INSTRUCTION, or from a trace function at an "opcode" event, is
raised in the frame at that instruction; CPython 3.10 to 3.14. A trace function that raises is taken off by the
interpreter.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import deque
from collections.abc import Callable
from sys import gettrace
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

from ..errors import SourceError
from .heads import after_enter


class Skipped(BaseException):
    """Raised in the caller's frame to leave the body of a `with`; `skipped` recognizes it."""

    #: Gives the frame the tracing back that it had; None where it had none.
    put_back: Callable[[], None] | None = None

    def __str__(self) -> str:
        return "the body of this `with` was read, and runs later"


def _putting_back(put_back: Callable[[], None]) -> Skipped:
    error = Skipped()
    error.put_back = put_back
    return error


def skip(frame: FrameType, entered: int | None = None) -> None:
    """Make the `with` that `frame` is entering skip its body: its `__exit__` gets `Skipped` at once.

    Call it last in `__enter__`, and `skipped` first in `__exit__`. SourceError if that cannot be done just now.
    `entered` is where the frame goes on once it has entered, for those who know (`Block.entered`).
    """
    at = after_enter(frame.f_code, frame.f_lasti) if entered is None else entered
    if at is None:
        raise SourceError(
            f"{frame.f_code.co_filename}, line {frame.f_lineno}: no `with` statement is being entered here"
        )
    if _monitoring is not None and _watch(frame, at):
        return
    if gettrace() is None and frame.f_trace is None and not frame.f_trace_opcodes:
        _trace_alone(frame, at)
    else:
        _Trace(frame, at).start()


def skipped(error: BaseException | None) -> bool:
    """Tell whether what `__exit__` received is the skipping of its body, and if so put all tracing back as it was."""
    if not isinstance(error, Skipped):
        return False
    put_back = error.put_back
    if put_back is not None:
        # The exception keeps its traceback, and so every frame in it, for as long as anybody keeps the exception.
        error.put_back = None
        put_back()
    return True


def _suspended() -> SourceError:
    return SourceError(
        "this block cannot be skipped while a debugger's prompt, or another trace function, is running the code around "
        "it: tracing is off there. Let the program continue to this line instead"
    )


# 3.12 and later: sys.monitoring

_monitoring: Any = getattr(sys, "monitoring", None)
_tool: int | None = None
_armed: dict[FrameType, int] = {}
_arming = threading.RLock()  # threads may be about to skip blocks of the same code, and a signal handler too
_seen: set[int] = set()  # threads in which the probe's event arrived


def _take_tool() -> int | None:
    global _tool
    if _tool is None and _monitoring is not None:
        events = _monitoring.events
        for number in (4, 3, 5, 2, 1, 0):  # those without a customary owner first
            if _monitoring.get_tool(number) is None:
                _monitoring.use_tool_id(number, "nnsight blocks")
                _monitoring.register_callback(number, events.INSTRUCTION, _on_instruction)
                _monitoring.register_callback(number, events.PY_START, _on_probe)
                _monitoring.set_local_events(number, _probe.__code__, events.PY_START)
                _tool = number
                break
    return _tool


def _on_probe(code: CodeType, at: int) -> None:
    _seen.add(threading.get_ident())


def _watch(frame: FrameType, at: int) -> bool:
    # Where two ask for INSTRUCTION, CPython 3.12 and 3.13 forget one when the other leaves: go with the tracer then.
    tool = _take_tool() if not frame.f_trace_opcodes else None
    if tool is None:
        return False
    if not _events_arrive(tool):
        raise _suspended()
    with _arming:
        _armed[frame] = at
        _monitoring.set_local_events(tool, frame.f_code, _monitoring.events.INSTRUCTION)
    return True


def _on_instruction(code: CodeType, at: int) -> None:
    frame = sys._getframe(1)
    if frame not in _armed:
        return
    with _arming:
        expected = _armed.pop(frame)
        # Left on, it would cost nothing the next time, but be lost whenever somebody else traces opcodes meanwhile.
        if _tool is not None and not any(other.f_code is code for other in list(_armed)):
            _monitoring.set_local_events(_tool, code, 0)
    if at == expected:  # or __enter__ failed after all
        local = frame.f_trace
        if local is not None:
            frame.f_trace = None  # a debugger that steps over the `with` would stop to show the exception
            raise _putting_back(functools.partial(setattr, frame, "f_trace", local))
        raise Skipped


def _events_arrive(tool: int) -> bool:
    """Tell whether the interpreter reports events: not while it runs a trace function or another tool's callback."""
    others = (number for number in range(6) if number != tool)
    if sys.gettrace() is None and sys.getprofile() is None and not any(map(_monitoring.get_tool, others)):
        return True
    thread = threading.get_ident()
    _seen.discard(thread)
    _probe()
    return thread in _seen


def _probe() -> None:
    pass


# Before 3.12, and where no tool number is free: a trace function


def _trace_alone(frame: FrameType, at: int) -> None:
    """Where nobody else traces: what `_Trace` does, with nothing to remember or to tell."""
    thread = threading.get_ident()
    _seen.discard(thread)
    frame.f_trace = _raiser(at)
    frame.f_trace_opcodes = True  # before settrace: 3.12 looks at it then
    sys.settrace(_on_any_call)
    _probe()
    if thread not in _seen:
        frame.f_trace = None
        frame.f_trace_opcodes = False
        sys.settrace(None)
        raise _suspended()


@functools.cache
def _raiser(at: int) -> Callable[[FrameType, str, Any], None]:
    """Return a trace function for a frame, that raises `Skipped` at `at`."""

    def on_event(frame: FrameType, event: str, arg: Any) -> None:
        if event != "opcode":
            return
        frame.f_trace_opcodes = False
        if frame.f_lasti == at:
            raise Skipped  # which takes the trace functions off
        frame.f_trace = None  # __enter__ failed after all
        sys.settrace(None)

    return on_event


def _on_any_call(frame: FrameType, event: str, arg: Any) -> None:
    if frame.f_code is _probe.__code__:
        _seen.add(threading.get_ident())


class _Trace:
    """The trace functions that wait for a frame to enter its context, and those that were there before."""

    def __init__(self, frame: FrameType, at: int) -> None:
        self.frame = frame
        self.at = at
        self.live = False
        self.thread: Any = sys.gettrace()
        self.local: Any = frame.f_trace
        self.opcodes = frame.f_trace_opcodes

    def start(self) -> None:
        self.frame.f_trace = self._on_event
        self.frame.f_trace_opcodes = True  # before settrace: 3.12 looks at it then
        sys.settrace(self._on_call)
        _probe()
        if not self.live:
            self._put_back()
            raise _suspended()

    def stop(self) -> None:
        """Put back the trace functions, and tell the thread's of the functions that were called meanwhile."""
        self._put_back_local()
        if self.thread is None:
            return
        # Tracers count calls and returns, and they would see the functions between here and the `with` return uncalled.
        opened = [sys._getframe(0)]
        while opened[-1].f_back is not self.frame and opened[-1].f_back is not None:
            opened.append(opened[-1].f_back)
        opened.reverse()
        if _is_python(self.thread):
            for frame in opened:
                local = self.thread(frame, "call", None)
                frame.f_trace = (local(frame, "line", None) or local) if local is not None else None
        else:
            # One call from C for all of them: coverage's tracer installs itself at its first "call", sees the lines of
            # this function from then on, and would take them for lines of the outermost of these frames.
            told = [(frame, event, None) for frame in opened for event in ("call", "line")]
            deque(map(self.thread, *zip(*told)), maxlen=0)
            del told
        opened.clear()  # this frame is among them
        if sys.gettrace() is None:
            sys.settrace(self.thread)

    def _put_back(self) -> None:
        self._put_back_local()
        sys.settrace(self.thread)

    def _put_back_local(self) -> None:
        self.frame.f_trace = self.local
        self.frame.f_trace_opcodes = self.opcodes

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code is _probe.__code__:
            self.live = True
            return None
        if self.thread is None:
            return None
        local = self.thread(frame, event, arg)
        sys.settrace(self._on_call)  # the other may have installed itself
        return local

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event != "opcode" or self.opcodes:
            self._tell(frame, event, arg)
        if event != "opcode":
            return self._on_event
        if frame.f_lasti == self.at:
            raise _putting_back(self.stop)
        self._put_back()  # __enter__ failed after all
        return self.local

    def _tell(self, frame: FrameType, event: str, arg: Any) -> None:
        if self.local is not None:
            self.local = self.local(frame, event, arg) or self.local


def _is_python(tracer: Any) -> bool:
    if isinstance(tracer, (FunctionType, MethodType)):
        return True
    return isinstance(type(tracer).__call__, FunctionType)
