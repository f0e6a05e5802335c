"""Shippers and a Kafka broker, killed, stopped and overtaken while a log grows.

As crash.shipping; a turn's shippers all ship chunks or all records, and are stopped for longer than
their transactions.  What the broker holds is what a consumer of committed messages sees.

With little time a run ends when it is over. With much there are at least twelve runs, each of 300,000 rows,
every second one with two shippers, and half of them as records:

    make crash TIME=1200 ARGS='--only ship_kafka'
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from crash import shipping
from crash.kit import Budget, Goal, Recipe, Tally
from crash.stores import planting
from support import kafka as brokers
from support.steps import Mutation

import shmlog

RUNS = 12


class _Topic(shipping.Engine):
    victims = "brokers"
    server_share, pause_s, write_share = 0.75, (0.2, 1.5), 0.5
    stopped_s = 3.0  # a transaction may take one second

    def __init__(self, path: Path, broker: brokers.Broker, form: str) -> None:
        self.form = form
        self._broker, self._topic = broker, path.name
        self._config = path.with_suffix(".toml")
        self._config.write_text("[kafka]\ntransaction.timeout.ms = 1000\n")
        self._down = False

    def arguments(self, name: str) -> list[str]:
        url = f"kafka://{self._broker.address}/{self._topic}?replicas=1"
        return [url, self.form, "--config", str(self._config)]

    def strike(self, dice: random.Random) -> bool:
        if self._down:
            self.mend()
            return False
        self._broker.kill()
        self._down = True
        return True

    def mend(self) -> None:
        if self._down:
            self._broker.start()
            self._down = False

    def expected(self, log: shmlog.ReadonlyLog) -> shipping.Sum:
        if self.form == "--records":
            return shipping.sum_of_records(log.read())
        return shipping.sum_of_batches(log.read_batches())

    def found(self, log: shmlog.ReadonlyLog) -> shipping.Sum:
        from shmlog.integrations.kafka import KafkaReader

        with KafkaReader([self._broker.address], self._topic, log.log_id) as reader:
            if self.form == "--records":
                return shipping.sum_of_records(reader.records())
            return shipping.sum_of_batches(reader.batches())


def torture(budget: Budget, tally: Tally) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="shmlog-ship-") as scratch,
        brokers.broker(Path(scratch, "kafka")) as broker,
    ):

        def topic(path: Path, turn: int) -> _Topic:
            return _Topic(path, broker, "--records" if turn % 4 in (2, 3) else "--chunks")

        shipping.torment(Path(scratch), topic, RUNS, budget, tally)


BUGS = {
    "a transactional id for each shipper": (
        Mutation(
            "integrations/kafka.py", '{"transactional.id": self.name,', '{"transactional.id": self._owner,'
        ),
    ),
    "goes on from the cursor, whatever the broker holds": (
        Mutation(
            "integrations/ship.py",
            "            position = tail.end_lsn\n",
            "            position = self._cursor.lsn\n",
        ),
    ),
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("ship_kafka", torture, BUGS, budget)


RECIPE = Recipe(
    "ship_kafka",
    "shippers and a Kafka broker killed while a log grows",
    _run,
    (Goal("tried", 4), Goal("planted bugs seen", "planted bugs")),
    200.0,
    missing=brokers.missing,
)
