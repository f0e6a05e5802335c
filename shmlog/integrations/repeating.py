"""Repeating: a step, again and again, as more of a log becomes durable; with pauses after errors.

This module knows a log's watermarks and when to look again.  It may not know what a step does.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from typing import Final

import shmlog

DURABLE_S: Final = 0.004
"""How soon to look again whether what was committed is durable. A wait would make the flusher sync for
us alone, at the writers' cost."""
RETRY_S: Final = 0.1, 10.0
"""The first and the longest pause after an error of the engine."""
ONCE_S: Final = 30.0
"""run(once=True) gives up after so long without an engine."""
IDLE_S: Final = 1.0
"""The longest that it does not look at the log."""

_logger = logging.getLogger("shmlog.ship")


class EngineError(OSError):
    """The engine could not be reached or did not do it; whether it did is not known. Try again."""

    pause_s = 0.0
    """the engine asks for so long a pause at least"""


class Repeating:
    """What has a step and a loop around it."""

    def __init__(self, log: shmlog.Log) -> None:
        self._log = log
        self._bell = os.pipe()
        self._stopped = False

    def step(self) -> bool:
        """Do one thing; False if there is nothing to do."""
        raise NotImplementedError

    def _wanted_lsn(self) -> int:
        """After a step that had nothing to do: what must be durable for another to have more."""
        raise NotImplementedError

    def _settle(self) -> None:
        """At the end of run()."""

    def run(self, once: bool = False, each: Callable[[], None] = lambda: None) -> None:
        """step() until stop(); after an error of the engine with a pause that grows to ten seconds.

        once: end when what was appended before the call is done; EngineError after half a minute of
        errors. each: called after every step. Other errors as step().
        """
        goal = None
        if once:
            self._log.wait_durable()
            goal = self._log.durable_lsn
        pause_s, failed_at = RETRY_S[0], None
        with self._log.watch() as watch:
            while not self._stopped:
                try:
                    done = self.step()
                except EngineError as error:
                    failed_at = failed_at or time.monotonic()
                    wait_s = max(pause_s, error.pause_s)
                    if once and max(error.pause_s, time.monotonic() - failed_at) > ONCE_S:
                        raise
                    _logger.warning("%s; trying again in %.1f s", error, wait_s)
                    self._sleep(wait_s)
                    pause_s = min(2 * pause_s, RETRY_S[1])
                    continue
                pause_s, failed_at = RETRY_S[0], None
                each()
                if not done and goal is not None and self._log.durable_lsn >= goal:
                    break
                if not done:
                    self._await(self._wanted_lsn(), watch)
        self._settle()

    def _await(self, lsn: int, watch: shmlog.Watch) -> None:
        """Until everything below lsn may be durable, or a second has passed."""
        if self._log.durable_lsn >= lsn:
            return
        if self._log.committed_lsn < lsn:
            watch.clear()
            if not watch.arm("committed", lsn):
                self._sleep(IDLE_S, watch)
        if self._log.committed_lsn >= lsn and not self._stopped:
            self._sleep(DURABLE_S)

    def _sleep(self, seconds: float, *others: shmlog.Watch) -> None:
        select.select([self._bell[0], *(other.fileno() for other in others)], [], [], seconds)

    def stop(self) -> None:
        """End run() after the step that it is in; from a thread or a signal handler."""
        if not self._stopped:
            self._stopped = True
            os.write(self._bell[1], b"!")

    def _close_bell(self) -> bool:
        """Whether this call closed it."""
        bell, self._bell = self._bell, (-1, -1)
        if bell[0] < 0:
            return False
        for fd in bell:
            os.close(fd)
        return True
