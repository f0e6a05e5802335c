"""What two origins tell: every pair of witnesses, wrong ones too."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from shmlog.format.origin import BOOTS, TOLERANCE_NS, Clocks, Origin, Since, compare_clocks, since

RECORD = Path(__file__).parents[3] / "docs/decisions/0015-a-mark-names-its-origin.md"
OTHER_ID = bytes(range(16))
HOUR_NS = 3600 * 10**9
THEN = Origin(b"b" * 16, True, 1_700_000_000 * 10**9, HOUR_NS, 7, 8, 9)
LATER = THEN.at(THEN.started_ns, THEN.up_ns + HOUR_NS)
CLOCKS = {
    Clocks.SAME: LATER,
    Clocks.BACK: THEN.at(THEN.started_ns + 2 * HOUR_NS, HOUR_NS // 60),
    Clocks.OTHER: LATER.at(LATER.started_ns + 2 * HOUR_NS, LATER.up_ns),
    Clocks.UNKNOWN: THEN.at(0, 0),
}


@pytest.mark.parametrize("clocks", list(Clocks))
def test_each_finding_of_the_clocks_has_its_readings(clocks: Clocks) -> None:
    assert compare_clocks(THEN, CLOCKS[clocks]) is clocks


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (LATER.at(LATER.started_ns + TOLERANCE_NS, LATER.up_ns), Clocks.SAME),
        (LATER.at(LATER.started_ns - TOLERANCE_NS, LATER.up_ns), Clocks.SAME),
        (LATER.at(LATER.started_ns + TOLERANCE_NS + 1, LATER.up_ns), Clocks.OTHER),
        (LATER.at(0, LATER.up_ns), Clocks.UNKNOWN),
        (LATER.at(0, THEN.up_ns - 1), Clocks.BACK),
        (LATER.at(THEN.started_ns, THEN.up_ns), Clocks.SAME),
    ],
)
def test_the_clocks_are_believed_within_their_tolerance_and_as_far_as_they_were_set(
    now: Origin, expected: Clocks
) -> None:
    assert compare_clocks(THEN, now) is expected


@pytest.mark.parametrize("clocks", list(Clocks))
@pytest.mark.parametrize("boot_id", [THEN.boot_id, OTHER_ID], ids=["same id", "another id"])
def test_the_kernels_own_boot_ids_decide_alone(clocks: Clocks, boot_id: bytes) -> None:
    expected = Since.SAME_BOOT if boot_id == THEN.boot_id else Since.RESTARTED
    assert since(THEN, replace(CLOCKS[clocks], boot_id=boot_id)) is expected


@pytest.mark.parametrize("clocks", list(Clocks))
@pytest.mark.parametrize("boot_id", [THEN.boot_id, OTHER_ID], ids=["same id", "another id"])
@pytest.mark.parametrize("kernels", [(True, False), (False, True), (False, False)])
def test_a_containers_boot_id_is_believed_only_as_far_as_the_clocks_bear_it_out(
    clocks: Clocks, boot_id: bytes, kernels: tuple[bool, bool]
) -> None:
    then = replace(THEN, kernels=kernels[0])
    now = replace(CLOCKS[clocks], boot_id=boot_id, kernels=kernels[1])
    assert since(then, now) is BOOTS[boot_id == THEN.boot_id, clocks]


def test_another_boot_id_is_no_restart_unless_the_time_since_the_start_went_back() -> None:
    assert [key for key, found in BOOTS.items() if found is Since.RESTARTED] == [
        (True, Clocks.BACK),
        (False, Clocks.BACK),
    ]


def test_whoever_knows_is_believed_but_does_not_move_the_place() -> None:
    for now in CLOCKS.values():
        unknown = replace(now, boot_id=OTHER_ID, kernels=False)
        assert since(THEN, unknown, restarted=True) is Since.RESTARTED
        assert since(THEN, unknown, restarted=False) is Since.SAME_BOOT
        for restarted in (True, False, None):
            assert since(THEN, replace(unknown, inode=1), restarted) is Since.COPIED


@pytest.mark.parametrize("field", ["inode", "born_ns"])
def test_another_file_or_another_birth_of_it_is_another_place_whatever_the_machine(field: str) -> None:
    for clocks, boot_id, kernels in itertools.product(Clocks, (THEN.boot_id, OTHER_ID), (True, False)):
        now = replace(CLOCKS[clocks], boot_id=boot_id, kernels=kernels, **{field: 1})
        assert since(THEN, now) is Since.COPIED


def test_a_snapshot_is_another_place_until_a_restart() -> None:
    """Of a file system whose name is its device's number, that may change then."""
    assert since(THEN, replace(LATER, file_system=1)) is Since.COPIED
    assert since(THEN, replace(LATER, file_system=1, boot_id=OTHER_ID)) is Since.RESTARTED


def test_a_mark_that_knows_no_place_was_written_in_another() -> None:
    assert since(replace(THEN, inode=0), replace(LATER, inode=0)) is Since.COPIED


def test_the_decision_record_shows_what_the_clocks_decide() -> None:
    lines = [line for line in RECORD.read_text().splitlines() if line.startswith(("| same |", "| another |"))]
    shown = {}
    for line in lines:
        boot_id, clocks, found, *_ = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        shown[boot_id == "same", Clocks[clocks]] = Since(found)
    assert shown == BOOTS
