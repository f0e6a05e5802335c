"""Kafka: a broker that a test starts, kills and starts again, on free ports of the loopback.

Apache Kafka's jars come with mvn, once, into build/kafka; Java runs them. One broker, its own controller.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import shutil
import socket
import subprocess
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from support.serving import Served, free_ports, running

VERSION = "4.1.0"
BUILD = Path(__file__).resolve().parents[2] / "build" / "kafka" / VERSION
RESOLVE_S = 300.0
START_S = 90.0

_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId>
  <artifactId>broker</artifactId>
  <version>1</version>
  <dependencies>
    {_DEPENDENCY.format("org.apache.kafka", "kafka_2.13", VERSION)}
    {_DEPENDENCY.format("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3")}
  </dependencies>
</project>
"""
_LOGGING = """status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""
_FLAGS = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]


def missing() -> str | None:
    """Why no broker can be started here, or None."""
    if importlib.util.find_spec("confluent_kafka") is None:
        return "confluent-kafka is not installed"
    for command in ("java", "mvn"):
        if shutil.which(command) is None:
            return f"{command} is not installed"
    return _resolved()


@cache
def _resolved() -> str | None:
    """Bring the jars here; why that failed, or None."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in two processes
        if (BUILD / "jars").is_dir():
            return None
        (BUILD / "pom.xml").write_text(_POM)
        (BUILD / "log4j2.properties").write_text(_LOGGING)
        copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=new"]
        try:
            done = subprocess.run(
                ["mvn", "-B", "-q", *copy], cwd=BUILD, capture_output=True, text=True, timeout=RESOLVE_S
            )
        except subprocess.TimeoutExpired:
            return "mvn takes too long to bring Kafka's jars"
        if done.returncode:
            return f"mvn does not bring Kafka's jars: {done.stdout.strip().splitlines()[:1]}"
        (BUILD / "new").rename(BUILD / "jars")
    return None


def _java(*words: str, flags: tuple[str, ...] = ()) -> list[str]:
    logging = f"-Dlog4j2.configurationFile={BUILD / 'log4j2.properties'}"
    return ["java", *_FLAGS, *flags, logging, "-cp", f"{BUILD / 'jars'}/*", *words]


class Broker(Served):
    """A broker on files below a directory, that keeps them when it is killed."""

    START_S = START_S

    def __init__(self, path: Path, more: dict[str, Any] | None = None) -> None:
        port, controller = free_ports(2)
        super().__init__(path, port)
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": path / "data",
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 200,
            "broker.session.timeout.ms": 2000,  # so long one that was killed is not let in again
            "broker.heartbeat.interval.ms": 300,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
            **(more or {}),
        }
        (path / "server.properties").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        format_ = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAQACAAAAAAAAAAA", "-c"]
        subprocess.run(_java(*format_, str(path / "server.properties")), check=True, capture_output=True)

    def command(self) -> list[str]:
        return _java("kafka.Kafka", str(self.path / "server.properties"))

    def answers(self, wire: socket.socket) -> bool:
        """Whether it says who leads."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        client = AdminClient({"bootstrap.servers": self.address, "log_level": 0, "error_cb": lambda _: None})
        with contextlib.suppress(KafkaException):
            return bool(client.list_topics(timeout=5).brokers)
        return False


def broker(path: Path, more: dict[str, Any] | None = None) -> AbstractContextManager[Broker]:
    """A broker, killed at the end."""
    return running(Broker(path, more))
