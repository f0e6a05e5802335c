"""Time-outs as people write them, and looking again until a deadline."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest

from shmlog.system.deadlines import check_timeout, deadline_after, poll


@pytest.mark.parametrize("seconds", [0, 1, 2.5, np.float32(0.5), np.int64(3), Fraction(1, 4)])
def test_a_number_of_seconds_is_taken(seconds: object) -> None:
    assert check_timeout(seconds) == float(seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 10**400, 1e9])
def test_longer_than_anybody_waits_is_for_ever(seconds: object) -> None:
    assert check_timeout(seconds) == 1e9


@pytest.mark.parametrize("seconds", [-1, -1e-9, float("nan"), -(10**400)])
def test_a_negative_time_is_refused_by_its_name(seconds: object) -> None:
    with pytest.raises(ValueError, match="sync_interval must not be negative"):
        check_timeout(seconds, "sync_interval")


@pytest.mark.parametrize("seconds", ["1", None, True, [1], 1j])
def test_what_is_no_number_is_refused_by_its_type(seconds: object) -> None:
    with pytest.raises(TypeError, match=f"timeout must be a number of seconds, not {type(seconds).__name__}"):
        check_timeout(seconds)


def test_a_look_that_succeeds_is_the_last() -> None:
    looks = iter([False, False, True])
    assert poll(lambda: next(looks), deadline_after(30), pause_s=0)
    assert next(looks, "none is left") == "none is left"


def test_a_deadline_that_has_passed_allows_one_look() -> None:
    looks = []
    assert not poll(lambda: bool(looks.append(1)), time.monotonic() - 1)
    assert looks == [1]
