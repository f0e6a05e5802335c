"""Kill, pass or resume a process at every store that others can see.

A child appends, fills or commits on a real log; the tracer lists the instructions of it that
change the control block or a segment, and then brings new children to each of them:

    kill        the child dies there; the flusher repairs
    pass        others append, flush and read while it stands there; then it dies
    resume      the same, but then it goes on and must find its place untouched

    changes   claim.end  claim.begin  reserved  held | frame ... | bits, downward | counters  claim
              '------- nothing reserved ------' '--- a hole if it dies ---' '--- a record ----'
                                       ^ reserved                  ^ published

Between `reserved` and `published` nobody may pass the child while it lives, and there is no
record of it if it dies; from `published` on there is one.  Everybody else's records are
there, once and whole, always.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from crash.kit import Budget, Goal, Recipe, Tally
from crash.stores import planting, tracer
from crash.stores.serving import forked_flusher
from crash.stores.stage import BORDER, SHAPES, Shape, Stage, flush, hold, payloads_of, place, staged, write
from crash.stores.tracer import Change, UndeliveredError
from support.processes import (
    Child,
    flusher_of,
    stopped,
)
from support.steps import Mutation

MODES = ("kill", "pass", "resume")
TRIES = 6
STANDS_S = 0.04
"""How long a live child is watched for somebody to pass it: twice the longest pause between
two looks of the flusher."""


@dataclass(frozen=True)
class Stores:
    """What a shape changes, in order, as the scan has seen it."""

    changes: list[Change]
    reserved: int
    """so many changes, and the range is reserved"""
    published: int
    """so many, and it is published"""
    instructions: int


def _scan(child: Child, views: list[memoryview]) -> Stores:
    changes, instructions = tracer.scan(child, views)
    tails = [n for n, change in enumerate(changes, 1) if change.region == 0]
    bits = [n for n, change in enumerate(changes, 1) if change.region == 1]
    return Stores(changes, tails[-1] if tails else 0, bits[-1] if bits else 0, instructions)


def _writer_turn(shape: Shape, stage: Stage, turn: int, stores: Stores | None, n: int, mode: str) -> Any:
    """One child, brought to its n-th change: what went wrong, or None.  Without stores: find them."""
    log = stage.log
    with Child(write, stage.path, shape, turn) as child:
        number, begin = child.hear()
        tracer.await_mark(child)
        views = stage.regions(begin, number, False)
        if stores is None:
            with stopped(log.statistics().flusher_pid):
                stores = _scan(child, views)
            tracer.leave(child)
            child.result()
            return stores
        tracer.run_to(child, views, stores.changes, n)
        if mode != "kill":
            owned = stores.reserved <= n < stores.published
            if problem := _pass(stage, begin, owned):
                return problem
        if mode == "resume":
            tracer.leave(child)
            child.result()
    stage.append()
    log.wait_committed()
    log.wait_durable()
    there = not shape.given_up and (mode == "resume" or n >= stores.published)
    return stage.check(begin, payloads_of(shape, turn) if there else [])


def _pass(stage: Stage, begin: int, owned: bool) -> str | None:
    """Append, flush and read beside a child that stands still."""
    log = stage.log
    stage.append()
    last = stage.append()
    try:
        log.wait_committed(last, timeout=STANDS_S if owned else None)
        if owned:
            return f"a live writer's range at {begin} was passed: committed is {log.committed_lsn}"
        log.wait_durable(last)
    except TimeoutError:
        if not owned:
            return f"nothing is reserved and unpublished at {begin}, and committed stays {log.committed_lsn}"
        if log.committed_lsn != begin:
            return f"committed is {log.committed_lsn}, and the live writer stands at {begin}"
    return stage.check(begin, None)


def _flusher_turn(fill: bool, stage: Stage, turn: int, stores: Stores | None, n: int, mode: str) -> Any:
    """As _writer_turn, for a flusher: it repairs the hole of a dead writer, or commits and syncs."""
    log = stage.log
    with forked_flusher(stage.path):
        place(log, BORDER - 2 if fill else 62)
        log.wait_durable()
    begin = log.reserved_lsn
    if fill:
        with Child(hold, stage.path) as holder:
            holder.hear()
    stage.append()
    stage.append()
    with Child(flush, stage.path, fill) as child:
        number, _ = child.hear()
        tracer.await_mark(child)
        views = stage.regions(begin, number, True)
        if stores is None:
            stores = _scan(child, views)
            tracer.leave(child)
            child.result()
            return stores
        tracer.run_to(child, views, stores.changes, n)
        if mode != "kill":
            stage.append()
            if problem := stage.check(begin, []):
                return problem
        if mode == "resume":
            tracer.leave(child)
            child.result()
            log.wait_durable()
            return stage.check(begin, [])
    stage.append()
    with forked_flusher(stage.path):
        log.wait_committed()
        log.wait_durable()
    return stage.check(begin, [])


def _delivered(turn: Callable[[], str | None]) -> str | None:
    """The turn, again if the child did not come to its place: the flusher may undo a change, of
    a bit that it clears, before the tracer has seen it."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(UndeliveredError):
            return turn()
    return turn()


