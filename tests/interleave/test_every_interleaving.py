"""The protocol, and each of its rules left out, over every interleaving of a few steps.

The shapes are small, so that the whole stays within a minute; `make crash` explores larger ones:

    SMALL    records of one and two granules, the first of which wraps the ring; a death
             anywhere
    DEATHS   two deaths anywhere
    WORDS    records that span three and four words of the bitmap and wrap it; one death
    BORDER   the first record does not fit what is left of its segment: a PAD goes
             first, and a hole touches two segments; two deaths
    THREADS  two threads of the flusher commit, one of them repairs
    HANDLE   two threads append with one handle, each with a claim of its own; they die
             together
    ROOM     a writer meets the end of what is prepared, and waits; a thread of the flusher
             prepares the next piece
    TURNS    two newcomers take the one slot in turn, and give it back
    BESIDE   two newcomers and two slots: one leaves while the other goes on
    HEIR     two newcomers and one slot: the first may die anywhere, and the other take its
             slot once that has been retired

A rule left out is text of the real source replaced, so each test also says which text
the rule lives in.
"""

from __future__ import annotations

import functools

import pytest
from support.interleaving import CLAIMS, Explored, Shape, Violation, World, explore
from support.steps import Mutation

SMALL = Shape(sizes=((2, 1), (2,)), window=64, deaths=1, begin=63)
DEATHS = Shape(sizes=((2,), (1,)), window=64, deaths=2, begin=63)
WORDS = Shape(sizes=((120,), (100,)), window=256, deaths=1, begin=10)
BORDER = Shape(sizes=((32,), (32,)), window=64, deaths=2, begin=2048 - 31)
THREADS = Shape(sizes=((2,), (1,)), window=64, deaths=0, begin=63, two_commit=True)
HANDLE = Shape(sizes=((2,), (1,)), window=64, deaths=1, begin=63, one_handle=True)
ROOM = Shape(sizes=((20,), (20,)), window=64, deaths=0, piece=32)
TURNS = Shape(sizes=((1,), (1,)), window=64, deaths=0, begin=63, seats=1, leave=True)
BESIDE = Shape(sizes=((1,), (1,)), window=64, deaths=0, begin=63, seats=2, leave=True)
HEIR = Shape(sizes=((2,), (1,)), window=64, deaths=1, begin=63, seats=1, leave=True)

LARGE = {
    "SMALL": Shape(sizes=((2, 1), (2,)), window=64, deaths=2, begin=63),
    "WORDS": Shape(sizes=((120,), (100, 70)), window=256, deaths=1, begin=10),
    "THREADS": Shape(sizes=((2,), (1,)), window=64, deaths=1, begin=63, two_commit=True),
    "HANDLE": Shape(sizes=((2, 1), (1,)), window=64, deaths=1, begin=63, one_handle=True),
    "ROOM": Shape(sizes=((20,), (20,)), window=64, deaths=1, piece=32),
    "HEIR": Shape(sizes=((2,), (1,)), window=64, deaths=2, begin=63, seats=1, leave=True),
    "BESIDE": Shape(sizes=((1,), (1,)), window=64, deaths=1, begin=63, seats=2, leave=True),
}

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
        """        if claim.begin == g and claim.held and g < claim.end <= tail:  # else overwritten
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

TAKEN_ALTHOUGH_USED = (
    Mutation(
        "participants.py",
        """                continue
            if control.load(state) != SLOT_FREE:""",
        """                continue
            if False:""",
    ),
)
TAKEN_WITHOUT_ITS_LOCK = (
    Mutation(
        "participants.py",
        """            if not self._lock.try_lock(FIRST_PARTICIPANT_BYTE + number):
                continue
""",
        "",
    ),
)
OWNERS_NOT_TOLD_APART = (
    Mutation(
        "participants.py",
        "return unlocked and self.used(number) and self._control.load(started) == before",
        "return unlocked and self.used(number)",
    ),
)
STARTED_STORE = "            control.store(slot_offset(number, PT.STARTED_NS), time.time_ns())\n"
USED_STORE = "            control.store(state, SLOT_USED)\n"
USED_BEFORE_ITS_OWNER_IS_TOLD = (
    Mutation("participants.py", STARTED_STORE, ""),
    Mutation("participants.py", USED_STORE, USED_STORE + STARTED_STORE),
)
UNLOCKED_BEFORE_GIVEN_BACK = (
    Mutation(
        "participants.py",
        """        self._count_out(number)
        self._reset(number)
        self._control.store(slot_offset(number, PT.STATE), SLOT_FREE)
        self._own.discard(number)
        self._lock.unlock(FIRST_PARTICIPANT_BYTE + number)
""",
        """        self._lock.unlock(FIRST_PARTICIPANT_BYTE + number)
        self._count_out(number)
        self._reset(number)
        self._control.store(slot_offset(number, PT.STATE), SLOT_FREE)
        self._own.discard(number)
