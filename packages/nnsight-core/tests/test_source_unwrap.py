"""Decorated forwards: what is under their wrappers, and the same wrappers around something else."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from functools import partial, wraps

import pytest

from nnsight._core.errors import SourceError
from nnsight._core.source.rewrite import rewrite
from nnsight._core.source.unwrap import held_in, innermost, rebuild


def plain(self, x, scale=2):
    return [("plain", self, x, scale)]


def other(self, x, scale=3):
    return [("other", self, x, scale)]


def noting(function):
    @wraps(function)
    def noted(*args, **kwargs):
        return ["noted", *function(*args, **kwargs)]

    return noted


def by_default(function):
    @wraps(function)
    def called(*args, _inner=function, **kwargs):
        return ["by default", *_inner(*args, **kwargs)]

    return called


def by_position(function):
    def called(self, x, _inner=function):
        return ["by position", *_inner(self, x)]

    called.__wrapped__ = function
    return called


def through_partial(function):
    first = partial(function, scale=7)

    @wraps(function)
    def called(*args):
        return ["through a partial", *first(*args)]

    return called


def mentions_itself(function):
    @wraps(function)
    def called(*args):
        called.count += 1
        return [called.count, *function(*args)]

    called.count = 0
    return called


def late(function):
    @wraps(function)
    def called(*args):
        return [unset if args[0] else "never", *function(*args)]  # noqa: F821

    if function is None:
        unset = 1  # noqa: F841
    return called


class suppressing(contextlib.ContextDecorator):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class Callable:
    def __init__(self, function):
        functools.update_wrapper(self, function)

    def __get__(self, instance, owner):
        return partial(self, instance)

    def __call__(self, *args):
        return ["object", *self.__wrapped__(*args)]


WRAPPERS = {
    "plain": plain,
    "wraps": noting(plain),
    "twice": noting(noting(plain)),
    "partial": partial(plain, scale=5),
    "wrapped partial": noting(partial(plain, scale=5)),
    "default": by_default(plain),
    "positional default": by_position(plain),
    "partial in a cell": through_partial(noting(plain)),
    "itself in a cell": mentions_itself(plain),
    "empty cell": late(plain),
    "context": suppressing()(plain),
    "bound": types.MethodType(noting(plain), "").__func__,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_rebuilt_wrappers_do_what_the_old_ones_do(kind):
    wrapped = WRAPPERS[kind]
    assert innermost(wrapped) is plain
    before = wrapped("", 1)
    again = rebuild(wrapped, other)
    assert innermost(again) is other
    expected = [
        ("other", *item[1:3], 3 if item[3] == 2 else item[3]) if isinstance(item, tuple) else item for item in before
    ]
    if kind == "itself in a cell":
        expected[0] += 1
    assert again("", 1) == expected
    assert wrapped("", 1)[-1] == before[-1]


def test_methods_stay_bound():
    class Module:
        forward = noting(plain)
        still = staticmethod(noting(plain))
        of_class = classmethod(noting(plain))

    module = Module()
    assert innermost(module.forward) is plain
    assert rebuild(module.forward, other)(4) == ["noted", ("other", module, 4, 3)]
    assert rebuild(module.forward, other).__self__ is module
    assert rebuild(module.of_class, other)(4) == ["noted", ("other", Module, 4, 3)]
    for kind in ("still", "of_class"):
        descriptor = vars(Module)[kind]
        assert innermost(descriptor) is plain and type(rebuild(descriptor, other)) is type(descriptor)
    assert rebuild(vars(Module)["still"], other).__func__(5, 6) == ["noted", ("other", 5, 6, 3)]


def test_signatures_and_attributes_survive():
    wrapped = noting(plain)
    wrapped.mark = mark = object()
    again = rebuild(wrapped, other)
    assert again.mark is mark and again.__wrapped__ is other and wrapped.__wrapped__ is plain
    assert again.__name__ == "plain" and inspect.signature(again) == inspect.signature(other)


def test_a_borrowed_signature_is_no_wrapper():
    @wraps(plain)
    def own(self, x, scale=2):
        return abs(x)

    assert innermost(own) is own
    assert innermost(noting(own)) is own
    assert rebuild(own, other) is other


def test_a_wrapper_that_does_not_say_so_is_the_function_itself():
    def silent(function):
        def called(*args):
            return function(*args)

        return called

    forward = silent(plain)
    assert innermost(forward) is forward
    assert [operation.name for operation in rewrite(forward)] == ["function_0"]


def test_a_callable_object_is_its_call():
    class Attention:
        def __call__(self, x):
            return abs(x)

    attention = Attention()
    assert innermost(attention) is Attention.__call__

    def replaced(self, x):
        return self, x

    assert rebuild(attention, replaced)(3) == (attention, 3)


@pytest.mark.parametrize("wrapper", [functools.lru_cache, functools.singledispatch, Callable])
def test_wrappers_that_cannot_be_made_anew(wrapper):
    wrapped = wrapper(plain)
    if wrapper is functools.singledispatch:
        # It keeps the function in a registry, and so is a function of its own.
        assert innermost(wrapped) is wrapped
        return
    assert innermost(wrapped) is plain
    with pytest.raises(SourceError, match="cannot be made anew"):
        rebuild(wrapped, other)


@pytest.mark.parametrize("thing", [abs, [].append, int, Callable, "text".upper, partial(abs)])
def test_no_python_function_under_the_wrappers(thing):
    with pytest.raises(SourceError, match="no Python function"):
        innermost(thing)


class Module:
    def forward(self, x):
        return abs(x)


def hooked(module, attribute="_old_forward"):
    """Put a forward on an instance as accelerate does: the old one is looked up on the module at each call."""
    old = module.forward
    setattr(module, attribute, old)

    def new_forward(module, *args, **kwargs):
        return module._old_forward(*args, **kwargs) * 2

    module.forward = functools.update_wrapper(partial(new_forward, module), old)
    return module


def test_a_forward_held_in_an_attribute():
    module = hooked(Module())
    assert held_in(module, module.forward) == "_old_forward"
    rewritten = rewrite(innermost(module._old_forward))
    row = [lambda callee, x: ("instead", x)]
    old = module._old_forward
    module._old_forward = rebuild(old, rewritten.bind(Module.forward, row))
    assert module.forward(-3) == ("instead", -3) * 2
    module._old_forward = old
    assert module.forward(-3) == 6


def test_an_attribute_that_is_not_looked_up_holds_nothing():
    assert held_in(Module(), Module().forward) is None
    kept = hooked(Module(), "_kept_for_undoing")
    assert held_in(kept, kept.forward) is None
    module = Module()
    module._old_forward = module.forward
    module.forward = noting(module.forward)
    assert held_in(module, module.forward) is None
    assert innermost(module.forward) is Module.forward


def test_the_wrappers_of_transformers():
    """relies on: the decorators of transformers 5 keep the function that they decorate in a closure."""
    pytest.importorskip("transformers")
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Model
    from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel

    for cls in (GPT2Attention, GPT2Model, LlamaModel, LlamaForCausalLM):
        function = innermost(cls.forward)
        assert function.__code__.co_name == "forward" and function.__code__.co_filename == inspect.getsourcefile(cls)
        assert innermost(rebuild(cls.forward, other)) is other
        rewritten = rewrite(function)
        assert rewritten.operations
    names = {operation.name for operation in rewrite(GPT2Attention.forward)}
    assert {"attention_interface_0", "attn_output_reshape_0", "contiguous_0", "self_c_proj_0"} <= names


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5"])
def test_a_model_of_transformers_computes_the_same(family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 50,
    }
    config = {
        "gpt2": lambda: transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50),
        "llama": lambda: transformers.LlamaConfig(**small),
        "bert": lambda: transformers.BertConfig(**small),
        "t5": lambda: transformers.T5Config(num_layers=2, d_model=16, d_ff=32, num_heads=2, d_kv=8, vocab_size=50),
    }[family]()
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    inputs = {"input_ids": torch.arange(3, 13).view(2, 5)}
    if family == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    expected = model(**inputs)[0]
    made = 0

    def counting(callee, /, *args, **kwargs):
        nonlocal made
        made += 1
        return callee(*args, **kwargs)

    for module in model.modules():
        function = innermost(module.forward)
        rewritten = rewrite(function)
        module.forward = rebuild(module.forward, rewritten.bind(function, [counting] * len(rewritten.operations)))
    assert torch.equal(model(**inputs)[0], expected)
    assert made > len(list(model.modules()))
    for module in model.modules():
        del module.forward
    assert torch.equal(model(**inputs)[0], expected)
