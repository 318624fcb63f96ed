"""What is new in saved values, look by look, and what is made of it at the other end."""

from __future__ import annotations

import collections
import copy
import random

from nnsight.plugin import Piece, Pieces


def test_a_list_and_a_dict_grow_by_their_items_and_a_new_value_comes_whole():
    values = {"hidden": [1], "by": {"a": [10]}}
    pieces = Pieces()
    assert list(pieces.look(values)) == [Piece("hidden", (), [1]), Piece("by", (), {"a": [10]})]
    assert list(pieces.look(values)) == []
    values["hidden"].append(2)
    values["by"]["a"].append(11)
    values["by"]["b"] = [20]
    assert list(pieces.look(values)) == [
        Piece("hidden", (1,), 2),
        Piece("by", ("a", 1), 11),
        Piece("by", ("b",), [20]),
    ]
    values["hidden"] = [1]  # another list
    assert list(pieces.look(values)) == [Piece("hidden", (), [1])]


def test_what_holds_itself_and_what_makes_its_items_when_asked_are_left_as_they_are():
    itself: list = []
    itself.append(itself)
    made = collections.defaultdict(list)
    made["a"].append(1)
    pieces = Pieces()
    assert len(list(pieces.look({"itself": itself, "made": made}))) == 2
    del made["a"]
    made["b"] = [2]
    list(pieces.look({"itself": itself, "made": made}))
    assert set(made) == {"b"}


def test_all_pieces_put_together_are_the_values_and_what_was_put_together_before_stays():
    choose = random.Random(0)
    for _ in range(30):
        values: dict = {}
        pieces, found, before = Pieces(), {}, []
        for step in range(12):
            name = choose.choice("abc")
            held = values.get(name)
            if isinstance(held, list) and choose.random() < 0.8:
                held.append([step] if choose.random() < 0.3 else step)
                if held and isinstance(held[0], list):
                    held[0].append(-step)
            elif isinstance(held, dict) and choose.random() < 0.8:
                held.setdefault(choose.choice("xyz"), []).append(step)
            else:
                values[name] = choose.choice([[], {}, step])
            for piece in pieces.look(values):
                found = copy.deepcopy(piece).added_to(found)
            assert found == values
            before.append((found, copy.deepcopy(found)))
        assert all(then == as_it_was for then, as_it_was in before)
