"""Arrow: which columns an Arrow export has, and where in a record each comes from.

    dtype  {"price": f8, "at": (f4, 2)}       columns  lsn time_ns tag writer price at
    nodes  struct(lsn, time_ns, tag, writer, price <- 8 bytes at 0, list of 2(<- 4 bytes at 8))

A node is (name, Arrow's format, children, kind, offset, item_bytes, items): what the core
makes a column from, in pre-order, the root first.

This module knows dtypes and Arrow's formats.  It may not know where records are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shmlog import _native

if TYPE_CHECKING:
    import numpy.typing as npt

Node = tuple[str, str, int, int, int, int, int]

_RECORD: Final = {
    "lsn": ("L", _native.NODE_LSN),
    "time_ns": ("l", _native.NODE_TIME_NS),
    "tag": ("I", _native.NODE_TAG),
    "writer": ("S", _native.NODE_WRITER),
    "nbytes": ("I", _native.NODE_NBYTES),
    "data": ("vz", _native.NODE_DATA),
}
"""What every record has, its format and how it is made."""

RECORD_COLUMNS: Final = ("lsn", "time_ns", "tag", "writer", "data")
"""Those that are exported unless others are asked for."""

_FORMATS: Final = {
    "i1": "c",
    "u1": "C",
    "i2": "s",
    "u2": "S",
    "i4": "i",
    "u4": "I",
    "i8": "l",
    "u8": "L",
    "f2": "e",
    "f4": "f",
    "f8": "g",
}
_UNITS: Final = {"s": "s", "ms": "m", "us": "u", "ns": "n"}


def _root(columns: Iterable[Sequence[Node]]) -> tuple[Node, ...]:
    trees = list(columns)
    root = ("", "+s", len(trees), _native.NODE_STRUCT, 0, 0, 1)
    return (root, *(node for tree in trees for node in tree))


def _record_column(name: str) -> list[Node]:
    form, kind = _RECORD[name]
    return [(name, form, 0, kind, 0, 0, 1)]


RECORD_NODES: Final = _root(map(_record_column, RECORD_COLUMNS))


def _scalar(name: str, kind: np.dtype[Any], offset: int, items: int) -> Node:
    """The node of items of a plain dtype; TypeError if Arrow has no such type."""
    size, code = kind.itemsize, kind.kind
    swapped = kind.byteorder == ">"
    if code in "iuf" and (form := _FORMATS.get(f"{code}{size}")):
        return name, form, 0, _native.NODE_SWAPPED if swapped else _native.NODE_COPY, offset, size, items
    if code == "b":
        return name, "b", 0, _native.NODE_BITS, offset, 1, items
    if code in "mM" and not swapped:
        unit, count = np.datetime_data(kind)
        if unit in _UNITS and count == 1:
            form = f"ts{_UNITS[unit]}:" if code == "M" else f"tD{_UNITS[unit]}"
            return name, form, 0, _native.NODE_INSTANTS, offset, size, items
    if code == "V":
        return name, f"w:{size}", 0, _native.NODE_COPY, offset, size, items
    if code == "S" and items == 1:
        return name, "vz", 0, _native.NODE_BYTES, offset, size, items
    raise TypeError(f"{name or 'the dtype'}: {kind} has no Arrow type here; view it with array()")


def _tree(name: str, kind: np.dtype[Any], offset: int) -> list[Node]:
    """The nodes of one value of the dtype, at so many bytes into the payload."""
    if kind.names is not None:
        root = (name, "+s", len(kind.names), _native.NODE_STRUCT, 0, 0, 1)
        return [root, *(node for tree in _fields(kind, offset) for node in tree)]
    if kind.base.names is not None:
        raise TypeError(f"{name or 'the dtype'}: an array of structures has no Arrow type here")
    lists: list[Node] = [
        (
            name if depth == 0 else "item",
            f"+w:{length}",
            1,
            _native.NODE_LIST,
            0,
            0,
            math.prod(kind.shape[:depth]),
        )
        for depth, length in enumerate(kind.shape)
    ]
    return [*lists, _scalar("item" if lists else name, kind.base, offset, math.prod(kind.shape))]


def _fields(kind: np.dtype[Any], offset: int) -> list[list[Node]]:
    return [_field(kind, name, offset) for name in kind.names or ()]


def _field(kind: np.dtype[Any], name: str, offset: int = 0) -> list[Node]:
    assert kind.fields is not None
    return _tree(name, kind.fields[name][0], offset + kind.fields[name][1])


def nodes_of(dtype: npt.DTypeLike | None, columns: Iterable[str] | None) -> tuple[tuple[Node, ...], int]:
    """(the nodes, the size that every payload must have or -1) of payloads of this dtype.

    A structured dtype's fields are columns of their own; any other is the column data. A
    field goes before the record's own column of that name. ValueError for a name that is
    neither, TypeError for what has no Arrow type.
    """
    if isinstance(columns, str):
        raise TypeError(f"columns must be names, not the one string {columns!r}")
    if dtype is None:
        names = list(RECORD_COLUMNS if columns is None else columns)
        return _root(_record_column(name) for name in _known(names, ())), -1
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"a dtype with Python objects cannot be stored: {kind}")
    fields = ("data",) if kind.names is None else kind.names
    if columns is None:
        names = [name for name in RECORD_COLUMNS if name != "data" and name not in fields]
        names += fields
    else:
        names = list(columns)
    trees = []
    for name in _known(names, fields):
        if name not in fields:
            trees.append(_record_column(name))
        else:
            trees.append(_tree(name, kind, 0) if kind.names is None else _field(kind, name))
    return _root(trees), kind.itemsize


def _known(names: list[str], fields: Sequence[str]) -> list[str]:
    for name in names:
        if name not in fields and name not in _RECORD:
            raise ValueError(f"there is no column {name!r}; there are {sorted({*_RECORD, *fields})}")
    return names
