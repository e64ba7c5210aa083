"""The header of a GGUF file: its metadata and where its tensors lie, read in milliseconds.

The reader of the gguf package makes an object of every word of the vocabulary, which takes seconds, and says of a
damaged file what numpy happens to stumble over.
"""

import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from demur.errors import ModelError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_LONGEST = 1 << 30
"""No count or length in a header is larger: one that is says that the file is damaged."""


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies."""

    name: str
    shape: tuple[int, ...]
    """As in torch: rows first."""
    type: str
    """F32, Q4_K, ..."""
    start: int
    """In bytes from the start of the file."""
    size: int
    """In bytes."""

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def block(self) -> int | None:
        """The number of its decoder block."""
        found = re.match(r"blk\.(\d+)\.", self.name)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself; arrays of the metadata are left out."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """As llama.cpp names it: llama, qwen2, gemma3."""
        return str(self.metadata["general.architecture"])

    @property
    def tensor_types(self) -> set[str]:
        """The types of all tensors."""
        return {tensor.type for tensor in self.tensors}


def read_header(path: Path, name: str) -> GgufHeader:
    """Read a header, and check that the file is as long as it says.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        ModelError: it is no GGUF file, of a version that is not read, damaged, or cut off.
    """
    try:
        with path.open("rb") as file:
            header = _read(file, name)
    except (struct.error, UnicodeDecodeError, KeyError, EOFError) as error:
        raise ModelError(
            f"{name} is damaged or incomplete: its header cannot be read to the end. Download it again."
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read {name}: {error.strerror or error}.") from error
    end, length = max((tensor.start + tensor.size for tensor in header.tensors), default=0), path.stat().st_size
    if length < end:
        raise ModelError(
            f"{name} is incomplete: it has {length:,} bytes, and its header says that there are {end:,}. Download it "
            "again."
        )
    return header


def _read(file: BinaryIO, name: str) -> GgufHeader:
    magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{name} is no GGUF file (it begins with {magic!r}, not b'GGUF'). Give another file.")
    (version,) = _unpack(file, "<I")
    if version not in _VERSIONS:
        raise ModelError(
            f"{name} is a GGUF file of version {version}, and only versions 2 and 3 in little-endian order are read. "
            "Convert it with a current llama.cpp."
        )
    n_tensors, n_entries = _unpack(file, "<QQ")
    metadata: dict[str, Any] = {}
    for _ in range(_sane(n_entries)):
        key = _string(file)
        value = _value(file, _unpack(file, "<I")[0])
        if value is not None:
            metadata[key] = value
    if "general.architecture" not in metadata:
        raise ModelError(f"{name} is a GGUF file that does not say its architecture (general.architecture).")
    entries = [_tensor_entry(file) for _ in range(_sane(n_tensors))]
    alignment = metadata.get("general.alignment", 32)
    data = -(-file.tell() // alignment) * alignment
    return GgufHeader(metadata, tuple(_tensor(entry, data, name) for entry in entries))


def _tensor_entry(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = _string(file)
    (n_dimensions,) = _unpack(file, "<I")
    dimensions = _unpack(file, f"<{_sane(n_dimensions)}Q")
    kind, offset = _unpack(file, "<IQ")
    return name, dimensions[::-1], kind, offset


def _tensor(entry: tuple[str, tuple[int, ...], int, int], data: int, file: str) -> GgufTensor:
    # Optional: `demur[gguf]`.
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    name, shape, number, offset = entry
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise ModelError(
            f"{file} holds tensors of a type ({number}) that the installed package gguf does not know. Type: pip "
            "install --upgrade gguf"
        ) from None
    elements, size = GGML_QUANT_SIZES[kind]
    return GgufTensor(name, shape, kind.name, data + offset, prod(shape) // elements * size)


def _value(file: BinaryIO, kind: int) -> Any:
    """One value of the metadata; None for an array, which is skipped."""
    if kind in _SCALARS:
        return _unpack(file, _SCALARS[kind])[0]
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        raise KeyError(kind)
    element, count = _unpack(file, "<IQ")
    if element in _SCALARS:
        file.seek(struct.calcsize(_SCALARS[element]) * _sane(count), 1)
        return None
    for _ in range(_sane(count)):
        if element == _STRING:
            file.seek(_sane(_unpack(file, "<Q")[0]), 1)
        else:
            _value(file, element)
    return None


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    return file.read(_sane(length)).decode("utf-8")


def _unpack(file: BinaryIO, pattern: str) -> tuple[Any, ...]:
    return struct.unpack(pattern, file.read(struct.calcsize(pattern)))


def _sane(number: int) -> int:
    if number > _LONGEST:
        raise EOFError
    return number
