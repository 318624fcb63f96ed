"""Errors: what is raised where, what the messages say, and that a model is as it was afterwards."""

from __future__ import annotations

import traceback
import warnings

import pytest
import torch
from hooked import Generator, Stack, untouched

import nnsight
from nnsight import CONFIG, NNsight
from nnsight._core import errors


@pytest.fixture
def net():
    net = Stack()
    net.unused = torch.nn.Linear(4, 4)
    return net


@pytest.fixture
def model(net):
    return NNsight(net)


@pytest.fixture
def debugging():
    CONFIG.APP.DEBUG = True
    yield
    CONFIG.APP.DEBUG = False


X = torch.rand(2, 4, generator=torch.Generator().manual_seed(5))

#: What each error of ours is besides, as `errors.py` draws it.
BUILTINS = {
    "MissedProviderError": RuntimeError,
    "OutOfOrderError": RuntimeError,
    "NoTraceError": RuntimeError,
    "SaveOutsideTraceError": ValueError,
    "NoInputError": ValueError,
    "InvokeError": ValueError,
    "RowsError": ValueError,
    "CrossInvokeError": NameError,
    "BarrierError": RuntimeError,
    "ElsewhereError": RuntimeError,
    "RanksError": RuntimeError,
    "BackwardError": RuntimeError,
    "LoadError": RuntimeError,
    "ChangedValueError": RuntimeError,
    "ScanError": RuntimeError,
    "SourceError": RuntimeError,
    "AbsentNameError": AttributeError,
    "RenameError": ValueError,
    "WireError": ValueError,
    "RemoteError": RuntimeError,
    "ConfigError": ValueError,
    "PluginError": RuntimeError,
    "MissingPluginError": ImportError,
}


# -- the tree --------------------------------------------------------------------------------------------------------


def defined():
    return {
        name: thing
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, Exception) and thing.__module__ == errors.__name__
    }


def test_every_error_is_ours_and_a_builtin():
    found = {name: cls for name, cls in defined().items() if not issubclass(cls, Warning)}
    assert set(found) == {"NNsightError", *BUILTINS}
    for name, builtin in BUILTINS.items():
        assert issubclass(found[name], errors.NNsightError) and issubclass(found[name], builtin)


def test_every_error_is_a_public_name_and_drawn():
    for name, cls in defined().items():
        assert getattr(nnsight, name) is cls
        assert cls.__doc__
        if not issubclass(cls, Warning):
            assert name in (errors.__doc__ or "")


def test_warnings_are_user_warnings():
    assert issubclass(errors.NNsightWarning, UserWarning) and issubclass(errors.UnmetSiteWarning, errors.NNsightWarning)


# -- each where it is documented, with what its message has to say -----------------------------------------------------


def late_question(model):
    with model.trace(X):
        model.layers[2].output
        model.layers[0].output


def input_after_output(model):
    with model.trace(X):
        model.layers[1].output
        model.layers[1].input


def after_the_result(model):
    with model.trace(X) as tracer:
        tracer.result
        model.layers[1].output


def never_reached(model):
    with model.trace(X):
        model.unused.output


def inside_what_was_skipped():
    model = NNsight(torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.nn.Linear(4, 4)))
    with model.trace(X):
        model[0].skip(X)
        model[0][0].output


def outside_any_trace(model):
    model.layers[1].output


def written_outside_any_trace(model):
    model.layers[1].output = X


def skipped_outside_any_trace(model):
    model.layers[1].skip(X)


def of_another_model(model):
    with NNsight(Stack()).trace(X):
        model.layers[1].output


def of_the_whole_in_a_part(model):
    with model.layers[1].trace(X):
        model.layers[2].output


def saved_outside(model):
    nnsight.save(X)


def saved_outside_as_a_method(model):
    X.save()


def entered_twice(model):
    tracer = model.trace(X)
    with tracer:
        pass
    with tracer:
        pass


def result_outside(model):
    with model.trace(X) as tracer:
        pass
    tracer.result


