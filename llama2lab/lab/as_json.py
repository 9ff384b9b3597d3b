"""Values as JSON and back: all that passes between a check and the process in which a student's code runs.

Numbers, text, lists, dictionaries, numpy arrays and tensors arrive as what they are, without anything that was attached
to them: of a subclass of Tensor its numbers arrive, not its methods. Nothing is unpickled.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128"
DTYPES = {name: getattr(torch, name) for name in KINDS.split()}
_DOUBLE, _NUMPY = Tensor.double, Tensor.numpy  # a notebook may put others into their places
LONGEST = 2**24  # bytes of one array
DIGITS = 1000  # bits of a whole number; Python refuses to read much longer ones


def array_of(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor, in double precision."""
    return _NUMPY(_DOUBLE(tensor.detach().cpu()))


class Foreign:
    """Stands for a value that is not data. Its class bears the name of the value's class."""

    def __str__(self) -> str:
        return f"<{type(self).__name__}>"

    __repr__ = __str__


def text_of(text: str) -> str:
    """Text that any file and any page can hold: half characters (lone surrogates) become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def pack(value: Any) -> Any:
    """The value as JSON can hold it. What is not data is packed by the name of its class alone."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Tensor):
        return _pack_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        array = _sized(np.asarray(value), value.nbytes)
        return _pack_array(array) if array.dtype.kind in "biufc" else pack(array.tolist())
    if isinstance(value, str):
        return text_of(str(value))
    if isinstance(value, int) and value.bit_length() <= DIGITS:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, complex):
        return {"complex": [pack(value.real), pack(value.imag)]}
    if isinstance(value, list):
        return [pack(v) for v in _sized(value, 16 * len(value))]
    if isinstance(value, tuple):
        return {"tuple": [pack(v) for v in _sized(value, 16 * len(value))]}
    if isinstance(value, Mapping):
        return {"dict": [[pack(k), pack(v)] for k, v in value.items()]}
    for convert in (torch.as_tensor, float):  # whatever holds numbers: a range, a fraction, a table of another library
        try:
            return pack(convert(value))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    return {"foreign": text_of(type(value).__name__)}


def _sized(value: Any, bytes_: int) -> Any:
    if bytes_ > LONGEST:
        what = f"a list of {len(value):,}" if isinstance(value, list | tuple) else f"numbers of shape {(*value.shape,)}"
        raise ValueError(f"{what} is too much for an answer; compare it with the task")
    return value


def _pack_array(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"array": array.dtype.str, "shape": list(array.shape), "data": data}


def _pack_tensor(value: Tensor) -> dict[str, Any]:
    with torch._C.DisableTorchFunctionSubclass():
        value = _sized(value.detach().cpu(), value.nbytes)
        value = value.dequantize() if value.is_quantized else value
        value = (value if value.layout == torch.strided else value.to_dense()).resolve_conj().resolve_neg()
        name = str(value.dtype).removeprefix("torch.")
        if name not in DTYPES:
            name, value = "float64", value.double()
        # numpy knows no bfloat16
        return {"tensor": name, "numbers": _pack_array((value.float() if name == "bfloat16" else value).numpy())}


def unpack(value: Any) -> Any:
    """The value that was packed.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError, RecursionError: nothing that `pack` has made.
    """
    if isinstance(value, list):
        return [unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    kind, held = next(iter(value.items()))
    if kind == "tensor":
        return torch.from_numpy(np.asarray(unpack(value["numbers"]))).to(DTYPES[held])
    if kind == "array":
        dtype = np.dtype(held)
        if dtype.kind not in "biufc":
            raise ValueError(f"an array of {held}")
        array = np.ndarray(value["shape"], dtype, bytearray(base64.b64decode(value["data"])))
        # Bools from other bytes than 0 and 1 are neither true nor false to torch.
        return (array.view(np.uint8) != 0 if dtype.kind == "b" else array)[()]
    if kind == "float":
        return float(held)
    if kind == "complex":
        return complex(*map(unpack, held))
    if kind == "tuple":
        return tuple(map(unpack, held))
    if kind == "dict":
        return {unpack(k): unpack(v) for k, v in held}
    if kind == "foreign":
        return type(held, (Foreign,), {})()
    raise ValueError(f"a value of kind {kind!r}")
