"""Logging: records of the standard library's logging, structlog and loguru, in a log.

    app.log/   a record a message: JSON, its level as the tag

    {"time": 1767225600.25, "level": "ERROR", "logger": "app.db", "message": "gone",
     "process": 17, "thread": "MainThread", "exception": "Traceback ...", "user": 7}

Workers that were forked or spawned write the same log: a handle re-attaches by itself.
`shmlog cat DIR --format logging --level WARNING` prints it as text.

A message never takes longer than the timeout: without room in the log it is given to
logging's own handleError, as the standard handlers do, and lost.

This module knows loggers and an appender.  It may not know how a log is written.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shmlog.integrations.appender import Appender

if TYPE_CHECKING:
    from loguru import Message

TIMEOUT_S = 5.0
"""The first message starts a flusher, which takes a fraction of a second, or more on a busy machine."""
NEVER = 1 << 30
"""Above every level."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def level_number(level: int | str | None) -> int:
    """A level's number; None: above all of them.  ValueError for an unknown name."""
    if level is None:
        return NEVER
    if isinstance(level, int):
        return level
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is no level of logging's")
    return number


class _Sink(Appender):
    """A log that messages go into, opened at the first one."""

    def __init__(
        self, path: str | os.PathLike[str], durable_level: int | str | None, timeout: float, options: Any
    ) -> None:
        super().__init__(path, timeout, options)
        self.durable_level = level_number(durable_level)

    def put(self, facts: Mapping[str, Any], level: int) -> None:
        """Append it, within the timeout, the opening included."""
        data = json.dumps(facts, default=str, ensure_ascii=False).encode(errors="backslashreplace")
        self.append(data, min(max(level, 0), 2**32 - 1), level >= self.durable_level)


class ShmlogHandler(logging.Handler):
    """A handler of logging's that appends each record to a log, made if absent.

    durable_level: from this level on a message is on disk when the call returns, None: never
    waited for. timeout: seconds that a call may block at most, also for the opening; what could
    not be written by then goes to handleError(). Further keywords are those of shmlog.open(). A
    formatter, if one is set, makes the text of `message`; what `extra=` says is kept beside it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        level: int | str = logging.NOTSET,
        durable_level: int | str | None = "ERROR",
        timeout: float = TIMEOUT_S,
        **options: Any,
    ) -> None:
        super().__init__(level)
        self._sink = _Sink(path, durable_level, timeout, options)

    def handle(self, record: logging.LogRecord) -> bool:
        """As the base class, but without its lock: the log is written by many threads at once, and
        whoever waits for room must not make the others wait for more than that."""
        kept: Any = self.filter(record)
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Append it; errors go to handleError()."""
        try:
            self._sink.put(self._facts(record), record.levelno)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def _facts(self, record: logging.LogRecord) -> dict[str, Any]:
        facts = {name: value for name, value in vars(record).items() if name not in _OWN}
        if self.formatter is not None:
            message = self.format(record)
        else:
            message = record.getMessage()
            if record.exc_info:
                facts["exception"] = _TEXT.formatException(record.exc_info)
            elif record.exc_text:
                facts["exception"] = record.exc_text
            if record.stack_info:
                facts["stack"] = record.stack_info
        return {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "process": record.process,
            "thread": record.threadName,
            "where": f"{record.pathname}:{record.lineno}",
            **facts,
        }

    def close(self) -> None:
        """Close the log; the last process that does waits until all is durable."""
        try:
            self._sink.close()
        finally:
            super().close()


_TEXT = logging.Formatter()


class StructlogFactory:
    """A logger_factory for structlog: the event dictionary becomes the record.

    structlog.configure(logger_factory=StructlogFactory("app.log"), processors=[...]) with no
    renderer at the end of the processors; `level` is as structlog.processors.add_log_level adds
    it, else that of the method. Arguments as ShmlogHandler. Errors are raised.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable_level: int | str | None = "ERROR",
        timeout: float = TIMEOUT_S,
        **options: Any,
    ) -> None:
        self._sink = _Sink(path, durable_level, timeout, options)

    def __call__(self, *arguments: Any) -> _StructlogLogger:
        return _StructlogLogger(self._sink, str(arguments[0]) if arguments else "")

    def close(self) -> None:
        """Close the log."""
        self._sink.close()


class _StructlogLogger:
    """What structlog's bound loggers call: a method for each level."""

    def __init__(self, sink: _Sink, name: str) -> None:
        self._sink = sink
        self._name = name

    def _put(self, method: str, event: str | None = None, **facts: Any) -> None:
        level = str(facts.pop("level", method))
        number = level_number({"exception": "error", "fatal": "critical", "msg": "info"}.get(level, level))
        known: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).timestamp(),
            "level": logging.getLevelName(number),
            "logger": facts.pop("logger", self._name),
            "message": event,
            "process": os.getpid(),
            "thread": threading.current_thread().name,
        }
        self._sink.put({**known, **facts}, number)

    def debug(self, event: str | None = None, **facts: Any) -> None:
        self._put("debug", event, **facts)

    def info(self, event: str | None = None, **facts: Any) -> None:
        self._put("info", event, **facts)

    def warning(self, event: str | None = None, **facts: Any) -> None:
        self._put("warning", event, **facts)

    def error(self, event: str | None = None, **facts: Any) -> None:
        self._put("error", event, **facts)

    def critical(self, event: str | None = None, **facts: Any) -> None:
        self._put("critical", event, **facts)

    warn = warning
    msg = log = info
    exception = failure = err = error
    fatal = critical


class LoguruSink:
    """A sink for loguru: logger.add(LoguruSink("app.log")).

    Arguments as ShmlogHandler. Errors are raised, and loguru's catch= says what becomes of them.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable_level: int | str | None = "ERROR",
        timeout: float = TIMEOUT_S,
        **options: Any,
    ) -> None:
        self._sink = _Sink(path, durable_level, timeout, options)

    def write(self, message: Message) -> None:
        """Called by loguru with each message."""
        record = message.record
        facts: dict[str, Any] = {
            "time": record["time"].timestamp(),
            "level": record["level"].name,
            "logger": record["name"],
            "message": record["message"],
            "process": record["process"].id,
            "thread": record["thread"].name,
            "where": f"{record['file'].path}:{record['line']}",
            **record["extra"],
        }
        if record["exception"] is not None:
            kind, value, trace = record["exception"]
            if kind is not None and value is not None:
                facts["exception"] = _TEXT.formatException((kind, value, trace))
        self._sink.put(facts, record["level"].no)

    def stop(self) -> None:
        """Called by loguru when the sink is removed."""
        self._sink.close()
