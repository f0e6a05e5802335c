"""Errors cross a process boundary whole, and say whose fault it was."""

from __future__ import annotations

import copy
import pickle

import pytest

import shmlog
from shmlog import errors

EXAMPLES = [
    errors.ShmlogError("something"),
    errors.CorruptionError("/log/segments/0.seg", 4096, "the checksum does not match"),
    errors.FormatError("not a log"),
    errors.LogFullError("no room"),
    errors.LogFailedError(5, 1024),
    errors.LogFailedError(0, 1024, "the file was changed"),
    errors.TrimmedError(32, 64),
    errors.ClosedError("closed"),
    errors.AttachError("foreign"),
    errors.RecordTooLargeError("too large"),
    errors.RestartUnclearError("/log/segments/0.seg", 4096),
    errors.SourceDivergedError(4096, "another record is at LSN 4032"),
    errors.FencedError(4096, "0123456789abcdef"),
    errors.NetworkFileSystemWarning("on nfs4"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_an_error_survives_pickling_with_its_values(error: Exception, carry) -> None:  # type: ignore[no-untyped-def]
    arrived = carry(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_every_error_class_is_public_and_has_an_example() -> None:
    classes = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    }
    assert classes == {type(error) for error in EXAMPLES}
    assert all(getattr(shmlog, kind.__name__) is kind for kind in classes)


def test_the_messages_carry_the_values_that_disagree() -> None:
    assert "0.seg: damaged at LSN 4096: the checksum" in str(EXAMPLES[1])
    assert "Input/output error" in str(EXAMPLES[4])
    assert "1024" in str(EXAMPLES[4])
    assert "LSN 32" in str(EXAMPLES[6])
    assert "64" in str(EXAMPLES[6])


def test_an_errno_that_no_system_has_is_told_as_it_is() -> None:
    assert "Unknown error 18446744073709551615" in str(errors.LogFailedError(2**64 - 1, 0))


def test_a_record_too_large_is_the_callers_fault() -> None:
    assert issubclass(errors.RecordTooLargeError, ValueError)
    assert not issubclass(errors.RecordTooLargeError, errors.ShmlogError)
