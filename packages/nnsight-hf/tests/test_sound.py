"""Sound in every form, compared with what transformers reads and with the samples themselves."""

from __future__ import annotations

import importlib.util
import wave
from pathlib import Path
from typing import Any

import heads
import numpy
import pytest
import torch
import transformers.audio_utils
from packaging.version import Version
from PIL import Image

from nnsight import TransformersModel
from nnsight_hf.tasks import sound

RATE = 100


@pytest.fixture(params=["soundfile", "nothing"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With soundfile, and where it is not installed."""
    if request.param == "soundfile":
        pytest.importorskip("soundfile")
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "soundfile" else find(name))
    return request.param


def whole(seed: int, count: int, width: int, channels: int = 1) -> numpy.ndarray:
    """Samples as whole numbers of so many bytes: [samples, channels]."""
    top = 2 ** (8 * width - 1)
    return numpy.random.default_rng(seed).integers(-top, top, (count, channels))


def saved(path: Path, samples: numpy.ndarray, width: int, rate: int = RATE) -> Path:
    shifted = samples + 128 if width == 1 else samples  # of one byte, they have no sign
    data = b"".join(int(one).to_bytes(width, "little", signed=width > 1) for one in shifted.reshape(-1))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_gives_the_mean_of_its_channels(reader: str, width: int, channels: int, tmp_path: Path) -> None:
    samples = whole(0, 50, width, channels)
    path = saved(tmp_path / "it.wav", samples, width)
    want = (samples / 2 ** (8 * width - 1)).mean(axis=1)
    for given in (path, str(path), path.read_bytes(), {"path": str(path)}):
        numpy.testing.assert_allclose(sound.waveform(given, RATE), want, atol=1e-6)


def test_another_rate_is_resampled_as_transformers_does(tmp_path: Path) -> None:
    pytest.importorskip("soxr")
    pytest.importorskip("soundfile")
    if Version(transformers.__version__) < Version("5.23"):
        pytest.importorskip("librosa")  # what resampled before
    load = transformers.audio_utils.load_audio
    path = saved(tmp_path / "it.wav", whole(0, 501, 2), 2, rate=70)
    numpy.testing.assert_allclose(sound.waveform(path, RATE), load(str(path), sampling_rate=RATE), atol=1e-6)
    assert len(sound.waveform({"raw": numpy.zeros(70), "sampling_rate": 70}, RATE)) == RATE


def test_another_rate_is_refused_where_nothing_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = TransformersModel(heads.module("wav2vec2"), **heads.parts("wav2vec2"))
    with pytest.raises(
        ValueError, match="8000 samples a second and this model takes 100: resample it first, or install"
    ):
        model.trace({"array": heads.wave(0, 90), "sampling_rate": 8000}, trace=False)


def test_only_plain_files_are_read_without_soundfile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "it.flac"
    path.write_bytes(b"fLaC" + bytes(100))
    with pytest.raises(ValueError, match=r"without soundfile only plain WAV files.*pip install 'nnsight-hf\[audio\]'"):
        sound.waveform(path, RATE)


@pytest.mark.parametrize("form", ["path", "array", "raw", "list", "tensor", "bytes"])
def test_a_model_takes_sound_in_every_form(form: str, tmp_path: Path) -> None:
    model = TransformersModel(heads.module("wav2vec2"), task="automatic-speech-recognition", **heads.parts("wav2vec2"))
    samples = whole(3, 90, 2)
    path = saved(tmp_path / "it.wav", samples, 2)
    samples = (samples[:, 0] / 2**15).astype(numpy.float32)
    given: Any = {
        "path": path,
        "bytes": path.read_bytes(),
        "array": {"array": samples, "sampling_rate": RATE, "path": str(path)},
        "raw": {"raw": samples, "sampling_rate": RATE},
        "list": samples.tolist(),
        "tensor": torch.tensor(samples),
    }[form]
    with torch.no_grad():
        want = heads.module("wav2vec2")(**heads.encoded("wav2vec2", samples)).logits
        got = model.trace(given, trace=False).logits
        several = model.trace([given, given], trace=False).logits if form != "list" else got
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(several[-1:], want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("nowhere.wav", FileNotFoundError, "no sound file 'nowhere.wav'.*path of a sound file"),
        (numpy.zeros((2, 90)), ValueError, "one dimension, .samples., and this one has the shape .2, 90."),
        ({"array": None, "sampling_rate": 3}, TypeError, "this dict holds .'array', 'sampling_rate'."),
        (3, TypeError, "reads a waveform .samples.*This is a int: 3"),
        (Image.new("RGB", (4, 4)), TypeError, "reads a waveform"),
        ({"text": "the cat"}, TypeError, "reads a waveform .*This is a str: 'the cat'"),
        ({"sounds": 3}, TypeError, "reads a waveform .*a dict with .'sounds'."),
    ],
)
def test_what_is_no_sound_is_refused_with_what_is(given: Any, error: type[Exception], says: str) -> None:
    model = TransformersModel(heads.module("wav2vec2"), task="automatic-speech-recognition", **heads.parts("wav2vec2"))
    with pytest.raises(error, match=says):
        model.trace(given, trace=False)
