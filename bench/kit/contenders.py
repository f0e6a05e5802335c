"""Peers made into contenders of a heat: which job, at what size, by how many."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from bench.kit.harness import Contender, Options, Outcome
from bench.kit.peer import Job, Peer
from bench.kit.workers import Skipped
from bench.peers import PEERS

What = Literal["append", "append_batch", "durable", "read_all", "reopen"]


def job_of(
    options: Options,
    record_bytes: int,
    processes: int = 1,
    threads: int = 1,
    batch: int = 1,
) -> Job:
    """A job of the size that the command line allows; its directory is set when it runs."""
    records = max(1, options.max_bytes // record_bytes)
    return Job(
        directory=Path(),
        record_bytes=record_bytes,
        records_max=records,
        seconds=options.seconds,
        processes=processes,
        threads=threads,
        batch=batch,
        time_limit_s=options.time_limit_s,
    )


def contender(peer: Peer, job: Job, what: What, name: str = "") -> Contender:
    """`peer` doing one of its jobs in a heat."""

    def run(directory: Path) -> Outcome:
        outcome: Outcome = getattr(peer, what)(dataclasses.replace(job, directory=directory))
        return outcome

    return Contender(name or peer.name, run, _remark(peer, durable=what == "durable"))


def _remark(peer: Peer, durable: bool) -> str:
    try:
        version = peer.version()
    except Skipped:
        version = ""
    return "; ".join(filter(None, (version, peer.remark(durable))))


def peers(options: Options, but: Iterable[type[Peer]] = ()) -> list[Peer]:
    """The other systems; at toy size only those that need no build."""
    entered = [peer for peer in PEERS if not isinstance(peer, tuple(but))]
    return [peer for peer in entered if not (options.toy and peer.heavy) or peer.name in options.only]


def chosen(offered: Iterable[int], wanted: tuple[int, ...]) -> list[int]:
    """Of the sizes or counts a workload offers, those the command line asks for."""
    return [each for each in offered if not wanted or each in wanted]