""",
    ),
)
HEIGHT_NOT_RAISED = (
    Mutation("participants.py", "            control.raise_to(CB.PARTICIPANT_HIGH, number + 1)\n", ""),
)
HEIGHT_BEFORE_TAIL = (
    Mutation(
        "holes.py",
        "    tail = control.load(CB.RESERVED_LSN)\n",
        "    high = participants.high\n    tail = control.load(CB.RESERVED_LSN)\n",
    ),
    Mutation("holes.py", "in range(participants.high)", "in range(high)"),
)
FIRST_CLAIM_ONLY = (Mutation("participants.py", CLAIMS, CLAIMS.replace("CLAIM_COUNT", "1")),)
FREE_BEFORE_UNCLAIMED = (
    Mutation(
        "core/writer.h",
        """    atomic_store_explicit(word_at(t->claim, CL_BEGIN), NO_LSN, memory_order_release);
    atomic_fetch_or_explicit(&w->free_claims, 1u << t->claim_no, memory_order_seq_cst);
""",
        """    atomic_fetch_or_explicit(&w->free_claims, 1u << t->claim_no, memory_order_seq_cst);
#ifdef SHMLOG_STEPS
    if (shmlog_step("free"))
        return;
#endif
    atomic_store_explicit(word_at(t->claim, CL_BEGIN), NO_LSN, memory_order_release);
""",
    ),
)
PREPARED_BEFORE_ALLOCATED = (
    Mutation(
        "preparing.py",
        """            try:
                self._prepare(prepared, end)
""",
        """            try:
                native.store(CB.PREPARED_LSN, end)
                self._prepare(prepared, end)
""",
    ),
)
LIMIT_ABOVE_PREPARED = (
    Mutation("core/commit.h", "    if (limit > prepared)\n", "    if (limit > prepared && !prepared)\n"),
)
STEPPED_WITHOUT_A_LOCK = (
    Mutation(
        "control.py",
        """        with self._step_lock:
            return self.native.commit_step()""",
        """        return self.native.commit_step()""",
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
    ("CLAIMED_AFTER_RESERVING", Shape(((1,), (1,)), 64, 0, 63), "is gone|below committed_lsn"),
    ("PASSED_BY_ANOTHER_THREAD", Shape(((1,), (1,)), 64, 0, 63, True), "is gone"),
    ("COMMITTED_BEFORE_BITS", Shape(((1,), (1,)), 64, 0, 63, True), "is gone"),
    ("FILLED_WITHOUT_A_CLAIM", DEATHS, "below committed_lsn|splits"),
    ("TAKEN_ALTHOUGH_USED", HEIR, "is gone|below committed_lsn|splits"),
    ("TAKEN_WITHOUT_ITS_LOCK", TURNS, "is gone"),
    ("OWNERS_NOT_TOLD_APART", TURNS, "is gone"),
    ("USED_BEFORE_ITS_OWNER_IS_TOLD", TURNS, "is gone"),
    ("UNLOCKED_BEFORE_GIVEN_BACK", TURNS, "is gone"),
    ("HEIGHT_NOT_RAISED", TURNS, "is gone"),
    ("HEIGHT_BEFORE_TAIL", TURNS, "is gone|never end well"),
    ("RETIRED_WITH_A_HELD_CLAIM", HEIR, "below committed_lsn|splits"),
    ("FIRST_CLAIM_ONLY", Shape(((1,), (1,)), 64, 0, 63, one_handle=True), "is gone"),
    ("FREE_BEFORE_UNCLAIMED", Shape(((1, 1), (1,)), 64, 0, 63, one_handle=True), "is gone"),
    ("PREPARED_BEFORE_ALLOCATED", ROOM, "prepared up to"),
    ("LIMIT_ABOVE_PREPARED", ROOM, "prepared up to"),
    ("STEPPED_WITHOUT_A_LOCK", Shape(((1,), (1,)), 64, 0, 63, True), "is gone"),
]


@functools.cache
def explored(shape: Shape, *mutations: Mutation) -> Explored:
    world = World(shape, mutations)
    try:
        return explore(world)
    finally:
        world.end_run()


def report(capsys: pytest.CaptureFixture[str], name: str, found: Explored) -> None:
    with capsys.disabled():
        print(f" {name}: {found.states} states in {found.runs} runs", end="", flush=True)


NAMES = ["SMALL", "DEATHS", "WORDS", "BORDER", "THREADS", "HANDLE", "ROOM", "TURNS", "HEIR"]
SLOW = pytest.param("BESIDE", marks=pytest.mark.crash)  # it finds no rule left out that TURNS does not


@pytest.mark.parametrize("name", [*NAMES, SLOW])
@pytest.mark.holds("B1", "R1", "R3", "T1", "T2", "T4")
def test_no_interleaving_loses_a_record_or_gets_stuck(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report(capsys, name, explored(globals()[name]))


@pytest.mark.crash
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", LARGE)
def test_no_interleaving_of_a_larger_shape_does_either(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report(capsys, name, explored(LARGE[name]))


@pytest.mark.parametrize(("rule", "shape", "seen"), LEFT_OUT, ids=[rule.lower() for rule, _, _ in LEFT_OUT])
@pytest.mark.holds("A1", "A2", "B2", "B3", "R2", "T1", "T2", "T3", "T4")
def test_a_rule_that_is_left_out_is_missed(rule: str, shape: Shape, seen: str) -> None:
    explored(shape)  # whole, it passes
    with pytest.raises(Violation, match=seen):
        explored(shape, *globals()[rule])
