"""A record: what a named tuple of its fields is, but that data is made when it is asked for."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
from pathlib import Path

import pytest

import shmlog
from shmlog import Record

FIELDS = (64, 1_700_000_000_000_000_000, 7, 3, memoryview(b"payload"))


def test_a_record_is_read_by_names_indexes_and_unpacking() -> None:
    record = Record(*FIELDS)
    assert (record.lsn, record.time_ns, record.tag, record.writer, record.data) == FIELDS
    lsn, *_, data = record
    assert (lsn, data) == (64, b"payload")
    assert record[0] == record[-5] == 64
    assert record[-1] == b"payload"
    assert record[1:3] == FIELDS[1:3]
    assert len(record) == 5
    assert record.next_lsn == 128
    assert 7 in record
    with pytest.raises(IndexError):
        record[5]
    with pytest.raises(AttributeError):
        record.lsn = 5
    match record:
        case Record(lsn=64, tag=tag):
            assert tag == 7
        case _:
            raise AssertionError


def test_records_and_tuples_compare_by_their_fields() -> None:
    record, other = Record(*FIELDS), Record(*FIELDS[:4], memoryview(b"other"))
    assert record == Record(*FIELDS) == FIELDS
    assert record != other
    assert record != FIELDS[:4]
    assert record != "record"
    assert Record(0, *FIELDS[1:]) < record
    assert hash(record) == hash(Record(*FIELDS))
    assert record in {FIELDS}


def test_a_record_says_what_a_named_tuple_says() -> None:
    record = Record(*FIELDS)
    assert repr(record).startswith(
        "Record(lsn=64, time_ns=1700000000000000000, tag=7, writer=3, data=<memory"
    )
    assert Record._fields == tuple(record._asdict()) == ("lsn", "time_ns", "tag", "writer", "data")
    assert record._replace(tag=9) == (*FIELDS[:2], 9, *FIELDS[3:])
    assert copy.copy(record) == record
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(record)
    assert pickle.loads(pickle.dumps(record._replace(data=b"bytes"))) == (*FIELDS[:4], b"bytes")
    for wrong in (-1, 1 << 64, "x"):
        with pytest.raises((TypeError, OverflowError, ValueError)):
            record._replace(lsn=wrong)
    with pytest.raises(TypeError):
        Record(1, 2, 3, 4, 5)


@pytest.mark.holds("Q8")
def test_data_outlives_its_record_and_the_log(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=1 << 16) as log:
        log.append(b"kept", tag=2)
        log.wait_committed()
        (record,) = log.read()
        (same,) = log.read()
        assert record.data is record.data
        assert record == same
        assert record.data.readonly
    data = record.data
    del record, same
    gc.collect()
    assert data == b"kept"


def test_records_that_have_gone_leave_their_type_no_references() -> None:
    before = sys.getrefcount(Record)
    for _ in range(100):
        Record(*FIELDS)._replace(lsn=1)
        with pytest.raises(TypeError):
            Record(1)
    assert sys.getrefcount(Record) == before
