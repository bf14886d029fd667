"""The head of a GGUF file: metadata and the table of tensors, without their data.

The form is that of ggml's docs/gguf.md, versions 2 and 3. Package gguf's own reader makes an array
of every string and takes ten seconds for a vocabulary of 150,000 tokens; these are walked over.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from foreal_core.errors import ModelLoadError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i"},
    **{6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
_STRING, _ARRAY = 8, 9
# Longer arrays are vocabularies.
_LONGEST_ARRAY = 1024
_PART = re.compile(r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor.

    Attributes:
        shape: rows of its matrices last.
        bytes: in the file, with what aligns the next.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def size(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


@dataclass(frozen=True)
class GGUFHeader:
    """The head of a file and of the parts that belong to it.

    Attributes:
        metadata: by key, arrays of vocabularies left out.
        tensors: of all parts.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the kind of model."""
        return str(self.metadata.get("general.architecture", ""))

    def value(self, name: str, default: Any = None) -> Any:
        """A value of the architecture's own: "block_count", "attention.head_count", ..."""
        return self.metadata.get(f"{self.architecture}.{name}", default)


def read_header(given: str, path: Path) -> GGUFHeader:
    """Reads the head of a model's file, or of its first part and all others.

    Args:
        given: what the message calls the file: "the leader 'x.gguf'".

    Raises:
        ModelLoadError: there is no such file, it is no GGUF file, cut off, or a later part of one;
            a part is missing.
    """
    if not path.is_file():
        raise ModelLoadError(f"{given} does not exist: there is no file {str(path)!r}.")
    parts = _parts(given, path)
    heads = [_read(given, part) for part in parts]
    return GGUFHeader(heads[0].metadata, tuple(one for head in heads for one in head.tensors))


def _parts(given: str, path: Path) -> list[Path]:
    named = _PART.match(path.name)
    if named is None:
        return [path]
    stem, count = named["stem"], int(named["parts"])
    files = [path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    if int(named["part"]) != 1:
        raise ModelLoadError(
            f"{given} is part {int(named['part'])} of {count}. Give the first, "
            f"{str(files[0])!r}: the others are found beside it."
        )
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelLoadError(
            f"{given} is the first of {count} parts, and {', '.join(missing)} is not beside it. "
            "Download all parts into one folder."
        )
    return files


def _read(given: str, path: Path) -> GGUFHeader:
    with path.open("rb") as file:
        head = file.read(4)
        if head != _MAGIC:
            raise ModelLoadError(
                f"{given} is no GGUF file: {path.name} begins with {head!r} and not with {_MAGIC!r}"
                ". Check that it was downloaded as a whole, and that it is no pointer of Git LFS."
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(given, data)
            except (struct.error, LookupError) as error:
                raise _cut_off(given, len(data)) from error


def _parse(given: str, data: mmap.mmap) -> GGUFHeader:
    version, tensors, pairs = struct.unpack_from("<IQQ", data, 4)
    if version not in _VERSIONS:
        raise ModelLoadError(
            f"{given} is of GGUF version {version}; versions 2 and 3 are read. Convert the model "
            "anew with a current llama.cpp."
        )
    place = 24
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key, place = _string(data, place)
        (kind,) = struct.unpack_from("<I", data, place)
        metadata[key], place = _value(data, place + 4, kind)
    table: list[tuple[str, tuple[int, ...], int]] = []
    for _ in range(tensors):
        name, place = _string(data, place)
        (dimensions,) = struct.unpack_from("<I", data, place)
        shape = struct.unpack_from(f"<{dimensions}Q", data, place + 4)
        place += 4 + 8 * dimensions
        _, offset = struct.unpack_from("<IQ", data, place)
        place += 12
        table.append((name, shape, offset))
    alignment = metadata.get("general.alignment", 32)
    start = -(-place // alignment) * alignment
    ends = [*sorted(offset for _, _, offset in table), len(data) - start]
    following = dict(pairwise(ends))
    if len(ends) > 1 and ends[-1] <= ends[-2]:
        raise _cut_off(given, len(data))
    return GGUFHeader(
        metadata,
        tuple(TensorInfo(name, shape, following[at] - at) for name, shape, at in table),
    )


def _cut_off(given: str, size: int) -> ModelLoadError:
    return ModelLoadError(
        f"{given} ends too early, after {size} bytes: the file was cut off. Download it again."
    )


def _string(data: mmap.mmap, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    end = place + 8 + length
    if end > len(data):
        raise IndexError(end)
    return data[place + 8 : end].decode("utf-8", "replace"), end


def _value(data: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _string(data, place)
    if kind != _ARRAY:
        form = _SCALARS[kind]
        (value,) = struct.unpack_from(form, data, place)
        return value, place + struct.calcsize(form)
    inner, count = struct.unpack_from("<IQ", data, place)
    place += 12
    if inner not in (_STRING, _ARRAY) and count > _LONGEST_ARRAY:
        return None, place + count * struct.calcsize(_SCALARS[inner])
    values = []
    for index in range(count):
        if inner == _STRING and index >= _LONGEST_ARRAY:
            (length,) = struct.unpack_from("<Q", data, place)
            place += 8 + length
            continue
        value, place = _value(data, place, inner)
        values.append(value)
    return values, place