def _one_shape(name: str, turn_of: Turn, stage: Stage, budget: Budget, tally: Tally) -> None:
    numbers = itertools.count(1)
    stores: Stores = turn_of(stage, next(numbers), None, 0, "resume")
    for what in ("stores", "instructions stepped"):
        count = len(stores.changes) if what == "stores" else stores.instructions
        tally.figures[what] = int(tally.figures.get(what, 0)) + count
    for n in range(len(stores.changes) + 1):
        for mode in MODES:
            if not budget:
                tally.figures["not reached"] = int(tally.figures.get("not reached", 0)) + 1
                continue
            if problem := _delivered(lambda: turn_of(stage, next(numbers), stores, n, mode)):  # noqa: B023
                tally.violate(f"{name}, {mode} at store {n} of {len(stores.changes)}: {problem}")
                return
            tally.survive()


Turn = Callable[[Stage, int, Stores | None, int, str], Any]


def _varied(shape: Shape, dice: random.Random) -> Shape:
    """The same deed at another place, with other sizes."""
    sizes = [dice.randrange(16, 251) for _ in shape.sizes]
    if shape.name == "rows":
        sizes = sizes[:1] * len(sizes)
    return replace(
        shape, granule=dice.choice((dice.randrange(64), BORDER - 1 - dice.randrange(16))), sizes=tuple(sizes)
    )


def torture(budget: Budget, tally: Tally) -> None:
    """Every store of every shape, in every mode; then, while there is time, of shapes like them."""
    for turn in itertools.count():
        dice = budget.random(turn)
        for shape in SHAPES:
            shape = _varied(shape, dice) if turn else shape
            with staged() as stage, flusher_of(stage.path):
                title = f"{shape.name} (granule {shape.granule}, sizes {shape.sizes})"
                _guarded(title, functools.partial(_writer_turn, shape), stage, budget, tally)
            if turn and not budget.goes_on(tally):
                return
        for fill in (True, False):
            with staged() as stage:
                title = "fill over a border" if fill else "commit and sync"
                _guarded(title, functools.partial(_flusher_turn, fill), stage, budget, tally)
        if turn == 0:
            tally.figures["first pass"] = tally.tried
            tally.figures["first pass, planned"] = tally.tried + int(tally.figures.get("not reached", 0))
        if not budget.goes_on(tally):
            return


def _guarded(name: str, turn_of: Turn, stage: Stage, budget: Budget, tally: Tally) -> None:
    try:
        _one_shape(name, turn_of, stage, budget, tally)
        if problem := stage.check_all():
            tally.violate(f"{name}, at the end: {problem}")
    except Exception as error:
        tally.violate(f"{name}: {type(error).__name__}: {error}")


BUGS = {
    "bits before copy": (
        Mutation(
            "core/append.h",
            """        outcome = fill(w, plan, t, lsns);
    if (outcome""",
            """        outcome = bitmap_publish(&w->bitmap, t->begin / GRANULE_BYTES, t->end / GRANULE_BYTES);
    if (outcome == OUTCOME_DONE)
        outcome = fill(w, plan, t, lsns);
    if (outcome""",
        ),
    ),
    "claim cleared before the bits": (
        Mutation(
            "core/append.h",
            """    int outcome = bitmap_publish(&w->bitmap, t->begin >>""",
            """    atomic_store(word_at(t->claim, CL_BEGIN), NO_LSN);
    int outcome = bitmap_publish(&w->bitmap, t->begin >>""",
        ),
    ),
    "a live writer's range is repaired": (
        Mutation("flusher/holes.py", "        if claim.begin == g and alive:\n", "        if False:\n"),
    ),
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("stores", torture, BUGS, budget)


RECIPE = Recipe(
    "stores",
    "a process killed, passed or resumed at every store",
    _run,
    (Goal("first pass", "first pass, planned"), Goal("planted bugs seen", "planted bugs")),
    90.0,
    missing=tracer.missing,
)
