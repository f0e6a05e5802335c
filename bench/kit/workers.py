"""Worker processes of one measurement: started together, bounded, reaped.

Everything a contender does happens in such children; the process that runs the
benchmark opens no store and starts no thread, so forking it stays safe.

Invariants
  W1  No child outlives `run_workers`: at the time limit, which the harness sets
      and children inherit, or when one of them fails, the rest are killed, each
      by its own process handle.
  W2  All children leave a barrier together; a child that cannot start breaks
      nobody else's wait for longer than it takes to kill them.
"""

from __future__ import annotations

import contextlib
import contextvars
import multiprocessing
import multiprocessing.connection
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from typing import Any

CONTEXT = multiprocessing.get_context("fork")


time_limit_s = contextvars.ContextVar("time_limit_s", default=120.0)
"""How long the children of one call may take."""


class Skipped(Exception):
    """This contender cannot do this job; the text says why."""


class WorkerError(RuntimeError):
    """A worker raised, died or ran out of time."""


Target = tuple[Callable[..., Any], tuple[Any, ...]]


def run_workers(targets: Sequence[Target]) -> list[Any]:
    """Run `target(barrier, *arguments)` in one child each and return their results in order.

    Raises `Skipped` if a child did, `WorkerError` for any other failure.
    """
    barrier = CONTEXT.Barrier(len(targets))
    children: list[BaseProcess] = []
    pipes: list[multiprocessing.connection.Connection] = []
    try:
        for target, arguments in targets:
            ours, theirs = CONTEXT.Pipe(duplex=False)
            child: BaseProcess = CONTEXT.Process(target=_main, args=(theirs, barrier, target, arguments))
            child.start()
            theirs.close()
            children.append(child)
            pipes.append(ours)
        return _collect(pipes, time.monotonic() + time_limit_s.get())
    finally:
        for child in children:
            child.join(timeout=1.0 if child.is_alive() else None)
            if child.is_alive():
                child.kill()
                child.join()
            child.close()
        for pipe in pipes:
            pipe.close()


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` in a child of its own and return what it returned."""
    return run_workers([(_without_barrier, (function, *arguments))])[0]


@contextlib.contextmanager
def held_in_child(
    context: Callable[..., contextlib.AbstractContextManager[Any]], *arguments: Any
) -> Iterator[None]:
    """Hold `context(*arguments)` open in a child for as long as the block runs."""
    ours, theirs = CONTEXT.Pipe()
    child = CONTEXT.Process(target=_hold, args=(theirs, context, arguments))
    child.start()
    theirs.close()
    try:
        if not ours.poll(time_limit_s.get()):
            raise WorkerError("ran out of time")
        _receive(ours)
        yield
        ours.send("leave")
        child.join(time_limit_s.get())
    finally:
        if child.is_alive():
            child.kill()
            child.join()
        child.close()
        ours.close()


def _hold(
    pipe: multiprocessing.connection.Connection,
    context: Callable[..., contextlib.AbstractContextManager[Any]],
    arguments: tuple[Any, ...],
) -> None:
    def hold(_barrier: None) -> None:
        with context(*arguments):
            pipe.send(("ready", None))
            pipe.recv()

    _main(pipe, None, hold, ())


def _without_barrier(_barrier: Barrier, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _collect(pipes: list[multiprocessing.connection.Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for index, pipe in enumerate(pipes) if index not in results]
        left = deadline - time.monotonic()
        ready = multiprocessing.connection.wait(waiting, timeout=max(left, 0.0))
        if not ready:
            raise WorkerError("ran out of time")
        for index, pipe in enumerate(pipes):
            if pipe in ready:
                results[index] = _receive(pipe)
    return [results[index] for index in range(len(pipes))]


def _receive(pipe: multiprocessing.connection.Connection) -> Any:
    try:
        kind, value = pipe.recv()
    except EOFError:
        raise WorkerError("a worker died") from None
    if kind == "skipped":
        raise Skipped(value)
    if kind == "failed":
        raise WorkerError(value)
    return value


def _main(
    pipe: multiprocessing.connection.Connection,
    barrier: Barrier | None,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    try:
        pipe.send(("done", target(barrier, *arguments)))
    except Skipped as reason:
        pipe.send(("skipped", str(reason)))
    except ImportError as error:
        pipe.send(("skipped", f"not importable: {error}"))
    except BaseException:
        pipe.send(("failed", traceback.format_exc(limit=-6)))
        pipe.close()
        # Straight out: an exit that joins a queue's feeder thread, or a store's
        # threads, may never end after a failure.
        os._exit(1)
    pipe.close()
