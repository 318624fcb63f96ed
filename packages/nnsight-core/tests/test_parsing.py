"""Text of Python's becomes a tree, whoever else is at it."""

from __future__ import annotations

import ast
import gc
import threading

import pytest

from nnsight._core.parsing import copy_tree, parse_source

TEXT = "\n".join(f"def f{n}(a, b):\n    return [a + b * (c - {n}) for c in range(a) if c]" for n in range(40))


@pytest.fixture
def others():
    """Parse something else in the midst of a tree that is built, as another thread might: three times, when told so."""
    left = []

    def begins(phase, info):
        if phase == "start" and left:
            left.pop()
            ast.parse("x = [1, 2, (3 + 4)]")

    before = gc.get_threshold()
    gc.callbacks.append(begins)
    gc.set_threshold(700)
    yield lambda: left.extend([None] * 3)
    gc.set_threshold(*before)
    gc.callbacks.remove(begins)


def test_a_tree_is_whole_though_others_are_built_meanwhile(others):
    whole = ast.dump(ast.parse(TEXT))
    for _ in range(20):
        others()
        assert ast.dump(parse_source(TEXT, "<here>")) == whole


def test_threads_get_the_trees_of_their_own_texts():
    texts = [f"{TEXT}\nlast = {n}" for n in range(8)]
    found = {}
    threads = [threading.Thread(target=lambda text=text: found.update({text: parse_source(text)})) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[text].body[-1].value.value for text in texts] == list(range(8))


def test_what_is_no_text_of_pythons_is_refused_as_ever():
    with pytest.raises(SyntaxError, match="was never closed"):
        parse_source("(", "<here>")
    assert isinstance(parse_source("1 + 1", mode="eval"), ast.Expression)


def test_a_copy_of_a_tree_says_the_same_and_can_be_changed_by_itself():
    tree = parse_source(TEXT)
    before = ast.dump(tree, include_attributes=True)
    copy = copy_tree(tree)
    assert ast.dump(copy, include_attributes=True) == before
    for node in ast.walk(copy):
        if isinstance(node, ast.Name):
            node.id = "other"
    copy.body.pop()
    assert ast.dump(tree, include_attributes=True) == before
