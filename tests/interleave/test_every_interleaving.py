"""The protocol, and each of its rules left out, over every interleaving of a few steps.

Four shapes, so that the whole stays within a minute:

    SMALL    records of one and two granules, the first of which wraps the ring; two
             deaths anywhere
    WORDS    records that span three and four words of the bitmap and wrap it, in a
             window that holds two of them: appends are refused, wait, and retry; one death
    BORDER   the first record does not fit what is left of its segment: a PAD goes
             first, and a hole touches two segments; two deaths
    THREADS  two threads of the flusher commit, one of them repairs; one death

A rule left out is text of the real source replaced, so each test also says which text
the rule lives in.
"""

from __future__ import annotations

import functools

import pytest
from support.interleaving import Explored, Shape, Violation, World, explore
from support.steps import Mutation

SMALL = Shape(sizes=((2, 1), (2,)), window=64, deaths=2, begin=63)
WORDS = Shape(sizes=((120,), (100, 70)), window=256, deaths=1, begin=10)
BORDER = Shape(sizes=((32,), (32,)), window=64, deaths=2, begin=2048 - 31)
THREADS = Shape(sizes=((2,), (1,)), window=64, deaths=1, begin=63, two_commit=True)

CLAIMS_BEFORE_LOCK = (
    Mutation(
        "holes.py",
        """        alive = participants.alive(number)  # first (T3)
        seen.extend((number, alive, claim) for claim in participants.claims(number))
""",
        """        claims = participants.claims(number)
        alive = participants.alive(number)
        seen.extend((number, alive, claim) for claim in claims)
""",
    ),
)
BITS_BEFORE_CLAIMS = (
    Mutation(
        "holes.py",
        """    seen: list[tuple[int, bool, Claim]] = []
""",
        """    next_set = control.scan(g, tail, True)
    seen: list[tuple[int, bool, Claim]] = []
""",
    ),
    Mutation(
        "holes.py",
        """    next_set = control.scan(g, tail, True)
    if next_set == g or""",
        """    if next_set == g or""",
    ),
)
HELD_EXTENT_FORGOTTEN = (
    Mutation(
        "holes.py",
        """        if claim.begin == g and claim.held:
            return Hole(g, claim.end)
""",
        """        pass
""",
    ),
)
COMMITTED = "    atomic_store(word_at(control, CB_COMMITTED_LSN), c->committed); /* COMMIT */\n"
CLEARED = "    return commit_clear(control, bitmap, c);\n"
CLEARED_BEFORE_COMMITTED = (
    Mutation("core/commit.h", COMMITTED, ""),
    Mutation(
        "core/commit.h",
        CLEARED,
        """    if (bitmap_clear(bitmap, before >> GRANULE_SHIFT, next >> GRANULE_SHIFT))
        return OUTCOME_DIED;
"""
        + COMMITTED
        + CLEARED,
    ),
)
LIMIT_RAISED_BEFORE_CLEARED = (
    Mutation(
        "core/commit.h",
        COMMITTED,
        COMMITTED + "    atomic_store(word_at(control, CB_LIMIT_LSN), next + window_bytes);\n",
    ),
)
PUBLISHED_UPWARD = (
    Mutation(
        "core/bitmap.h",
        """    SHMLOG_STEP("publish high");
    atomic_fetch_or_explicit(&words[high], high_mask, memory_order_release);
""",
        """    SHMLOG_STEP("publish low");
    atomic_fetch_or_explicit(&words[low], low_mask, memory_order_seq_cst);
""",
    ),
    Mutation(
        "core/bitmap.h",
        """        atomic_store_explicit(&words[i], ~UINT64_C(0), memory_order_release);
    }
    SHMLOG_STEP("publish low");
    atomic_fetch_or_explicit(&words[low], low_mask, memory_order_seq_cst);
""",
        """        atomic_store_explicit(&words[i], ~UINT64_C(0), memory_order_release);
    }
    SHMLOG_STEP("publish high");
    atomic_fetch_or_explicit(&words[high], high_mask, memory_order_release);
""",
    ),
)
WRAPPED_PART_PUBLISHED_LAST = (
    Mutation(
        "core/bitmap.h",
        """        int outcome = publish_run(b->words, 0, at + count - b->granules);
        if (outcome != OUTCOME_DONE)
            return outcome;
        count = b->granules - at;
""",
        """        int outcome = publish_run(b->words, at, b->granules);
        if (outcome != OUTCOME_DONE)
            return outcome;
        return publish_run(b->words, 0, at + count - b->granules);
""",
    ),
)
CLAIM_KEPT_WHILE_WAITING = (
    Mutation(
        "core/append.h",
        """            SHMLOG_STEP("refused");
            atomic_store_explicit(word_at(t->claim, CL_BEGIN), NO_LSN, memory_order_release); /* A2 */
""",
        """            SHMLOG_STEP("refused");
""",
    ),
    Mutation(
        "python/append.c",
        """    claim_give(&self->w, t); /* A2 */
""",
        """    atomic_fetch_or(&self->w.free_claims, 1u << t->claim_no);
""",
    ),
)
HELD_NOT_SAID = (
    Mutation(
        "core/append.h", "t->begin | CLAIM_HELD, memory_order_release", "t->begin, memory_order_release"
    ),
)
CLAIMED_AFTER_RESERVING = (
    Mutation(
        "core/append.h",
        """        SHMLOG_STEP("claim begin");
        atomic_store_explicit(word_at(t->claim, CL_BEGIN), pos, memory_order_release);
""",
        "",
    ),
)
PASSED_BY_ANOTHER_THREAD = (
    Mutation("holes.py", "if next_set == g or control.load(CB.COMMITTED_LSN) != g:", "if next_set == g:"),
)
COMMITTED_BEFORE_BITS = (
    Mutation(
        "holes.py",
        """    next_set = control.scan(g, tail, True)
    if next_set == g or control.load(CB.COMMITTED_LSN) != g:""",
        """    committed = control.load(CB.COMMITTED_LSN)
    next_set = control.scan(g, tail, True)
    if next_set == g or committed != g:""",
    ),
)
FILLED_WITHOUT_A_CLAIM = (Mutation("holes.py", "    participants.hold(number, hole.begin, hole.end)\n", ""),)
RETIRED_WITH_A_HELD_CLAIM = (
    Mutation(
        "participants.py",
        """            if claim.held and committed < claim.end:
                return False
""",
        "",
    ),
)

