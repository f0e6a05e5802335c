"""OTLP logs: messages that shmlog.integrations.logging wrote, as OpenTelemetry's log records.

    {"time": 1767225600.25, "level": "ERROR", "logger": "app.db", "message": "gone", "user": 7, ...}
    LogRecord  time_unix_nano, severity_text, its number from the tag, body; the rest as attributes
    scope      the logger's name
    resource   as OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say

A record that is no such message is a log record whose body it is.

This module knows messages and protobuf.  It may not know collectors.
"""

from __future__ import annotations

import json
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.sdk.resources import Resource

import shmlog

NAMES: Final = {
    "process": "process.pid",
    "thread": "thread.name",
    "where": "code.location",
    "exception": "exception.stacktrace",
}
"""What the semantic conventions call it; other facts keep their names."""


class Encoder:
    """Makes an ExportLogsServiceRequest of each record."""

    def __init__(self) -> None:
        self._resource = [_attribute(*pair) for pair in Resource.create().attributes.items()]

    def __call__(self, record: shmlog.Record) -> bytes:
        request = ExportLogsServiceRequest()
        resource = request.resource_logs.add()
        resource.resource.attributes.extend(self._resource)
        scope = resource.scope_logs.add()
        facts = _facts(bytes(record.data))
        scope.scope.name = str(facts.pop("logger", ""))
        scope.log_records.append(_log_record(record, facts))
        return bytes(request.SerializeToString())


def _facts(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
        if isinstance(found, dict) and "message" in found:
            return found
    except (ValueError, RecursionError):
        pass
    return {"message": data.decode(errors="replace")}


def _log_record(record: shmlog.Record, facts: dict[str, Any]) -> LogRecord:
    made = LogRecord(observed_time_unix_nano=record.time_ns, time_unix_nano=record.time_ns)
    moment = facts.pop("time", None)
    if isinstance(moment, (int, float)) and 0 <= moment < 1 << 33:
        made.time_unix_nano = int(moment * 1e9)
    made.severity_number = severity(record.tag)
    made.severity_text = str(facts.pop("level", ""))
    made.body.CopyFrom(_value(facts.pop("message")))
    made.attributes.extend(_attribute(NAMES.get(name, name), value) for name, value in facts.items())
    return made


def severity(level: int) -> Any:
    """OpenTelemetry's number for a level of logging's: 9 for INFO, and four for every ten."""
    return 0 if level <= 0 else min(24, max(1, 5 + (level - 10) * 4 // 10))


def _attribute(name: str, value: Any) -> KeyValue:
    return KeyValue(key=name, value=_value(value))


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return AnyValue(string_value=text.encode(errors="replace").decode())
