"""Arrow: a consumer of the Arrow C interfaces that shares no line with any other.

    with stream(scan) as s:            the capsule is asked for, its structure taken out
        s.columns                      [("lsn", "L"), ("data", "vz"), ...]
        s.rows()                       every batch as tuples of Python values

It follows the letter of the specification: nothing is looked at after its release, and
what is moved is marked as moved.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from typing import Any


class Schema(Structure):
    pass


class Array(Structure):
    pass


class Stream(Structure):
    pass


Schema._fields_ = [
    ("format", c_char_p),
    ("name", c_char_p),
    ("metadata", c_char_p),
    ("flags", c_int64),
    ("n_children", c_int64),
    ("children", POINTER(POINTER(Schema))),
    ("dictionary", POINTER(Schema)),
    ("release", CFUNCTYPE(None, POINTER(Schema))),
    ("private_data", c_void_p),
]
Array._fields_ = [
    ("length", c_int64),
    ("null_count", c_int64),
    ("offset", c_int64),
    ("n_buffers", c_int64),
    ("n_children", c_int64),
    ("buffers", POINTER(c_void_p)),
    ("children", POINTER(POINTER(Array))),
    ("dictionary", POINTER(Array)),
    ("release", CFUNCTYPE(None, POINTER(Array))),
    ("private_data", c_void_p),
]
Stream._fields_ = [
    ("get_schema", CFUNCTYPE(c_int, POINTER(Stream), POINTER(Schema))),
    ("get_next", CFUNCTYPE(c_int, POINTER(Stream), POINTER(Array))),
    ("get_last_error", CFUNCTYPE(c_char_p, POINTER(Stream))),
    ("release", CFUNCTYPE(None, POINTER(Stream))),
    ("private_data", c_void_p),
]

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]


class StreamError(Exception):
    """What a stream said: (errno, text)."""


def inside(capsule: object, name: bytes, kind: Any) -> Any:
    """The structure in a capsule, where it is."""
    return kind.from_address(_get_pointer(capsule, name))


def move(source: Any) -> Any:
    """The structure, taken out: the source is marked as released."""
    kind = type(source)
    taken = kind.from_buffer_copy(source)
    source.release = type(source.release)()
    return taken


def release(held: Any) -> None:
    """As its consumer does: once."""
    assert held.release
    held.release(ctypes.byref(held))
    assert not held.release, "a release marks the structure as released"


def fields(schema: Schema) -> list[tuple[Any, ...]]:
    """(name, format) of each child, and its own fields if it has any."""
    found: list[tuple[Any, ...]] = []
    for n in range(schema.n_children):
        child = schema.children[n].contents
        name, form, inner = child.name.decode(), child.format.decode(), fields(child)
        found.append((name, form, inner) if inner else (name, form))
    return found


_ITEMS = {"c": "b", "C": "B", "s": "h", "S": "H", "i": "i", "I": "I", "l": "q", "L": "Q"}
_ITEMS |= {"e": "e", "f": "f", "g": "d"}


def _bytes(array: Array, number: int, size: int) -> bytes:
    return ctypes.string_at(array.buffers[number], size) if size else b""


def _views(array: Array, length: int) -> list[bytes]:
    assert array.n_buffers == 4
    (room,) = struct.unpack("q", _bytes(array, 3, 8))
    found = []
    for n in range(length):
        view = ctypes.string_at(array.buffers[1] + 16 * n, 16)
        (size,) = struct.unpack_from("i", view)
        if size <= 12:
            assert view[4 + size :] == bytes(12 - size), "what is not used of a view is zero"
            found.append(view[4 : 4 + size])
            continue
        prefix, buffer, at = struct.unpack_from("4sii", view, 4)
        assert buffer == 0 and 0 <= at <= room - size
        value = ctypes.string_at(array.buffers[2] + at, size)
        assert value[:4] == prefix
        found.append(value)
    return found


def values(schema: Schema, array: Array) -> list[Any]:
    """An array's items as Python has them; bytes, numbers, lists, dictionaries, None."""
    form, length = schema.format.decode(), array.length
    assert array.offset == 0 and array.n_children == schema.n_children
    if form == "+s" or form.startswith("+w:"):
        assert array.n_buffers == 1
        parts = [
            values(schema.children[n].contents, array.children[n].contents) for n in range(array.n_children)
        ]
        if form != "+s":
            size = int(form[3:])
            assert len(parts[0]) == length * size
            return [parts[0][n * size : (n + 1) * size] for n in range(length)]
        names = [schema.children[n].contents.name.decode() for n in range(array.n_children)]
        assert all(len(part) == length for part in parts)
        return [dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True)] or [{}] * length
    if form == "vz":
        return _views(array, length)
    assert array.n_buffers == 2
    if form == "b":
        bits = _bytes(array, 1, (length + 7) // 8)
        return [bool(bits[n // 8] >> n % 8 & 1) for n in range(length)]
    if form.startswith("w:"):
        size = int(form[2:])
        return [ctypes.string_at(array.buffers[1] + n * size, size) for n in range(length)]
    item = _ITEMS.get(form, "q")
    found: list[Any] = list(
        struct.unpack(f"{length}{item}", _bytes(array, 1, length * struct.calcsize(item)))
    )
    if array.buffers[0]:
        valid = _bytes(array, 0, (length + 7) // 8)
        found = [each if valid[n // 8] >> n % 8 & 1 else None for n, each in enumerate(found)]
    assert found.count(None) == array.null_count
    return found


class Consumer:
    """One stream, taken out of its capsule."""

    def __init__(self, capsule: object) -> None:
        self.stream = move(inside(capsule, b"arrow_array_stream", Stream))
        self.schema = Schema()
        self._check(self.stream.get_schema(ctypes.byref(self.stream), ctypes.byref(self.schema)))

    def _check(self, error: int) -> None:
        if error:
            text = self.stream.get_last_error(ctypes.byref(self.stream))
            raise StreamError(error, text.decode())

    @property
    def columns(self) -> list[tuple[Any, ...]]:
        return fields(self.schema)

    def next(self) -> Array | None:
        """The next batch, which the caller releases."""
        array = Array()
        self._check(self.stream.get_next(ctypes.byref(self.stream), ctypes.byref(array)))
        return array if array.release else None

    def rows(self) -> Iterator[dict[str, Any]]:
        while (array := self.next()) is not None:
            try:
                yield from values(self.schema, array)
            finally:
                release(array)

    def close(self) -> None:
        release(self.schema)
        release(self.stream)


@contextlib.contextmanager
def stream(exporter: Any) -> Iterator[Consumer]:
    """Consume an exporter's stream; everything is released at the end."""
    consumer = Consumer(exporter.__arrow_c_stream__())
    try:
        yield consumer
    finally:
        consumer.close()


def rows(exporter: Any) -> list[tuple[Any, ...]]:
    """All rows of an exporter, as tuples."""
    with stream(exporter) as consumer:
        return [tuple(row.values()) for row in consumer.rows()]


def batch_rows(batch: Any) -> list[tuple[Any, ...]]:
    """All rows of what has __arrow_c_array__."""
    schema_capsule, array_capsule = batch.__arrow_c_array__()
    schema = move(inside(schema_capsule, b"arrow_schema", Schema))
    array = move(inside(array_capsule, b"arrow_array", Array))
    try:
        return [tuple(row.values()) for row in values(schema, array)]
    finally:
        release(schema)
        release(array)
