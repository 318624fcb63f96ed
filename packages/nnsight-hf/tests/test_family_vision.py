"""`VisionLanguageModel` keeps the promises of every family, with one image extent and with images cut into crops."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import checkpoints
import pytest
from pictures import picture
from seers import SEERS
from test_vision import asked

from nnsight import VisionLanguageModel
from nnsight.testing import GeneratingSuite, assert_alike

TEMPLATE = (
    "{% for m in messages %}{% for part in m.content %}{% if part.type == 'image' %}MARK {% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


class TestImagesAndText(GeneratingSuite):
    padding = "left"
    rounding = 1e-3
    scans = False  # it asks how many places the text has for images
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    name = "gemma3"

    def make_model(self) -> Any:
        seer = SEERS[self.name]
        processor = seer.processor()
        processor.chat_template = TEMPLATE.replace("MARK", seer.mark)
        return VisionLanguageModel(seer.module(), processor=processor)

    def inputs(self) -> list[Any]:
        words = [{"type": "text", "text": text} for text in (checkpoints.SHORT, checkpoints.LONG)]
        small, wide, high = (
            {"type": "image", "image": image} for image in (picture(0), picture(1, 20, 45), picture(2, 40, 20))
        )
        return [asked(small, words[0]), asked(wide, high, words[1])]


class TestImagesInCrops(TestImagesAndText):
    name = "llava_next"

    def test_a_copy_is_a_model_of_its_own(self, model: Any, given: list[Any], plain: Any, sites: list[str]) -> None:
        # What transformers hangs on such a model when it first runs cannot be pickled: only a deep copy can be made.
        with pytest.raises((AttributeError, pickle.PicklingError)):
            pickle.dumps(model._module)
        other = copy.deepcopy(model)
        with other.trace(given[0]) as tracer:
            seen = {path: other.get(path).output for path in sites}
            result = tracer.result
        assert_alike(seen, {path: plain[path] for path in sites}, self.rounding)
        assert_alike(result, plain.result, self.rounding)
