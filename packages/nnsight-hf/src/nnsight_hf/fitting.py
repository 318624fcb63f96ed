"""Which class and which task fit a checkpoint, read off its configuration before any weight is loaded.

A checkpoint says which class saved it (`config.architectures`), and transformers' Auto classes say which classes they
make of a configuration. A checkpoint saved with another head than the one asked for would load with a head of random
numbers and only a warning in a log, so that is refused here; `automodel=` overrides it.
"""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import PretrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY

#: Tasks that older transformers have a pipeline for and newer ones have not; the models are still there.
_OLDER = {
    "question-answering": ("AutoModelForQuestionAnswering",),
    "visual-question-answering": ("AutoModelForVisualQuestionAnswering",),
    "image-to-image": ("AutoModelForImageToImage",),
    "image-to-text": ("AutoModelForImageTextToText",),
}

_CAUSAL, _SEQ2SEQ, _PICTURES = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText"

#: Auto classes that a pipeline's models may be made by beside those that it loads with.
_BESIDE = {"image-segmentation": ("AutoModelForUniversalSegmentation", "AutoModelForInstanceSegmentation")}

#: Tasks of other families, and what to write for them.
_ELSEWHERE = {
    "text-generation": "LanguageModel",
    "text2text-generation": "LanguageModel",
    "summarization": "LanguageModel",
    "translation": "LanguageModel",
    "image-text-to-text": "VisionLanguageModel",
    "any-to-any": "VisionLanguageModel",
}

#: Tasks whose weights are those of a language model but for a head that is tied or that a user adds knowingly.
_CLOSE = ("fill-mask", "feature-extraction")


def tasks() -> dict[str, tuple[str, ...]]:
    """Return the names of the Auto classes of each task that `TransformersModel` serves."""
    found = {}
    for task in PIPELINE_REGISTRY.get_supported_tasks():
        if task in _ELSEWHERE or task == "decision":  # the latter asks a language model
            continue
        try:
            name, entry, _ = PIPELINE_REGISTRY.check_task(task)  # several names for one task: "ner"
        except KeyError:  # one with its languages in its name: translation
            continue
        found[name] = tuple(auto if isinstance(auto, str) else auto.__name__ for auto in entry["pt"])
    return {task: (*autos, *_BESIDE.get(task, ())) for task, autos in {**_OLDER, **found}.items()}


