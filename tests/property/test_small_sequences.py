"""All short sequences of operations from a small alphabet, against the model.

What goes wrong with few operations goes wrong first on an almost empty log, where random
sequences are seldom.  Each sequence is one log; the invariants are checked after each step,
so the longest sequences include the shorter ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable

import pytest
from property.test_log_model import RECORD_MAX, LogMachine

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Fixed:
    """Draws the same numbers each time, within whatever bounds."""

    def draw(self, strategy: object) -> int:
        return 0


def _reserve(machine: LogMachine, publish: bool) -> None:
    taken = machine.reserve(size=500, tag=1)
    machine.end_a_reservation(taken=taken, publish=publish)


PLAIN: dict[str, Callable[[LogMachine], object]] = {
    "append": lambda machine: machine.append(size=100, tag=1, durable=False),
    "durable": lambda machine: machine.append(size=33, tag=2, durable=True),
    "large": lambda machine: machine.append(size=RECORD_MAX, tag=1, durable=False),
    "batch": lambda machine: machine.append_many(sizes=[0, 700, 31], tag=3, atomic=True),
    "abort": lambda machine: _reserve(machine, False),
    "reopen": lambda machine: machine.reopen(),
}
DEADLY: dict[str, Callable[[LogMachine], object]] = {
    "batch": PLAIN["batch"],
    "large": PLAIN["large"],
    "trim": lambda machine: machine.trim(share=1.0),
    "cursor": lambda machine: machine.move_the_cursor(data=Fixed()),
    "fork": lambda machine: machine.append_in_a_forked_child(sizes=[10, 2000], tag=1),
    "a worker killed": lambda machine: machine.kill_a_worker(sizes=[10], tag=1, left=900),
    "the flusher killed": lambda machine: machine.kill_the_flusher(),
    "a cut": lambda machine: machine.cut_the_power(durable=[10], late=[700, 20], tag=2, data=Fixed()),
}


def run(operations: Iterable[Callable[[LogMachine], object]]) -> None:
    """One sequence, checked after each step and as a whole at its end."""
    machine = LogMachine()
    machine.make()
    try:
        for operation in operations:
            operation(machine)
            machine.watermarks_are_in_order_and_only_grow()
        machine.read_all_back()
    finally:
        machine.teardown()


def _sample(
    alphabet: dict[str, Callable[[LogMachine], object]], length: int, count: int
) -> list[tuple[str, ...]]:
    return random.Random(7).sample(list(itertools.product(alphabet, repeat=length)), count)


@pytest.mark.parametrize("names", [*_sample(PLAIN, 4, 8), *_sample(DEADLY, 3, 6)], ids=", ".join)
def test_a_short_sequence_agrees_with_the_model(names: tuple[str, ...]) -> None:
    run((PLAIN | DEADLY)[name] for name in names)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_all_sequences_of_four_operations_agree_with_the_model() -> None:
    for names in itertools.product(PLAIN, repeat=4):
        run(PLAIN[name] for name in names)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_all_sequences_of_three_operations_with_deaths_agree_with_the_model() -> None:
    for names in itertools.product(DEADLY, repeat=3):
        run(DEADLY[name] for name in names)
