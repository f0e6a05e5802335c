"""Shippers and the leader of a stream on three servers, killed, stopped and overtaken while a log grows.

As crash.shipping; the second shipper ships a message a record, the first chunks.  One server at a time,
mostly the stream's leader, is killed.

With little time a run ends when it is over. With much there are at least ten runs, each of 300,000 rows,
every second one with two shippers:

    make crash TIME=900 ARGS='--only ship_nats'
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from crash import shipping
from crash.kit import Budget, Goal, Recipe, Tally
from crash.stores import planting
from support import nats as servers
from support.processes import until
from support.steps import Mutation

import shmlog

STREAM = "TORTURE"
RUNS = 10


class _Stream(shipping.Engine):
    victims = "servers"
    server_share, pause_s, write_share = 0.8, (0.05, 0.6), 0.7

    def __init__(self, cluster: list[servers.Server]) -> None:
        self._cluster = cluster
        self._down: servers.Server | None = None

    def arguments(self, name: str) -> list[str]:
        url = f"nats://{','.join(server.address for server in self._cluster)}/{STREAM}"
        return [url, "--records" if name == "b" else "--chunks"]

    def strike(self, dice: random.Random) -> bool:
        if self._down is not None:  # one at a time: two of three decide
            self.mend()
            return False
        self._down = self._leader() or dice.choice(self._cluster)
        self._down.kill()
        return True

    def mend(self) -> None:
        if self._down is not None:
            self._down.start()
            self._down = None

    def expected(self, log: shmlog.ReadonlyLog) -> shipping.Sum:
        return shipping.sum_of_batches(log.read_batches())

    def found(self, log: shmlog.ReadonlyLog) -> shipping.Sum:
        from shmlog.integrations.nats import NatsReader

        with NatsReader([server.address for server in self._cluster], STREAM, log.log_id) as reader:
            until(self._leader, "the stream has a leader")
            return shipping.sum_of_batches(reader.batches())

    def _leader(self) -> servers.Server | None:
        """The stream's, as one of those that live says."""
        for server in self._cluster:
            try:
                about = servers.request(server, f"$JS.API.STREAM.INFO.{STREAM}")
            except OSError:
                continue
            found = about.get("cluster")
            if isinstance(found, dict):
                return next((one for one in self._cluster if one.name == found.get("leader")), None)
        return None


def torture(budget: Budget, tally: Tally) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="shmlog-ship-") as scratch,
        servers.cluster(Path(scratch, "nats")) as cluster,
    ):
        shipping.torment(Path(scratch), lambda path, turn: _Stream(cluster), RUNS, budget, tally)


BUGS = {
    "publishes without a condition": (
        Mutation(
            "integrations/nats.py",
            '            "Nats-Expected-Last-Subject-Sequence": str(self._sequence),\n',
            "",
        ),
    ),
    "goes on from the cursor, whatever the stream holds": (
        Mutation(
            "integrations/ship.py",
            "            position = tail.end_lsn\n",
            "            position = self._cursor.lsn\n",
        ),
    ),
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("ship_nats", torture, BUGS, budget)


RECIPE = Recipe(
    "ship_nats",
    "shippers and a stream's leader killed while a log grows",
    _run,
    (Goal("tried", 6), Goal("planted bugs seen", "planted bugs")),
    200.0,
    missing=servers.missing,
)
