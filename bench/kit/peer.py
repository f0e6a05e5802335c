"""What a system must offer to take part in a heat: the jobs, and what each of them measures.

This module knows jobs. It may not know how they are done, nor any particular system.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.kit.harness import Contender, Options, Outcome
from bench.kit.workers import Skipped

BLOCK_BYTES = 1 << 16
BLOCK_RECORDS_MAX = 64
WARMUP_RECORDS_MAX = 256
DURABLE_WARMUP_RECORDS_MAX = 4

What = Literal["append", "append_batch", "durable", "read_all", "reopen"]
"""The jobs, each a method of `Peer`."""


@dataclass(frozen=True)
class Job:
    """One measurement: who appends how much, and for how long at most."""

    directory: Path
    record_bytes: int
    records_max: int
    seconds: float
    processes: int = 1
    threads: int = 1
    batch: int = 1

    @property
    def warmup_records(self) -> int:
        return min(self.records_max // 10, WARMUP_RECORDS_MAX) // self.batch * self.batch

    @property
    def durable_warmup_records(self) -> int:
        """What each caller appends before its first wait is timed."""
        return min(self.records_max // 10, DURABLE_WARMUP_RECORDS_MAX)

    @property
    def block_records(self) -> int:
        """How many records to append between two looks at the clock."""
        return max(1, min(BLOCK_RECORDS_MAX, BLOCK_BYTES // self.record_bytes))


def job_of(
    options: Options,
    record_bytes: int,
    processes: int = 1,
    threads: int = 1,
    batch: int = 1,
    records_max: int | None = None,
) -> Job:
    """A job of the size that the command line allows; its directory is set when it runs."""
    records = max(1, options.max_bytes // record_bytes)
    return Job(
        directory=Path(),
        record_bytes=record_bytes,
        records_max=records if records_max is None else min(records, records_max),
        seconds=options.seconds,
        processes=processes,
        threads=threads,
        batch=batch,
    )


class Writer:
    """One process's way in to a store. Methods a store lacks raise `Skipped`.

    What is given to it is called directly: a method of ours around it would be measured with it.
    """

    def __init__(self, store: Any, append: Any = None, append_batch: Any = None) -> None:
        self.store = store
        if append:
            self.append = append  # type: ignore[method-assign]
        if append_batch:
            self.append_batch = append_batch  # type: ignore[method-assign]

    def append(self, data: bytes) -> object:
        """Append one record; return when it is as safe as the peer's `durability` says."""
        raise Skipped("cannot append single records")

    def prepare_batch(self, records: Sequence[bytes]) -> Any:
        """Bring a batch into the form `append_batch` takes; not timed."""
        return list(records)

    def append_batch(self, records: Any) -> object:
        """Append what `prepare_batch` returned, all in one step."""
        raise Skipped("has no batches")

    def append_durable(self, data: bytes) -> object:
        """Append one record; return when it would survive power loss."""
        raise Skipped("is never durable")

    def close(self) -> None:
        """Give back what the writer holds."""
        self.store.close()


class Peer(ABC):
    """One system, and the jobs it can do. A job it cannot do raises `Skipped`."""

    name: str
    package: str = ""
    durability: str = "none"
    durable_by: str = ""
    single_process: str = ""
    heavy = False

    def version(self) -> str:
        """The version found; raises `Skipped` if the system is not here."""
        if not self.package:
            return ""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise Skipped(f"the package {self.package} is not installed") from None

    def check(self, job: Job) -> None:
        """Raise `Skipped` if this system is missing or cannot take part in such a job."""
        self.version()
        if job.processes > 1 and self.single_process:
            raise Skipped(f"one process only: {self.single_process}")

    def remark(self, durable: bool = False) -> str:
        """What to print beside the figures: the durability level."""
        return self.durable_by if durable else self.durability

    def contender(self, what: What, job: Job, name: str = "") -> Contender:
        """This system doing one of its jobs in a heat; to be read or opened, it appends first."""

        def run(directory: Path) -> Outcome:
            here = dataclasses.replace(job, directory=directory)
            if what in ("read_all", "reopen"):
                self.append(here)
            outcome: Outcome = getattr(self, what)(here)
            return outcome

        return Contender(name or self.name, run, self._remark(what))

    def _remark(self, what: What) -> str:
        version = level = ""
        with contextlib.suppress(Skipped):  # running it says why
            version = self.version()
        if what != "read_all":
            level = self.remark(durable=what == "durable")
        return "; ".join(filter(None, (version, level)))

    @abstractmethod
    def append(self, job: Job) -> Outcome:
        """Append one record at a time from each of `job.processes` processes."""

    def append_batch(self, job: Job) -> Outcome:
        """The same, `job.batch` records at a time."""
        raise Skipped("has no batches")

    def durable(self, job: Job) -> Outcome:
        """`job.threads` callers in each process, each waiting for every record to be durable."""
        raise Skipped(f"is never durable ({self.durability})")

    def read_all(self, job: Job) -> Outcome:
        """Read what an earlier job left in `job.directory`."""
        raise Skipped("keeps nothing to read again")

    def reopen(self, job: Job) -> Outcome:
        """Time from nothing to ready to append, on what an earlier job left."""
        raise Skipped("keeps nothing to open again")