def makes(auto: str, config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of the classes that an Auto class makes of a configuration of this kind."""
    # relies on: _BaseAutoModelClass._model_mapping, transformers 5.15 to 5.23
    mapping = getattr(transformers, auto)._model_mapping
    if type(config) not in mapping:
        return ()
    made = mapping[type(config)]
    return tuple(cls.__name__ for cls in (made if isinstance(made, (tuple, list)) else (made,)))


def only_sees(config: PretrainedConfig) -> bool:
    """Say whether a model that writes about images has no text among its inputs, as Donut and TrOCR."""
    made = [getattr(transformers, name) for name in makes(_PICTURES, config)]
    return bool(made) and not any("input_ids" in inspect.signature(cls.forward).parameters for cls in made)


def saved_as(config: PretrainedConfig) -> str | None:
    """Return the name of the class that saved a checkpoint."""
    return (getattr(config, "architectures", None) or [None])[0]


def task_of(config: PretrainedConfig) -> str | None:
    """Return the task that a checkpoint was saved for, or None."""
    name = saved_as(config)
    if name is None:
        return None
    served = tasks()
    # A bare model serves where no head does; and what reads pages answers questions about texts too.
    by_head = sorted(served, key=lambda task: ("AutoModel" in served[task], task == "question-answering"))
    for task in by_head:
        if task == "image-to-text" and not only_sees(config):
            continue
        if any(name in makes(auto, config) for auto in served[task]):
            return task
    return None


def family_of(config: PretrainedConfig) -> str | None:
    """Return what to write for a checkpoint; None for one that is not known, such as one with code of its own."""
    name = saved_as(config)
    if name is not None and (name in makes(_CAUSAL, config) or name in makes(_SEQ2SEQ, config)):
        return "LanguageModel"
    if only_sees(config):
        return 'TransformersModel with task="image-to-text"'
    if name is not None and name in makes(_PICTURES, config):
        return "VisionLanguageModel"
    task = task_of(config)
    if task is not None:
        return f'TransformersModel with task="{task}"'
    kinds = {_CAUSAL: "LanguageModel", _SEQ2SEQ: "LanguageModel", _PICTURES: "VisionLanguageModel"}
    for auto, family in kinds.items():
        if makes(auto, config):
            return family
    return "TransformersModel" if makes("AutoModel", config) else None


def _own_code(config: PretrainedConfig, auto: str) -> bool:
    return auto in (getattr(config, "auto_map", None) or {})


def check(config: PretrainedConfig, auto: str, family: str) -> None:
    """Raise unless a checkpoint fits a family of language models.

    A base model (`GPT2Model`) and one that was saved to fill masks pass: users read such as language models, and their
    weights are all there.

    Raises:
        TypeError: it does not; names the class that fits.
    """
    if _own_code(config, auto):
        return
    name, made = saved_as(config), makes(auto, config)
    if auto == _PICTURES and only_sees(config):
        _refuse(config, "it reads images and no text", family)
    if made and (name is None or name in made):
        return
    task = task_of(config)
    if made and (task is None or task in _CLOSE) and name not in makes(_SEQ2SEQ, config):
        return
    _refuse(config, f"{family} makes {' or '.join(made)} of it" if made else f"{auto} makes nothing of it", family)


def auto_of(config: PretrainedConfig, task: str | None) -> tuple[str, str]:
    """Return the task of a checkpoint, and the name of the Auto class that makes its model.

    Args:
        config: the configuration.
        task: what the user asked for; None for what the checkpoint was saved for.

    Raises:
        ValueError: the task is not known, or this kind of model has no head for it.
        TypeError: another family serves it.
    """
    served = tasks()
    if task is None:
        family = family_of(config)
        if family in ("LanguageModel", "VisionLanguageModel"):
            _refuse(config, "TransformersModel serves the models that do not write text", "TransformersModel")
        task = task_of(config) or ("feature-extraction" if saved_as(config) is None else None)
        if task is None:
            raise ValueError(
                f"which task {saved_as(config)} serves cannot be told from its configuration: pass `task=`, one of "
                f"{_listed(_possible(config)) or _listed(served)}, or `automodel=`"
            )
    else:
        task = _spelled(task)
    if task in _ELSEWHERE:
        raise TypeError(f'the task "{task}" is served by {_ELSEWHERE[task]}, not by TransformersModel: use that class')
    if task not in served:
        raise ValueError(f'there is no task "{task}"; there are {_listed(served)}')
    name = saved_as(config)
    fitting = [auto for auto in served[task] if makes(auto, config) or _own_code(config, auto)]
    if not fitting and task == "document-question-answering" and only_sees(config):
        fitting = [_PICTURES]  # those are asked in the text that they go on with
    if not fitting:
        raise ValueError(
            f'a model of the type "{config.model_type}" does not serve the task "{task}"; it serves '
            f"{_listed(_possible(config)) or 'none that TransformersModel knows'}"
        )
    exact = [auto for auto in fitting if name in makes(auto, config)]
    return task, (exact or fitting)[0]


def _possible(config: PretrainedConfig) -> list[str]:
    return [task for task, autos in tasks().items() if any(makes(auto, config) for auto in autos)]


def _spelled(task: str) -> str:
    try:
        return str(PIPELINE_REGISTRY.check_task(task)[0])  # such as "ner", which is "token-classification"
    except KeyError:
        return task


def _listed(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _refuse(config: PretrainedConfig, why: str, family: str) -> None:
    right = family_of(config)
    what = f"was saved as {saved_as(config)}" if saved_as(config) else f'is of the type "{config.model_type}"'
    fix = f"Use {right}" if right and right.split()[0] != family else "Use another class"
    raise TypeError(f"this checkpoint {what}, and {why}. {fix}, or say which class is meant with `automodel=`.")
