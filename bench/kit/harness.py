"""The common harness: contenders of one job, taking turns, checked, compared.

    heat:  append 128 B, 2 writers          repetition   1      2      3
                                                         A B C  A B C  A B C

Invariants
  H1  Contenders of a heat take turns, the baseline first, so that a busy neighbour or a slow disk
      hits all of them; a ratio is taken within one repetition, never between
      runs, and the median of the ratios is reported.
  H2  What a contender read back is compared with what was appended. A mismatch
      is printed, recorded and makes the run fail.
  H3  A contender that cannot do a job is listed with the reason, never dropped.
  H4  Each contender works in a directory of its own, removed afterwards.

This module knows heats and contenders. It may not know what they measure.
"""

from __future__ import annotations

import fnmatch
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bench.kit.machine import watched
from bench.kit.records import Digest
from bench.kit.workers import Skipped, WorkerError, in_child


@dataclass(frozen=True)
class Outcome:
    """What one run of one contender measured, and what it read back."""

    values: Mapping[str, float]
    digest: Digest | None = None
    expected: Digest | None = None
    remark: str = ""


@dataclass(frozen=True)
class Contender:
    """One system doing the job of a heat in the directory it is given."""

    name: str
    run: Callable[[Path], Outcome]
    remark: str = ""


def alone(
    function: Callable[..., Outcome | Mapping[str, float]], *arguments: Any
) -> Callable[[Path], Outcome]:
    """To run `function(directory, *arguments)` in a child of its own; it may return plain values."""

    def run(directory: Path) -> Outcome:
        returned = in_child(function, directory, *arguments)
        return returned if isinstance(returned, Outcome) else Outcome(returned)

    return run


@dataclass(frozen=True)
class Heat:
    """Contenders that do the same job, what is shown of each and what is compared with the first."""

    title: str
    contenders: Sequence[Contender]
    columns: Sequence[str]
    compare: str

    @property
    def baseline(self) -> str:
        return self.contenders[0].name


@dataclass(frozen=True)
class Options:
    """The command line, the same for every workload."""

    toy: bool
    repeat: int
    only: tuple[str, ...]
    sizes: tuple[int, ...]
    processes: tuple[int, ...]
    seconds: float
    max_bytes: int
    directory: Path
    budget_s: float | None = None

    def wants(self, name: str) -> bool:
        return not self.only or any(fnmatch.fnmatch(name, pattern) for pattern in self.only)

    @property
    def is_small(self) -> bool:
        """Whether few heats and light peers will do; a budget names what it needs itself."""
        return self.toy and self.budget_s is None

    def sizes_of(self, offered: Iterable[int], toy: int = 128) -> list[int]:
        """Of the record sizes a workload offers, those to be run."""
        return _chosen((toy,) if self.is_small else offered, self.sizes)

    def processes_of(self, offered: Iterable[int], toy: int = 1) -> list[int]:
        """The same for the number of processes."""
        return _chosen((toy,) if self.is_small else offered, self.processes)


def _chosen(offered: Iterable[int], wanted: Collection[int]) -> list[int]:
    return [each for each in offered if not wanted or each in wanted]


def throughput(records: int, record_bytes: int, seconds: float) -> dict[str, float]:
    """Rate values of `records` records in `seconds`."""
    return {
        "records": records,
        "seconds": seconds,
        "records_per_s": records / seconds,
        "mb_per_s": records * record_bytes / seconds / 1e6,
        "ns_per_record": seconds * 1e9 / records,
    }


def latency(samples_ns: ArrayLike) -> dict[str, float]:
    """Percentile values, in microseconds, of latencies in nanoseconds."""
    samples = np.asarray(samples_ns, dtype=np.float64) / 1e3
    names = {"p50_us": 50, "p90_us": 90, "p99_us": 99, "p99.9_us": 99.9, "max_us": 100}
    return {name: float(np.percentile(samples, percent)) for name, percent in names.items()}


def spread_of(figures: Sequence[float]) -> dict[str, float] | None:
    """The median of figures with the least and the greatest; None of none."""
    if not figures:
        return None
    return {"median": statistics.median(figures), "min": min(figures), "max": max(figures)}


class Running:
    """A heat under way, a repetition at a time.

    If contenders are `needed`, nobody else takes part but the baseline, and those `beside` now and then.
    """

    def __init__(
        self,
        workload: str,
        heat: Heat,
        options: Options,
        needed: Collection[str] = (),
        beside: Collection[str] = (),
    ) -> None:
        self.workload, self.heat, self.options = workload, heat, options
        entered = [each for each in heat.contenders if options.wants(each.name) or each.name == heat.baseline]
        wanted = {heat.baseline, *needed, *beside}
        self.entered = [each for each in entered if not needed or each.name in wanted]
        self.beside = {*beside} - {heat.baseline}
        self.runs_min = 0
        self.rows: dict[str, dict[str, Any]] = {
            each.name: {
                "name": each.name,
                "remark": each.remark,
                "skipped": "",
                "wrong": "",
                "repetitions": [],
            }
            for each in self.entered
        }

    def repeat(self, with_beside: bool = True) -> None:
        """Run once every contender that can and was not wrong; those beside only if they shall."""
        for contender in self.entered:
            row = self.rows[contender.name]
            due = with_beside or contender.name not in self.beside
            if due and not row["skipped"] and not row["wrong"]:
                self._run_once(contender, row)

    def _run_once(self, contender: Contender, row: dict[str, Any]) -> None:
        directory = Path(tempfile.mkdtemp(prefix="bench-", dir=self.options.directory)).resolve()
        try:
            with watched() as load:
                outcome = contender.run(directory)
        except Skipped as reason:
            row["skipped"] = str(reason)
        except WorkerError as error:
            row["skipped"] = "failed: " + str(error).strip().splitlines()[-1]
            print(f"{contender.name} failed:\n{error}", file=sys.stderr)
        else:
            row["repetitions"].append({**outcome.values, **load})
            row["remark"] = row["remark"] or outcome.remark
            if outcome.digest != outcome.expected:
                row["wrong"] = f"read back {outcome.digest}, appended {outcome.expected}"
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def measured(self) -> dict[str, Any]:
        """Everything so far as plain data."""
        compare, baseline = self.heat.compare, self.rows[self.heat.baseline]["repetitions"]
        for row in self.rows.values():
            runs = row["repetitions"]
            names = runs[0].keys() if runs else ()
            row["median"] = {name: statistics.median(each[name] for each in runs) for name in names}
            row["ratio"] = spread_of(
                [
                    ours[compare] / theirs[compare]
                    for ours, theirs in zip(runs, baseline, strict=False)
                    if compare in ours and theirs.get(compare)
                ]
            )
        return {
            "workload": self.workload,
            "title": self.heat.title,
            "columns": list(self.heat.columns),
            "compare": compare,
            "baseline": self.heat.baseline,
            "rows": list(self.rows.values()),
        }
