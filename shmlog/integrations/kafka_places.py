"""Kafka's places: a log's partition, the clients that reach it, and the topics that must be there.

This module knows librdkafka's settings and topics.  It may not know chunks or transactions.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from shmlog.integrations.repeating import EngineError

POSITIONS: Final = "shmlog-positions"
"""The topic whose offsets are positions; it stays empty."""
TIMEOUT_S: Final = 10.0
MESSAGE_BYTES: Final = 1048588
"""A topic's largest, where it cannot be asked for."""
_OURS: Final = (
    "acks",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.idempotence",
    "group.id",
    "isolation.level",
    "transactional.id",
)
_PRODUCERS: Final = ("batch.", "compression.", "linger.", "message.max.", "queue.buffering.", "transaction.")
"""A consumer would complain of them."""

_logger = logging.getLogger("shmlog.ship")
_rdkafka = logging.getLogger("shmlog.ship.rdkafka")
_rdkafka.setLevel(logging.CRITICAL + 1)  # errors come out of the calls


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """librdkafka's names have dots, which are tables in TOML."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return flat


class Place:
    """One log's partition.  name: its transactional id, and its group's."""

    def __init__(
        self, servers: Sequence[str], topic: str, log_id: str, partition: int, settings: Mapping[str, Any]
    ) -> None:
        self.topic, self.partition = topic, partition
        self.name = f"shmlog-{log_id}-{topic}-{partition}"
        self._log_id = log_id
        self._heard = ""
        given = _flat(settings)
        if refused := sorted(set(given) & set(_OURS)):
            raise ValueError(f"kafka: {', '.join(refused)} cannot be set: shipping depends on it")
        self._settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(servers),
            "client.id": "shmlog",
            "log_level": 0,
            "logger": _rdkafka,
            "reconnect.backoff.max.ms": 1000,
            "error_cb": self._hear,
            **given,
        }

    def _hear(self, error: KafkaError) -> None:
        self._heard = error.str()

    def _listen(self, producer: Producer) -> None:
        """Let it say what it has to say; a fatal error comes again."""
        with contextlib.suppress(KafkaException):
            producer.poll(0)

    def _error(self, error: KafkaError | None, what: str = "") -> EngineError:
        text = what if error is None else error.str()
        heard, self._heard = self._heard, ""
        return EngineError(f"kafka: {text}" + (f"; {heard}" if heard and heard not in text else ""))

    @contextlib.contextmanager
    def _engine(self) -> Iterator[None]:
        """EngineError for what may be better the next time, ValueError for settings."""
        try:
            yield
        except KafkaException as error:
            if error.args[0].code() == KafkaError._INVALID_ARG:
                raise ValueError(f"kafka: {error.args[0].str()}") from error
            raise self._error(error.args[0]) from error

    def _consumer(self, group: str, **more: Any) -> Consumer:
        mine = {"group.id": group, "isolation.level": "read_committed", "enable.auto.commit": False}
        theirs = {name: value for name, value in self._settings.items() if not name.startswith(_PRODUCERS)}
        return Consumer({**theirs, **mine, **more})

    def _ensure(self, known: Consumer, replicas: int) -> int:
        """Make the topics, or see that the partition keeps what it is given; ValueError if it does not.
        The size of the largest message."""
        admin = AdminClient(self._settings)
        self._make(admin, known, POSITIONS, 1, replicas)
        self._make(admin, known, self.topic, self.partition + 1, replicas)
        partitions = known.list_topics(self.topic, TIMEOUT_S).topics[self.topic].partitions
        if self.partition not in partitions:
            raise ValueError(f"the topic {self.topic} has {len(partitions)} partitions, no {self.partition}")
        copies = len(partitions[self.partition].replicas)
        if copies < replicas:
            raise ValueError(
                f"the topic {self.topic} has {copies} replicas, not {replicas}; fewer must be asked for"
            )
        resource = ConfigResource(ResourceType.TOPIC, self.topic)
        try:
            config = admin.describe_configs([resource])[resource].result(TIMEOUT_S)
        except KafkaException as error:
            _logger.warning("the settings of the topic %s are not known: %s", self.topic, error.args[0].str())
            return MESSAGE_BYTES
        if "compact" in config["cleanup.policy"].value:
            raise ValueError(f"the topic {self.topic} is compacted, and would lose records")
        if int(config["min.insync.replicas"].value) < min(2, replicas):
            raise ValueError(
                f"the topic {self.topic} acknowledges what a single broker has: it needs"
                " min.insync.replicas 2, or replicas=1 must be asked for"
            )
        return int(config["max.message.bytes"].value)

    def _make(self, admin: AdminClient, known: Consumer, topic: str, partitions: int, replicas: int) -> None:
        """Unless it is there."""
        error = known.list_topics(topic, TIMEOUT_S).topics[topic].error
        if error is None:
            return
        if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise KafkaException(error)
        config = {"min.insync.replicas": str(max(1, replicas - 1))}
        new = NewTopic(topic, partitions, replicas, config=config)
        try:
            admin.create_topics([new], operation_timeout=TIMEOUT_S)[topic].result(TIMEOUT_S)
        except KafkaException as refused:
            code = refused.args[0].code()
            if code == KafkaError.INVALID_REPLICATION_FACTOR:
                raise ValueError(
                    f"the topic {topic} cannot have {replicas} replicas here; replicas=1 must be asked for"
                ) from refused
            if code != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        deadline = time.monotonic() + TIMEOUT_S
        while known.list_topics(topic, TIMEOUT_S).topics[topic].error is not None:
            if time.monotonic() > deadline:
                raise self._error(None, f"the topic {topic} does not come")
            time.sleep(0.02)