def stopped_outside(model):
    with model.trace(X) as tracer:
        pass
    tracer.stop()


def in_an_invoke(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.output
        with tracer.invoke(X):
            model.layers[2].output
            model.layers[0].output


def in_a_step():
    model = NNsight(Generator())
    with model.generate(X, 3) as tracer:
        for _ in tracer.iter[1]:
            model.second.output
            model.first.output


def past_the_last_step():
    model = NNsight(Generator())
    with model.generate(X, 3) as tracer:
        tracer.next(4)
        model.first.output


def past_the_last_visit(model):
    with model.trace(X) as tracer:
        tracer.next()
        model.layers[0].output


CASES = [
    (
        late_question,
        errors.OutOfOrderError,
        ["`model.layers.0.output`", "`model.layers.2.output`", "earlier in the block"],
    ),
    (input_after_output, errors.OutOfOrderError, ["`model.layers.1.input`", "`model.layers.1.output`"]),
    (after_the_result, errors.OutOfOrderError, ["`model.layers.1.output`"]),
    (never_reached, errors.MissedProviderError, ["`model.unused.output`", "not called"]),
    (outside_any_trace, errors.NoTraceError, ["`model.layers.1`", "with model.trace(input)"]),
    (written_outside_any_trace, errors.NoTraceError, ["`model.layers.1`"]),
    (skipped_outside_any_trace, errors.NoTraceError, ["`model.layers.1`"]),
    (of_another_model, errors.NoTraceError, ["`model.layers.1`", "does not belong"]),
    (of_the_whole_in_a_part, errors.NoTraceError, ["`model.layers.2`", "does not belong"]),
    (saved_outside, errors.SaveOutsideTraceError, ["outside any trace", "with model.trace("]),
    (saved_outside_as_a_method, errors.SaveOutsideTraceError, ["outside any trace"]),
    (entered_twice, errors.NoTraceError, ["once"]),
    (result_outside, errors.NoTraceError, ["inside its block"]),
    (stopped_outside, errors.NoTraceError, ["inside its block"]),
    (in_an_invoke, errors.OutOfOrderError, ["invoke 1", "line ", "`model.layers.0.output`", "`model.layers.2.output`"]),
    (past_the_last_visit, errors.MissedProviderError, ["`model.layers.0.output`", "1 time"]),
]


@pytest.mark.parametrize(("act", "kind", "said"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_raised_and_said(net, model, act, kind, said):
    with pytest.raises(kind) as caught:
        act(model)
    assert type(caught.value) is kind
    message = str(caught.value)
    for part in said:
        assert part in message, message
    assert untouched(net)
    with model.trace(X):
        out = model.output
    assert torch.equal(out, net(X))


@pytest.mark.parametrize(
    ("act", "kind", "said"),
    [
        (inside_what_was_skipped, errors.MissedProviderError, ["`model.0.0.output`", "skipped"]),
        (in_a_step, errors.OutOfOrderError, ["`model.first.output`", "step 1"]),
        (past_the_last_step, errors.MissedProviderError, ["`model.first.output`", "step 4", "3 steps"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_raised_and_said_about_other_models(act, kind, said):
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    for part in said:
        assert part in str(caught.value), str(caught.value)


def test_out_of_order_is_raised_at_its_line(net, model):
    reached = []
    with model.trace(X):
        model.layers[2].output
        with pytest.raises(errors.OutOfOrderError):
            model.layers[0].output
        reached.append("on")
        out = model.output
    assert reached == ["on"]
    assert torch.equal(out, net(X))


def test_a_missed_site_is_raised_at_the_line_that_waited(net, model):
    with model.trace(X):
        try:
            model.unused.output
        except errors.MissedProviderError as error:
            line = error.__traceback__.tb_lineno
        after = "ran"
    assert after == "ran"
    assert "model.unused.output" in open(__file__).read().splitlines()[line - 1]
    assert untouched(net)


# -- the user's own errors -------------------------------------------------------------------------------------------


class MineError(Exception):
    def __init__(self, code, *, detail):
        super().__init__(code)
        self.detail = detail


@pytest.mark.parametrize(
    "kind", [MineError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, AssertionError]
)
@pytest.mark.parametrize("asked", [False, True])
def test_the_users_exceptions_keep_type_and_identity(net, model, kind, asked):
    mine = kind(7, detail="kept") if kind is MineError else kind("mine")
    with pytest.raises(kind) as caught:
        with model.trace(X):
            if asked:
                model.layers[1].output
            raise mine
    assert caught.value is mine
    if kind is MineError:
        assert mine.detail == "kept" and mine.args == (7,)
    assert untouched(net)
    with model.trace(X):
        out = model.output
    assert torch.equal(out, net(X))


@pytest.mark.parametrize("kind", [MineError, KeyboardInterrupt, SystemExit])
def test_exceptions_of_invokes_keep_type_and_identity(net, model, kind):
    mine = kind(7, detail="kept") if kind is MineError else kind("mine")
    with pytest.raises(kind) as caught:
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.layers[0].output
                raise mine
            with tracer.invoke(X):
                model.output
    assert caught.value is mine
    assert untouched(net)


class Broken(Stack):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        h = self.embed(x)
        h = self.layers[0](h)
        raise self.error


@pytest.mark.parametrize("kind", [MineError, KeyboardInterrupt, RuntimeError])
def test_the_models_exceptions_come_out_where_the_body_waited(kind):
    mine = kind(7, detail="kept") if kind is MineError else kind("mine")
    net = Broken(mine)
    model = NNsight(net)
    with pytest.raises(kind) as caught:
        with model.trace(X):
            model.layers[0].output
            model.layers[1].output
    assert caught.value is mine
    with pytest.raises(kind) as caught:
        with model.trace(X):
            model.layers[0].output
    assert caught.value is mine
    with pytest.raises(kind) as caught:
        with model.trace(X):
            pass
    assert caught.value is mine
    with pytest.raises(kind) as caught:
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.layers[0].output
    assert caught.value is mine
    assert untouched(net)


def test_the_models_exceptions_can_be_caught_in_the_body():
    net = Broken(ValueError("of the model"))
    model = NNsight(net)
    with model.trace(X):
        kept = model.layers[0].output
        try:
            model.layers[1].output
        except ValueError as error:
            seen = str(error)
    assert seen == "of the model"
    assert torch.equal(kept, net.layers[0](net.embed(X)))
    assert untouched(net)


def test_a_model_that_catches_its_own_errors_goes_on(net):
    class Careful(Stack):
        def forward(self, x):
            try:
                return self.head(self.layers[0](x))
            except RuntimeError:
                return self.head(x)

    careful = Careful()
    model = NNsight(careful)
    with model.trace(X):
        model.layers[0].output = torch.zeros(2, 9)
        out = model.output
    assert torch.equal(out, careful.head(X))


@pytest.mark.parametrize("inside", ["trace", "invoke", "edit", "step"])
def test_a_replacement_that_breaks_the_model_is_torchs_error(net, model, inside):
    generator = Generator()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="shapes") as caught:
            if inside == "trace":
                with model.trace(X):
                    model.layers[1].input = torch.zeros(2, 9)
                    model.output
            elif inside == "invoke":
                with model.trace() as tracer:
                    with tracer.invoke(X):
                        model.layers[1].input = torch.zeros(2, 9)
            elif inside == "edit":
                with model.edit() as edited:
                    model.layers[1].input = torch.zeros(2, 9)
                edited(X)
            else:
                wrapped = NNsight(generator)
                with wrapped.generate(X, 3) as tracer:
                    for _ in tracer.iter[:]:
                        wrapped.second.input = torch.zeros(2, 9)
        assert not isinstance(caught.value, errors.NNsightError)
    assert untouched(net) and untouched(generator)
    assert torch.equal(model(X), net(X))


def test_exceptions_raised_while_another_is_handled_keep_their_context(model):
    with pytest.raises(MineError) as caught:
        with model.trace(X):
            model.layers[0].output
            try:
                1 / 0
            except ZeroDivisionError as error:
                raise MineError(1, detail="") from error
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_exception_group_keeps_its_members(model):
    group = pytest.importorskip("builtins").__dict__.get("ExceptionGroup")
    if group is None:
        pytest.skip("exception groups are of Python 3.11")
    mine = group("several", [ValueError("one"), KeyError("two")])
    with pytest.raises(group) as caught:
        with model.trace(X):
            model.layers[0].output
            raise mine
    assert caught.value is mine and len(mine.exceptions) == 2


# -- tracebacks ------------------------------------------------------------------------------------------------------


def files_of(error):
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def inline(model):
    with model.trace(X):
        model.layers[1].output
        helper(model)


def invoked(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.layers[1].output
            helper(model)


def looped(model):
    with model.trace(X) as tracer:
        with tracer.iter[0]:
            model.layers[1].output
            helper(model)


def edited(model):
    with model.edit() as changed:
        model.layers[1].output
        helper(model)
    with changed.trace(X):
        changed.output


def out_of_order(model):
    with model.trace(X):
        model.layers[1].output
        model.layers[0].output


def missed(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.unused.output


def backward(model):
    with model.trace(X):
        with model.output.sum().backward():
            helper(model)


def helper(model):
    raise MineError(1, detail="")


WAYS = [inline, invoked, looped, edited, out_of_order, missed, backward]


@pytest.mark.parametrize("act", WAYS, ids=lambda act: act.__name__)
def test_tracebacks_show_no_frame_of_ours(model, act):
    with pytest.raises((MineError, errors.NNsightError)) as caught:
        act(model)
    inside = [name for name in files_of(caught.value) if "_core" in name]
    assert inside == []
    lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
    if act not in (out_of_order, missed):
        assert "raise MineError" in lines[-1] and any("helper(model)" in line for line in lines[:-1])


@pytest.mark.parametrize("act", [invoked, out_of_order, missed], ids=lambda act: act.__name__)
def test_tracebacks_show_frames_of_ours_when_debugging(model, debugging, act):
    with pytest.raises((MineError, errors.NNsightError)) as caught:
        act(model)
    assert any("_core" in name for name in files_of(caught.value))


def test_an_error_of_the_model_shows_the_models_frames():
    net = Broken(ValueError("of the model"))
    model = NNsight(net)
    with pytest.raises(ValueError) as caught:
        with model.trace(X):
            model.layers[1].output
    lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert any("raise self.error" in line for line in lines)
    assert any("model.layers[1].output" in line for line in lines)
    assert not any("_core" in name for name in files_of(caught.value))


def test_a_note_says_where_the_model_stood(net, model):
    with pytest.raises(MineError) as caught:
        with model.trace(X):
            model.layers[1].output
            raise MineError(1, detail="")
    notes = getattr(caught.value, "__notes__", None)
    if not hasattr(caught.value, "add_note"):
        pytest.skip("notes are of Python 3.11")
    assert notes is not None and any("`model.layers.1.output`" in note for note in notes)


# -- the model afterwards ----------------------------------------------------------------------------------------------


def test_grad_mode_and_autocast_are_as_they_were_after_an_error(net, model):
    class Quiet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x)

    quiet = NNsight(Quiet())
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            with quiet.trace(X):
                quiet.net.layers[1].output
                1 / 0
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        with pytest.raises(ZeroDivisionError):
            with quiet.trace() as tracer:
                with tracer.invoke(X):
                    quiet.net.layers[1].output
                    1 / 0
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_the_models_own_cleanup_runs_when_a_body_fails(net):
    order = []

    class Tidy(Stack):
        def forward(self, x):
            try:
                return super().forward(x)
            finally:
                order.append("tidied")

    model = NNsight(Tidy())
    with pytest.raises(ZeroDivisionError):
        with model.trace(X):
            model.layers[1].output
            order.append("fails")
            1 / 0
    assert order == ["fails", "tidied"]


def test_errors_leave_no_values_behind(net, model):
    import gc
    import weakref

    kept = []
    for _ in range(3):
        try:
            with model.trace(X):
                hidden = model.layers[1].output
                kept.append(weakref.ref(hidden))
                raise MineError(1, detail="")
        except MineError:
            pass
        del hidden
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


def test_nested_traces_that_fail(net, model):
    other = NNsight(Stack(depth=2))
    with pytest.raises(ZeroDivisionError):
        with model.trace(X):
            model.layers[0].output
            with other.trace(X):
                other.layers[1].output
                1 / 0
    assert untouched(net) and untouched(other._module)
    with model.trace(X):
        model.layers[0].output
        with pytest.raises(ZeroDivisionError):
            with other.trace(X):
                other.layers[1].output
                1 / 0
        out = model.output
    assert torch.equal(out, net(X))


def test_hundreds_of_errors_of_every_kind(net, model):
    def torch_in_the_body():
        with model.trace(X):
            model.layers[0].output @ torch.zeros(9, 9)

    def torch_in_the_model():
        with model.trace(X):
            model.layers[0].output = torch.zeros(2, 9)
            model.output

    def torch_in_an_invoke():
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.layers[0].output @ torch.zeros(9, 9)
            with tracer.invoke(X):
                model.output

    for act in (torch_in_the_body, torch_in_the_model, torch_in_an_invoke):
        for _ in range(100):
            with pytest.raises(RuntimeError):
                act()
    assert untouched(net)
    with model.trace(X):
        out = model.output
    assert torch.equal(out, net(X))


# -- warnings --------------------------------------------------------------------------------------------------------


def test_a_run_without_trouble_warns_of_nothing(net, model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.trace(X) as tracer:
            model.layers[1].output[:] = 0
            tracer.result
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.layers[1].output[:] = 0
            with tracer.invoke(X):
                for _ in tracer.iter[:]:
                    model.output


class MissesAttribute(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        raise Missed(self.first(x).mean())


class Missed(AttributeError):
    pass


@pytest.mark.parametrize("name", ["output", "input", "nns_output"])
def test_an_attribute_error_of_the_model_comes_out_where_a_value_was_awaited(name) -> None:
    # Python takes an AttributeError in a property for "no such attribute".
    model = NNsight(MissesAttribute())
    with pytest.raises(Missed):
        with model.trace(X):
            getattr(model.second, name)
    assert "_raised" not in model.second.__dict__
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'nothing'"):
        model.second.nothing


def test_an_attribute_error_in_a_property_of_a_subclass_is_told() -> None:
    class Wrapper(NNsight):
        @property
        def wrong(self):
            return self.head.no_such_thing

        @nnsight.eproperty
        def shown(self, output):
            return output.no_such_thing

    model = Wrapper(Stack())
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'no_such_thing'"):
        model.wrong
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'no_such_thing'"):
        with model.trace(X):
            model.shown


# -- modules of torch that do not call their parts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "grad", "said"),
    [
        ("layers.0.self_attn.out_proj", True, "MultiheadAttention, which uses the weights"),
        ("layers.0.linear1", False, r"layers\.0` is a torch\.nn\.TransformerEncoderLayer.*set_fastpath_enabled"),
        ("layers.1.self_attn", False, r"layers\.1` is a torch\.nn\.TransformerEncoderLayer.*set_fastpath_enabled"),
    ],
)
def test_why_torch_never_called_a_module(path: str, grad: bool, said: str) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = NNsight(torch.nn.TransformerEncoder(layer, 2).eval())
    with torch.set_grad_enabled(grad), pytest.raises(errors.MissedProviderError, match=said):
        with model.trace(torch.rand(1, 3, 8)):
            model.get(path).output


def test_what_is_advised_about_torchs_fast_path_works() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = NNsight(torch.nn.TransformerEncoder(layer, 1).eval())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), model.trace(torch.rand(1, 3, 8)):
            shape = model.layers[0].linear1.output.shape
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert shape == (1, 3, 16)
