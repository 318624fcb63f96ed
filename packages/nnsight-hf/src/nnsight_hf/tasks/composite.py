"""Inputs that are several things in a dict, by the names that transformers' pipelines have for them.

A question about a text, an image, a table or a page; labels to guess; points on an image. Each function makes rows of
arguments of one of them, with what `reading.py` knows of bare texts, images and sounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from nnsight_hf import images

if TYPE_CHECKING:
    from nnsight_hf.tasks.reading import Reader

Row = dict[str, Any]
Given = Mapping[str, Any]


def read(reader: Reader, given: Given, options: Given) -> list[Row]:
    """Return the rows of arguments that a dict makes.

    Raises:
        TypeError: nothing here has these names.
    """
    names = frozenset(given)
    if names & {"array", "raw", "path"}:
        return reader.sounds(given)
    for needed, others, function in _KINDS:
        if needed <= names <= needed | others:
            return function(reader, given, options)
    raise reader.wrong(given)


def _pair(reader: Reader, given: Given, options: Given) -> list[Row]:
    if "question" in given:
        return reader.texts(given["question"], given["context"], options)
    return reader.texts(given["text"], given.get("text_pair"), options)


def _picture(reader: Reader, image: Any) -> Row:
    (row,) = reader.images(image)
    return row


def _guess(reader: Reader, given: Given, options: Given) -> list[Row]:
    """Read labels that a model was not trained on: each makes a sentence that may be true."""
    labels = given["candidate_labels"]
    about = [name for name in ("text", "image", "audio") if name in given]
    if isinstance(labels, str) or not labels or len(about) != 1:
        raise ValueError(
            'labels are guessed for one text, image or sound: {"text": ..., "candidate_labels": [...]}, and "image" or '
            '"audio" in the place of the text'
        )
    usual = {"text": "This example is {}.", "image": "This is a photo of {}.", "audio": "This is a sound of {}."}[
        about[0]
    ]
    template = given.get("hypothesis_template", "{}" if reader.task == "zero-shot-object-detection" else usual)
    if "{}" not in template:
        raise ValueError(f"the `hypothesis_template` {template!r} has no {{}} where the label goes")
    sentences = [template.format(label) for label in labels]
    if about == ["text"]:
        return reader.texts([given["text"]] * len(sentences), sentences, options)
    if "grounding" in reader.type:
        sentences = [" ".join(f"{sentence}." for sentence in sentences)]  # one text, in which dots part the labels
    # SigLIP was trained with padding that it sees.
    fixed = {"padding": "max_length", "max_length": 64, "truncation": True} if reader.type.startswith("siglip") else {}
    rows = reader.texts(sentences, None, {**fixed, **options})
    seen = _picture(reader, given["image"]) if about == ["image"] else reader.sounds(given["audio"])[0]
    return [{**reader.joined(rows), **seen}]


def _table(reader: Reader, given: Given, options: Given) -> list[Row]:
    """Read a table and what is asked about it: a row for each question."""
    import pandas  # the tokenizers of tables need it themselves

    table, queries = given["table"], given["query"]
    frame = table if isinstance(table, pandas.DataFrame) else pandas.DataFrame(table)
    if frame.empty or not queries:
        raise ValueError("the table is empty" if frame.empty else "the query is empty")
    tokenize = reader.processors.need("tokenizer")
    frame = frame.astype(str).reset_index(drop=True)
    how = {"truncation": "drop_rows_to_fit", **options}
    asked = [queries] if isinstance(queries, str) else queries
    return [dict(tokenize(table=frame, queries=[query], return_tensors="pt", **how)) for query in asked]


def _question(reader: Reader, given: Given, options: Given) -> list[Row]:
    """Read a question about an image, or about a page with words on it."""
    if reader.takes("bbox"):
        return _page(reader, given, options)
    if "word_boxes" in given or "image" not in given:
        raise reader.wrong(given)
    if reader.takes("input_ids"):
        return [{**reader.texts(given["question"], None, options)[0], **_picture(reader, given["image"])}]
    # As Donut was taught to be asked.
    asked = f"<s_docvqa><s_question>{given['question']}</s_question><s_answer>"
    return _begun(reader, {"image": given["image"], "text": asked}, options)


def _page(reader: Reader, given: Given, options: Given) -> list[Row]:
    if not given.get("word_boxes"):
        raise ValueError(
            "this model reads words and where they stand, and nothing here finds them on an image: give them as "
            '"word_boxes": [(word, [x0, y0, x1, y1]), ...], with boxes from 0 to 1000 across the page'
        )
    words, boxes = (list(part) for part in zip(*given["word_boxes"]))
    tokenize = reader.processors.need("tokenizer")
    if reader.type == "layoutlm":
        made = tokenize(given["question"].split(), words, is_split_into_words=True, return_tensors="pt", **options)
        # The corners that LayoutLM was trained with for what stands on no page.
        ends, nowhere, corner = tokenize.sep_token_id, [0] * 4, [1000] * 4
        where = [
            boxes[word] if part == 1 else corner if int(token) == ends else nowhere
            for token, part, word in zip(made["input_ids"][0], made.sequence_ids(0), made.word_ids(0))
        ]
        row = {**made, "bbox": torch.tensor(where)[None]}
    else:
        row = dict(tokenize(given["question"], words, boxes=boxes, return_tensors="pt", **options))
    sight = next((name for name in ("pixel_values", "image") if reader.takes(name)), None)
    if sight is not None and given.get("image") is not None:
        row[sight] = _picture(reader, given["image"])["pixel_values"]
    return [row]


def _begun(reader: Reader, given: Given, options: Given) -> list[Row]:
    """Read an image, and how what is written about it begins."""
    row = _picture(reader, given["image"])
    if reader.takes("input_ids"):
        return [{**reader.texts(given["text"], None, options)[0], **row}]
    tokenize = reader.processors.need("tokenizer")
    begin = tokenize(given["text"], return_tensors="pt", **{"add_special_tokens": False, **options})
    return [{**row, "decoder_input_ids": begin["input_ids"]}]


def _prompted(reader: Reader, given: Given, options: Given) -> list[Row]:
    """Read an image, and the points or boxes that say what on it is meant."""
    if set(given) == {"image"}:
        return reader.images(given["image"])
    process = reader.processors.need("processor")
    prompts = {
        name: [getattr(value, "tolist", lambda value=value: value)()]
        for name, value in given.items()
        if name != "image"
    }
    return [dict(process(images.opened(given["image"]), return_tensors="pt", **prompts))]


def _by_processor(reader: Reader, given: Given, options: Given) -> list[Row]:
    """Read what the model's own processor reads, whatever it is."""
    process = reader.processors.need("processor")
    return [dict(process(**given, return_tensors="pt", padding=True, **options))]


_Function = Callable[["Reader", Given, Given], list[Row]]

#: The names that a dict must have, those that it may have besides, and what reads it.
_KINDS: list[tuple[frozenset[str], frozenset[str], _Function]] = [
    (frozenset({"question", "context"}), frozenset(), _pair),
    (frozenset({"text"}), frozenset({"text_pair"}), _pair),
    (frozenset({"candidate_labels"}), frozenset({"text", "image", "audio", "hypothesis_template"}), _guess),
    (frozenset({"table", "query"}), frozenset(), _table),
    (frozenset({"question"}), frozenset({"image", "word_boxes"}), _question),
    (frozenset({"image", "text"}), frozenset(), _begun),
    (frozenset({"image"}), frozenset({"input_points", "input_labels", "input_boxes"}), _prompted),
    (frozenset({"images"}), frozenset(), lambda reader, given, _: reader.matched(given["images"])),
    (frozenset({"video"}), frozenset(), lambda reader, given, _: reader.videos(given["video"])),
    (frozenset({"text", "images"}), frozenset(), _by_processor),
]
