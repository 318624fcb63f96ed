"""Sound as users have it: arrays of samples, and files of any format that soundfile reads.

What comes out is one waveform [samples] at the rate that the model was trained with. Features of it are made by the
model's own extractor (`processors.py`).
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import wave
from collections.abc import Mapping
from typing import Any

import numpy
import torch

#: What is written where the words for a kind of input are listed.
SAYS = 'a waveform [samples], the path of a sound file, or {"array": waveform, "sampling_rate": rate}'

_INSTALL = "pip install 'nnsight-hf[audio]'"


def listed(sound: Any) -> list[Any]:
    """Return the sounds of one input: a list of paths, arrays or dicts is several, a list of numbers is one."""
    if isinstance(sound, (list, tuple)) and len(sound):
        first = sound[0]
        if isinstance(first, (str, bytes, os.PathLike, Mapping)) or numpy.ndim(first):
            return list(sound)
    return [sound]


def waveform(sound: Any, rate: int, own_rate: int | None = None) -> numpy.ndarray:
    """Return the samples of a sound at a rate.

    Args:
        sound: samples, a path, the bytes of a file, or `{"array" or "raw" or "path": ..., "sampling_rate": ...}`.
        rate: how many samples a second the model takes.
        own_rate: how many there are, if the sound does not say it; if nobody does, as many as the model takes.

    Raises:
        TypeError: it is no sound.
        ValueError: it has several channels, or another rate and there is nothing to resample with.
    """
    if isinstance(sound, Mapping):
        unknown = set(sound) - {"array", "raw", "path", "sampling_rate"}
        held = next((sound[name] for name in ("array", "raw", "path") if sound.get(name) is not None), None)
        if unknown or held is None:
            raise TypeError(f"a sound is {SAYS}; this dict holds {sorted(sound)}")
        return waveform(held, rate, sound.get("sampling_rate", own_rate))
    if isinstance(sound, (str, bytes, os.PathLike)):
        samples, own_rate = _read(sound)
    elif isinstance(sound, (list, tuple, numpy.ndarray, torch.Tensor)):
        samples = numpy.asarray(torch.as_tensor(sound).detach().cpu().float())
    else:
        raise TypeError(f"a sound is {SAYS}, not {type(sound).__name__}")
    if samples.ndim != 1:
        raise ValueError(
            f"a waveform has one dimension, [samples], and this one has the shape {tuple(samples.shape)}: choose a channel "
            "or average them; several sounds are a list"
        )
    return samples if own_rate in (None, rate) else _resampled(samples, int(own_rate or rate), rate)


def _read(source: Any) -> tuple[numpy.ndarray, int]:
    """Return the samples of a file, averaged over its channels, and their rate."""
    if not isinstance(source, bytes) and not os.path.exists(source):
        raise FileNotFoundError(f"there is no sound file {os.fspath(source)!r}: a sound is {SAYS}")
    file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
    if importlib.util.find_spec("soundfile") is not None:
        import soundfile

        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        return samples.mean(axis=1), int(rate)
    return _read_wave(file)


def _read_wave(file: Any) -> tuple[numpy.ndarray, int]:
    """Read a WAV file of whole numbers, which Python can do by itself."""
    try:
        with wave.open(file, "rb") as opened:
            width, channels, rate = opened.getsampwidth(), opened.getnchannels(), opened.getframerate()
            data = numpy.frombuffer(opened.readframes(opened.getnframes()), dtype=numpy.uint8)
    except wave.Error as error:
        raise ValueError(f"without soundfile only plain WAV files are read ({error}): {_INSTALL}") from error
    if width == 1:
        samples = data.astype(numpy.float32) / 128 - 1  # the one width without a sign
    else:
        # Put into the upper bytes of 32 bits, whatever the width, so that the sign is where it belongs.
        whole = numpy.zeros((data.size // width, 4), dtype=numpy.uint8)
        whole[:, 4 - width :] = data.reshape(-1, width)
        samples = (whole.view("<i4")[:, 0] / 2**31).astype(numpy.float32)
    return samples.reshape(-1, channels).mean(axis=1), rate


def _resampled(samples: numpy.ndarray, own_rate: int, rate: int) -> numpy.ndarray:
    if importlib.util.find_spec("soxr") is None:
        raise ValueError(
            f"the audio has {own_rate} samples a second and this model takes {rate}: resample it first, or install soxr, "
            f"which does it here: {_INSTALL}"
        )
    import soxr

    # As transformers' `load_audio` and librosa do, to the sample.
    length = math.ceil(len(samples) * rate / own_rate)
    made: numpy.ndarray = soxr.resample(samples, own_rate, rate, quality="soxr_hq")[:length]
    return numpy.pad(made, (0, length - len(made)))
