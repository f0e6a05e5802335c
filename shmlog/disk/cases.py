"""Cases: what a dead log can be found as, and what is done, as one table.

The newest mark vouches for all below it, and p is the first frame that is not valid.
What is valid above p was appended for certain.  It is kept if the page cache that the
writers stored into is the one that is read, for p is a dead writer's hole then.  After
a restart it goes, for what lay at p may be lost, and records are a prefix, never an
island.  In another place p may be either, or a file that was copied too early; and
where nobody knows whether the machine restarted (format.origin), keeping could make an
island and dropping could lose appends that returned.  There nothing is touched.

Invariants
  J1  Whatever the facts are, exactly one row matches.
  J2  Nothing that was valid is dropped unless the machine restarted for certain, and
      no hole is filled unless it is certain that it did not.

This module knows facts.  It may not know how they are found.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from shmlog.format.origin import Since


class Case(enum.Enum):
    """What a log can be found as; ROWS says when."""

    EMPTY = "empty"
    CORRUPT = "corrupt"
    CLEAN = "clean"
    INTACT = "intact"
    HOLES = "holes"
    COPY = "copy"
    UNCLEAR = "unclear"
    RESTART = "restart"
    TORN = "torn"


class Above(enum.Enum):
    """What lies above p, the first frame that is not valid."""

    NOTHING = "only zeros"
    BYTES = "no valid frames, or nobody looked for them: after a restart they do not matter"
    FRAMES = "valid frames"


_SAME, _RESTARTED = frozenset({Since.SAME_BOOT}), frozenset({Since.RESTARTED})
_UNCLEAR, _COPIED = frozenset({Since.UNCLEAR}), frozenset({Since.COPIED})


@dataclass(frozen=True, slots=True)
class Row:
    """A case, the facts that make it (None: any), and both in words."""

    case: Case
    mark_and_p: str
    since: str
    action: str
    segments: bool = True
    below_mark: bool | None = False
    left_clean: bool | None = False
    happened: frozenset[Since] | None = None
    above: frozenset[Above] | None = None


ROWS = (
    Row(
        Case.EMPTY,
        "no segment, nor a cursor above LSN 0",
        "any",
        "begin at LSN 0",
        segments=False,
        below_mark=None,
        left_clean=None,
    ),
    Row(
        Case.CORRUPT,
        "p < mark",
        "any",
        "CorruptionError; nothing is touched",
        below_mark=True,
        left_clean=None,
    ),
    Row(
        Case.CLEAN,
        "p = mark, marked clean, only zeros above p",
        "any",
        "nothing was lost; go on from p",
        left_clean=True,
    ),
    Row(
        Case.INTACT,
        "p >= mark, no more valid frames",
        "same boot",
        "go on from p",
        happened=_SAME,
        above=frozenset({Above.NOTHING, Above.BYTES}),
    ),
    Row(
        Case.HOLES,
        "p >= mark, valid frames above p",
        "same boot",
        "a dead writer's hole: FILL up to the next valid frame, and look on",
        happened=_SAME,
        above=frozenset({Above.FRAMES}),
    ),
    Row(
        Case.COPY,
        "p >= mark, valid frames above p",
        "another place",
        "CorruptionError; nothing is touched",
        happened=_COPIED,
        above=frozenset({Above.FRAMES}),
    ),
    Row(
        Case.UNCLEAR,
        "p >= mark, valid frames above p",
        "unclear",
        "RestartUnclearError; nothing is touched",
        happened=_UNCLEAR,
        above=frozenset({Above.FRAMES}),
    ),
    Row(
        Case.RESTART,
        "p >= mark, only zeros above p",
        "restarted, unclear, another place",
        "go on from p, epoch + 1",
        happened=_RESTARTED | _UNCLEAR | _COPIED,
        above=frozenset({Above.NOTHING}),
    ),
    Row(
        Case.TORN,
        "p >= mark, anything else above p",
        "restarted",
        "drop it, report it, epoch + 1",
        happened=_RESTARTED,
        above=frozenset({Above.BYTES, Above.FRAMES}),
    ),
    Row(
        Case.TORN,
        "p >= mark, no more valid frames",
        "unclear, another place",
        "drop it, report it, epoch + 1",
        happened=_UNCLEAR | _COPIED,
        above=frozenset({Above.BYTES}),
    ),
)


def matching(segments: bool, below_mark: bool, left_clean: bool, happened: Since, above: Above) -> list[Row]:
    """The rows that the facts satisfy: one, whatever they are."""
    return [
        row
        for row in ROWS
        if row.segments == segments
        and row.below_mark in (None, below_mark)
        and row.left_clean in (None, left_clean)
        and (row.happened is None or happened in row.happened)
        and (row.above is None or above in row.above)
    ]


def judge(
    *,
    segments: bool = True,
    below_mark: bool = False,
    left_clean: bool = False,
    happened: Since = Since.SAME_BOOT,
    above: Above = Above.NOTHING,
) -> Case:
    """The case that the facts make.  `left_clean`: p = mark, marked clean, nothing above.
    `happened`: since the mark was written."""
    (row,) = matching(segments, below_mark, left_clean, happened, above)
    return row.case
