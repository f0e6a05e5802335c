"""One turn of the recipe that is `make crash ARGS='--only failed-sync'`."""

from __future__ import annotations

import pytest
from crash.recipes import failed_sync

WHY_NOT = failed_sync.missing()


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
@pytest.mark.parametrize("seed", [11, 12])
def test_what_left_memory_after_a_failed_sync_is_not_called_durable_by_a_successor(seed: int) -> None:
    outcome = failed_sync.one_turn(seed, 2)
    assert "violation" not in outcome, outcome
