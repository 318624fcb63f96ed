"""Weights in fewer bits: asked for by name, and reported as they really are.

A name (`dtype="nf4"`) stands for a configuration of transformers that runs on the hardware at hand. transformers turns
some quantised checkpoints back into full precision where it has no kernels, with a line in its log; here that is
refused unless it was asked for, and what was loaded is counted from the modules and not from the configuration.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nnsight import LoadError

#: What installs what the names need.
_INSTALL = "pip install 'nnsight-hf[quantization]'"

#: Types that hold packed or narrow numbers when parameters or buffers have them.
_NARROW = {torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2}


def _needs(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"dtype={name!r} needs {package}, which is not installed: {_INSTALL}")


def _eight_bits(_: Any) -> Any:
    from transformers import BitsAndBytesConfig

    _needs("bitsandbytes", "int8")
    return BitsAndBytesConfig(load_in_8bit=True)


def _four_bits(kind: str) -> Callable[[Any], Any]:
    def make(_: Any) -> Any:
        from transformers import BitsAndBytesConfig

        _needs("bitsandbytes", kind)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind)

    return make


def _four_bit_integers(_: Any) -> Any:
    from transformers import QuantoConfig

    _needs("optimum", "int4")
    return QuantoConfig(weights="int4")


def _floats(device_map: Any) -> Any:
    from transformers import TorchAoConfig

    # Kernels for blocks of float8 need a GPU of compute capability 8.9; weights alone in float8 run anywhere.
    if device_map not in (None, "cpu") and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9):
        from transformers import FineGrainedFP8Config

        return FineGrainedFP8Config()
    _needs("torchao", "fp8")
    from torchao.quantization import Float8WeightOnlyConfig

    return TorchAoConfig(Float8WeightOnlyConfig())


#: The names, and what makes the configuration of each.
NAMES: dict[str, Callable[[Any], Any]] = {
    "int8": _eight_bits,
    "int4": _four_bit_integers,
    "nf4": _four_bits("nf4"),
    "fp4": _four_bits("fp4"),
    "fp8": _floats,
}


def named(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a model in which a quantisation's name, given as the type, is its configuration.

    Raises:
        ValueError: the type is neither a type of torch nor a name.
        TypeError: a name and a configuration were given.
    """
    key = "dtype" if options.get("dtype") is not None else "torch_dtype"
    name = options.get(key)
    if not isinstance(name, str) or name == "auto":
        return options
    if name not in NAMES:
        if isinstance(getattr(torch, name, None), torch.dtype) and getattr(torch, name).is_floating_point:
            return options
        raise ValueError(
            f"dtype={name!r} is not known: give a floating-point type of torch ('bfloat16', torch.float16), 'auto', or one "
            f"of {', '.join(NAMES)}; for anything else pass transformers' `quantization_config=`"
        )
    if options.get("quantization_config") is not None:
        raise TypeError(f"dtype={name!r} names a quantisation, and `quantization_config=` is another: give one of them")
    rest = {other: value for other, value in options.items() if other != key}
    return {**rest, "quantization_config": NAMES[name](options.get("device_map"))}


def refuse_silent_dequantization(config: Any, options: dict[str, Any]) -> None:
    """Raise if transformers would load a quantised checkpoint in full precision here, and nobody asked for that."""
    from transformers.quantizers import AutoHfQuantizer, AutoQuantizationConfig

    said = getattr(config, "quantization_config", None)
    if said is None:
        return
    checkpoint = (
        AutoQuantizationConfig.from_dict(copy.deepcopy(said)) if isinstance(said, dict) else copy.deepcopy(said)
    )
    asked = options.get("quantization_config")
    if getattr(checkpoint, "dequantize", None) is not False or getattr(asked, "dequantize", False):
        return
    # relies on: HfQuantizer.validate_environment setting `dequantize`, transformers 5.23
    quantizer = AutoHfQuantizer.from_config(checkpoint, pre_quantized=True)
    quantizer.validate_environment(device_map=options.get("device_map"), weights_only=True)
    if quantizer.quantization_config.dequantize:
        kind = type(checkpoint).__name__
        raise LoadError(
            f"the checkpoint is quantised ({checkpoint.quant_method}) and this machine has nothing that runs it, so that "
            "transformers would load it in bfloat16: another model than was asked for, and several times as large. "
            f"If you want that, pass quantization_config=transformers.{kind}(dequantize=True)."
        )


@dataclass(frozen=True)
class Quantization:
    """What of a model is quantised.

    Attributes:
        method: transformers' name of the method.
        bits: how many a weight takes, scales included, in the mean over the quantised modules.
        modules: the paths of the quantised modules.
        kept: the paths of the linear layers that are not.
        bytes: what parameters and buffers of the whole model take.
    """

    method: str
    bits: float
    modules: tuple[str, ...]
    kept: tuple[str, ...]
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.method}: {len(self.modules)} modules at {self.bits:.1f} bits a weight, "
            f"{len(self.kept)} linear layers as they were ({', '.join(self.kept) or 'none'}), {self.bytes:,} bytes in all"
        )


def report(module: torch.nn.Module) -> Quantization | None:
    """Say what of a loaded model is quantised; None if nothing is."""
    quantised, kept, bits, weights = [], [], 0, 0
    for path, part in module.named_modules():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if any(is_narrow(tensor) for tensor in own):
            quantised.append(path)
            bits += 8 * sum(size(tensor) for tensor in own)
            weights += _weights(part, own)
        elif isinstance(part, torch.nn.Linear):
            kept.append(path)
    if not quantised:
        return None
    quantizer: Any = getattr(module, "hf_quantizer", None)
    said = getattr(getattr(quantizer, "quantization_config", None), "quant_method", "unknown")
    total = sum(size(tensor) for tensor in {id(t): t for t in (*module.parameters(), *module.buffers())}.values())
    return Quantization(getattr(said, "value", said), bits / max(weights, 1), tuple(quantised), tuple(kept), total)


def is_narrow(tensor: torch.Tensor) -> bool:
    """Say whether a tensor holds numbers in fewer bits than they are computed in."""
    if hasattr(tensor, "__tensor_flatten__"):
        return any(inner.dtype in _NARROW for inner in _parts(tensor))
    return tensor.dtype in _NARROW and tensor.dim() > 1


def _parts(tensor: Any) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that a tensor of another class is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def size(tensor: Any) -> int:
    """Return how many bytes a tensor takes, with the scales that bitsandbytes hangs on it."""
    bytes_ = sum(part.numel() * part.element_size() for part in _parts(tensor))
    state = getattr(tensor, "quant_state", None)
    for scale in (getattr(state, "absmax", None), getattr(state, "code", None), getattr(tensor, "SCB", None)):
        bytes_ += 0 if scale is None else scale.numel() * scale.element_size()
    return bytes_


def _weights(part: Any, own: list[torch.Tensor]) -> int:
    """Return how many weights a quantised module has; packed storage shows fewer."""
    if hasattr(part, "in_features") and hasattr(part, "out_features"):
        return int(part.in_features) * int(part.out_features)
    return sum(tensor.numel() for tensor in own if is_narrow(tensor))


def check(module: torch.nn.Module, options: dict[str, Any]) -> None:
    """Raise if a quantisation was asked for and nothing in the loaded model is quantised."""
    asked = options.get("quantization_config")
    if asked is None or getattr(asked, "dequantize", False) or report(module) is not None:
        return
    raise LoadError(
        f"a quantisation was asked for ({type(asked).__name__}), and of the loaded {type(module).__name__} nothing is "
        "quantised: it has no linear layers that the method takes. Load it without."
    )
