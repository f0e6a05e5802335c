"""The runner of the torture recipes: who gets how much time, what is enough, and the table of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash import figures
from crash.__main__ import in_turn, known_recipes
from crash.kit import Budget, Goal, Recipe, Tally


def _recipe(name: str, given: list[tuple[str, float, bool]], goal_s: float, ends: bool = False) -> Recipe:
    def run(budget: Budget) -> Tally:
        given.append((name, round(budget.seconds), bool(budget.goals)))
        return Tally(5, 5, figures={"whole": 5})

    return Recipe(name, f"a fault of {name}", run, (Goal("tried", "whole"),), goal_s, ends)


def test_a_goal_that_nothing_was_counted_for_is_not_reached() -> None:
    for goal in (Goal("lost", 10), Goal("tried", "planned"), Goal("p99 ms", most=50)):
        assert not goal.reached(Tally())
        assert "short of its goal" in goal.said(Tally())
    tally = Tally(10, 10, figures={"planned": 10, "p99 ms": 50.1, "said": "a word"})
    assert Goal("tried", 10).reached(tally) and Goal("tried", "planned").reached(tally)
    assert not Goal("tried", 11).reached(tally)
    assert not Goal("p99 ms", most=50).reached(tally) and Goal("p99 ms", most=51).reached(tally)
    assert not Goal("said", 1).reached(tally)
    assert Goal("tried", 20_000).said(Tally(20_113)) == "goal: 20,113 of 20,000 tried"


def test_a_budget_goes_on_until_every_goal_is_reached_or_its_time_is_over() -> None:
    goals = (Goal("tried", 5), Goal("nested", 1))
    assert Budget(60, 1, goals).goes_on(Tally(5))
    assert not Budget(60, 1, goals).goes_on(Tally(5, figures={"nested": 1}))
    assert not Budget(0, 1, goals).goes_on(Tally())
    assert Budget(60, 1).goes_on(Tally(5, figures={"nested": 1})), "without goals there is no end"


def test_time_is_shared_out_by_what_goals_take_and_what_is_left_goes_to_the_others() -> None:
    given: list[tuple[str, float, bool]] = []
    able = [_recipe("long", given, 100.0, ends=True), _recipe("short", given, 50.0)]
    list(in_turn(able, 60.0, 1))
    assert given == [("short", 20, True), ("long", 60, True)], "each stops at its goal"
    given.clear()
    list(in_turn(able, 300.0, 1))
    assert given == [("long", 200, False), ("short", 300, False)], "who never ends comes last and goes on"


def test_every_recipe_has_goals_and_a_time_that_they_take() -> None:
    for name, recipe in known_recipes().items():
        assert recipe.name == name.replace("_", "-") or recipe.name == name
        assert recipe.goals and recipe.goal_s > 0, name


def test_the_table_of_a_run_says_what_was_missed_and_stands_between_its_markers(tmp_path: Path) -> None:
    recipe = Recipe(
        "sleet", "a roof with a hole", lambda _: Tally(), (Goal("tried", 10), Goal("wet", 1)), 1.0
    )
    tally = Tally(12, 11, 0, ["seed 7, turn 3"], {"wet": 0})
    run = figures.report({"sleet": recipe}, {"sleet": (tally, 2.0)}, {"snow": "needs winter"}, 7, 0.0)
    table = figures.markdown(run)
    assert (
        "| `sleet`: a roof with a hole | 12 | 11 | 0 | 1 | 12 of 10 tried; 0 of 1 wet (**short**) |" in table
    )
    assert "not run: needs winter" in table
    assert "1 violations, 1 goal missed" in table
    again = figures.report({"sleet": recipe}, {"sleet": (Tally(10, 10, 0, [], {"wet": 1}), 1.0)}, {}, 8, 60.0)
    both = figures.markdown(run, again)
    assert "| `sleet`: a roof with a hole | 2 | 10 | 10 | 0 | 0 | 10 of 10 tried; 1 of 1 wet |" in both
    assert "1 violations" not in both, "of the first run nothing is left"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n")
    figures.put(page, table)
    assert page.read_text() == f"before\n{figures.BEGIN}\n{table}{figures.END}\nafter\n"
    page.write_text("no place\n")
    with pytest.raises(ValueError, match="no place for the figures"):
        figures.put(page, table)


def test_the_page_on_durability_has_a_place_for_the_figures() -> None:
    page = (figures.ROOT / "docs" / "explanation" / "durability.md").read_text()
    assert page.count(figures.BEGIN) == page.count(figures.END) == 1
