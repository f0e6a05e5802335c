"""Figures to hold: a bound on what a contender measured, and the verdict on it.

Invariants
  J1  A ratio is taken within one repetition, to the strongest of those it is held against; the
      median is judged, or, if every run must hold, the worst.
  J2  There is no verdict if the floor varied by more than a half between repetitions: then the
      machine was measured, not the log. The floor of a ratio is what it is held against,
      that of a plain figure the baseline of its heat.

This module knows plain results. It may not know how they were made.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from bench.kit.harness import spread_of

FLOOR_VARIES_MAX = 1.5


@dataclass(frozen=True)
class Bound:
    """On a figure, or, if `against` names contenders, on its ratio to the strongest of them."""

    at_least: float | None = None
    at_most: float | None = None
    against: tuple[str, ...] = ()

    def holds(self, figure: float) -> bool:
        return figure >= self.at_least if self.at_least is not None else figure <= (self.at_most or 0)


@dataclass(frozen=True)
class Figure:
    """What is held: a value of a contender in the heat of that title (a pattern; the last one)."""

    what: str
    heat: str
    contender: str
    value: str
    bounds: tuple[Bound, ...]
    """one of which is enough"""
    goal: str
    every_run: int = 0
    """if not zero, so many runs, each of which must hold"""

    @property
    def names(self) -> set[str]:
        """The contenders it needs."""
        return {self.contender, *(name for bound in self.bounds for name in bound.against)}


def judged(figures: Iterable[Figure], heats: Sequence[Mapping[str, Any]], toy: bool) -> list[dict[str, Any]]:
    """A row for each figure of which a heat was run."""
    rows = []
    for figure in figures:
        fitting = [heat for heat in heats if fnmatch.fnmatchcase(heat["title"], figure.heat)]
        if fitting and any(row["name"] == figure.contender for row in fitting[-1]["rows"]):
            rows.append(_judge(figure, fitting[-1], toy))
    return rows


def _judge(figure: Figure, heat: Mapping[str, Any], toy: bool) -> dict[str, Any]:
    measures = [_measure(figure, bound, heat) for bound in figure.bounds]
    verdicts = [_verdict(figure, *pair) for pair in zip(figure.bounds, measures, strict=True)]
    # The first one that holds says it; none does, the first says why.
    best = next((number for number, verdict in enumerate(verdicts) if verdict == "held"), 0)
    verdict = "none: toy size" if toy else verdicts[best]
    return {"what": figure.what, "goal": figure.goal, "verdict": verdict, **measures[best]}


def _measure(figure: Figure, bound: Bound, heat: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of each repetition, the value itself beside them, and how the floor varied.
    Who took part in some of the rounds only is one of the others as long as that."""
    runs = {row["name"]: [each.get(figure.value) for each in row["repetitions"]] for row in heat["rows"]}
    ours = runs[figure.contender]
    floor = [
        each.get(heat["compare"])
        for row in heat["rows"]
        if row["name"] == heat["baseline"]
        for each in row["repetitions"]
    ]
    figures, strongest = ours, ""
    if bound.against:
        theirs = {name: [run or 0.0 for run in runs[name]] for name in bound.against if runs.get(name)}
        pick = max if bound.at_least is not None else min
        floor = [pick(run for run in round if run) for round in zip_longest(*theirs.values()) if any(round)]
        figures = [own / other for own, other in zip(ours, floor, strict=False)]
        strongest = pick(theirs, key=lambda name: sum(theirs[name]) / len(theirs[name])) if theirs else ""
    return {
        "figure": spread_of([each for each in figures if each is not None]),
        "value": spread_of([each for each in ours if each is not None]),
        "of": figure.value,
        "strongest": strongest,
        "runs": len(figures),
        "floor_varies": max(floor) / min(floor) if floor and min(floor) else 1.0,
    }


def _verdict(figure: Figure, bound: Bound, measure: Mapping[str, Any]) -> str:
    spread = measure["figure"]
    if spread is None:
        return "not measured"
    if measure["runs"] < figure.every_run:
        return f"no verdict: {measure['runs']} runs of {figure.every_run}"
    if measure["floor_varies"] > FLOOR_VARIES_MAX:
        return f"no verdict: the floor varied by {measure['floor_varies']:.1f}x"
    worst = spread["min"] if bound.at_least is not None else spread["max"]
    return "held" if bound.holds(worst if figure.every_run else spread["median"]) else "MISSED"