LEFT_OUT = [
    # (the rule left out, the smallest shape that shows it, what is seen then)
    ("CLAIMS_BEFORE_LOCK", Shape(((2,), (1,)), 64, 1, 63), "below committed_lsn|is gone"),
    ("BITS_BEFORE_CLAIMS", Shape(((1,), (1,)), 64, 0, 63), "is gone"),
    ("HELD_EXTENT_FORGOTTEN", Shape(((2,), (1,)), 64, 1, 63), "below committed_lsn|splits"),
    ("CLEARED_BEFORE_COMMITTED", Shape(((2,), (1,)), 64, 1, 63), "is gone"),
    ("LIMIT_RAISED_BEFORE_CLEARED", Shape(((32, 32), (32,)), 64, 0, 0), "below committed_lsn|is gone"),
    ("PUBLISHED_UPWARD", Shape(((100,), (1,)), 256, 0, 10), "splits"),
    ("WRAPPED_PART_PUBLISHED_LAST", Shape(((2,), (1,)), 64, 0, 63), "splits"),
    ("CLAIM_KEPT_WHILE_WAITING", Shape(((32,), (32,)), 64, 1, 2048 - 31), "never end well"),
    ("RETIRED_WITH_A_HELD_CLAIM", Shape(((2,), (1,)), 64, 1, 63), "below committed_lsn|splits"),
    ("HELD_NOT_SAID", Shape(((2,), (1,)), 64, 1, 63), "below committed_lsn|splits"),
    ("CLAIMED_AFTER_RESERVING", Shape(((1,), (1,)), 64, 0, 63), "is gone"),
    ("PASSED_BY_ANOTHER_THREAD", Shape(((1,), (1,)), 64, 0, 63, True), "is gone"),
    ("COMMITTED_BEFORE_BITS", Shape(((1,), (1,)), 64, 0, 63, True), "is gone"),
    ("FILLED_WITHOUT_A_CLAIM", Shape(((2,), (1,)), 64, 2, 63), "below committed_lsn|splits"),
]


@functools.cache
def explored(shape: Shape, *mutations: Mutation) -> Explored:
    world = World(shape, mutations)
    try:
        return explore(world)
    finally:
        world.end_run()


@pytest.mark.parametrize("name", ["SMALL", "WORDS", "BORDER", "THREADS"])
@pytest.mark.holds("B1", "R1", "R3")
def test_no_interleaving_loses_a_record_or_gets_stuck(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = explored(globals()[name])
    with capsys.disabled():
        print(f" {name}: {found.states} states in {found.runs} runs", end="", flush=True)


@pytest.mark.parametrize(("rule", "shape", "seen"), LEFT_OUT, ids=[rule.lower() for rule, _, _ in LEFT_OUT])
@pytest.mark.holds("A1", "A2", "B2", "B3", "R2", "T3")
def test_a_rule_that_is_left_out_is_missed(rule: str, shape: Shape, seen: str) -> None:
    explored(shape)
    with pytest.raises(Violation, match=seen):
        explored(shape, *globals()[rule])
