"""A log beside a model of it, in long random sequences: the stateful test, as long as there is time.

Hypothesis shrinks what fails; its steps are the violation.
"""

from __future__ import annotations

import logging
import traceback
import warnings

import hypothesis
from crash.kit import Budget, Goal, Recipe, Tally
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from property.test_log_model import LogMachine

EXAMPLES = 10
STEPS = 50


def _run(budget: Budget) -> Tally:
    tally, turn = Tally(), 0
    logging.getLogger("shmlog").addHandler(logging.NullHandler())  # what recovery says is expected here
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    options = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    while budget.goes_on(tally) and len(tally.violations) < 5:
        before = LogMachine.steps
        machine = hypothesis.seed(budget.random(turn).getrandbits(64))(type("Machine", (LogMachine,), {}))
        try:
            run_state_machine_as_test(machine, settings=options)
            tally.survive(LogMachine.steps - before)
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            tally.violate(f"seed {budget.seed}, turn {turn}: {notes}\n{traceback.format_exc()[-2000:]}")
        turn += 1
    return tally


RECIPE = Recipe("model", "a log beside its model, steps", _run, (Goal("tried", 25_000),), 400.0)
