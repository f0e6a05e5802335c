"""Upkeep: the verbs that make, serve, look at and check a log.

This module knows shmlog's tools and the flusher process it can become.  It may not know
more of a log.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

from shmlog.cli import engines
from shmlog.cli.arguments import check_place
from shmlog.cli.output import progress_shown, say

if TYPE_CHECKING:
    from shmlog.tools.repair import RepairReport


def create(chosen: argparse.Namespace) -> int:
    from shmlog.tools.create import create

    sizes = chosen.segment_bytes, chosen.window_bytes
    kept = _retention(chosen)
    facts = create(chosen.directory, *sizes, chosen.mode, exist_ok=chosen.exist_ok, retention=kept)
    say(chosen, facts, f"{'created' if facts['created'] else 'there is'} {facts['path']}")
    return 0


def trim(chosen: argparse.Namespace) -> int:
    import shmlog

    check_place(chosen.directory)
    with shmlog.open(chosen.directory) as log:
        before = log.trimmed_lsn
        wanted = log.seek_time(chosen.older_than) if chosen.before is None else chosen.before
        trimmed = log.trim(wanted)
        facts = {
            "trimmed_lsn": trimmed,
            "trimmed_bytes": trimmed - before,
            "committed_lsn": log.committed_lsn,
        }
    say(chosen, facts, f"{chosen.directory}: begins at LSN {trimmed}, {trimmed - before} bytes given up")
    return 0


def _retention(chosen: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Retention that are to change."""
    given = {"cursors": chosen.cursors, "when_full": chosen.when_full}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name, value in (("bytes", chosen.retain_bytes), ("age", chosen.retain_age)):
        if value is not None:
            changes[name] = None if value < 0 else value
    return changes


def configure(chosen: argparse.Namespace) -> int:
    from dataclasses import replace

    from shmlog.tools.configure import configure, configured

    check_place(chosen.directory)
    kept = configured(chosen.directory)
    changes = _retention(chosen)
    if changes:
        kept = replace(kept, **changes)
        configure(chosen.directory, retention=kept)
    limit = "everything" if kept.bytes is None else f"{kept.bytes} bytes"
    age = "" if kept.age is None else f", for {kept.age:g} s"
    text = f"{chosen.directory}: {limit} is kept{age}; cursors: {kept.cursors}; when full: {kept.when_full}"
    say(chosen, kept.to_dict(), text)
    return 0


def flush(chosen: argparse.Namespace) -> int:
    from shmlog.session import sidecar

    if chosen.detach:
        sidecar.close_inherited()
    check_place(chosen.directory)
    status = sidecar.run(chosen.directory, chosen.sync_interval, chosen.mode, chosen.detach, chosen.session)
    if chosen.json:
        info(chosen)
    return status


def info(chosen: argparse.Namespace) -> int:
    from shmlog.tools import info as about

    if engines.is_url(chosen.directory):
        return engines.info(chosen)
    check_place(chosen.directory)
    facts = about.describe(chosen.directory)
    say(chosen, facts, about.text(facts))
    return 0


def recover(chosen: argparse.Namespace) -> int:
    import shmlog

    check_place(chosen.directory)
    found = shmlog.recover(chosen.directory, dry_run=chosen.dry_run, restarted=chosen.restarted)
    facts = {
        "state": found.case.value,
        "end_lsn": found.end_lsn,
        "trimmed_lsn": found.trimmed_lsn,
        "holes": found.holes,
        "dropped_bytes": found.dropped_bytes,
        "reason": found.reason,
    }
    text = f"{chosen.directory}: {found.case.value}, goes on at LSN {found.end_lsn}"
    if found.holes:
        text += f"; holes that are filled: {len(found.holes)}"
    if found.dropped_bytes:
        text += f"; {found.dropped_bytes} bytes dropped: {found.reason}"
    say(chosen, facts, text)
    return 0


def verify(chosen: argparse.Namespace) -> int:
    import shmlog

    if engines.is_url(chosen.directory):
        return engines.verify(chosen)
    check_place(chosen.directory)
    started = time.monotonic()
    with progress_shown(chosen) as progress:
        report = shmlog.verify(chosen.directory, progress)
    seconds = time.monotonic() - started
    text = (
        f"{report.path}: {report.records} records in [{report.begin_lsn}, {report.end_lsn}), {report.state}"
    )
    if report.ok:
        text = f"{text}: every frame is valid ({seconds:.2f} s)"
    else:
        place = "" if report.problem_lsn is None else f" at LSN {report.problem_lsn}"
        text = f"{text}: BAD{place}: {report.problem}"
    say(chosen, {**report.to_dict(), "seconds": seconds}, text)
    return 0 if report.ok else 1


def backup(chosen: argparse.Namespace) -> int:
    import shmlog

    check_place(chosen.directory)
    started = time.monotonic()
    with progress_shown(chosen) as progress:
        report = shmlog.backup(chosen.directory, chosen.target, progress, same_id=chosen.same_id)
    seconds = time.monotonic() - started
    text = (
        f"{report.target}: [{report.begin_lsn}, {report.end_lsn}) of {report.path}, {report.records} records"
        f" added from LSN {report.added_from_lsn} on ({seconds:.2f} s)"
    )
    say(chosen, {**report.to_dict(), "seconds": seconds}, text)
    return 0


def repair(chosen: argparse.Namespace) -> int:
    import shmlog

    check_place(chosen.directory)
    with progress_shown(chosen) as progress:
        report = shmlog.repair(
            chosen.directory, apply=chosen.yes, restarted=chosen.restarted, progress=progress
        )
    say(chosen, report.to_dict(), _repair_text(report))
    if not report.applied:
        return int(bool(report.changes))
    return int(report.verified is None or not report.verified.ok)


def _repair_text(report: RepairReport) -> str:
    if not report.changes:
        return f"{report.path}: nothing to repair"
    lines = [f"{report.path}: {'repaired' if report.applied else 'damaged'}"]
    for change in report.changes:
        place = os.path.relpath(change.path, report.path)
        if change.kind == "aside":
            lines.append(f"  {place}: moved away: {change.why}")
        elif change.kind == "rename":
            lines.append(f"  {place}: renamed to {os.path.basename(change.to)}: {change.why}")
        else:
            lines.append(f"  {place}: {change.kind}: {change.why}")
    lines.append(f"lost: {report.lost_bytes} bytes of the log in {len(report.lost)} ranges")
    lines += [f"  [{loss.begin_lsn}, {loss.end_lsn}): {loss.reason}" for loss in report.lost]
    if report.recovery is not None:
        dropped = report.recovery.dropped_bytes
        above = f"; above what was vouched for {dropped} bytes were torn, and dropped" if dropped else ""
        lines.append(f"the log goes on at LSN {report.recovery.end_lsn}{above}")
    if report.verified is not None:
        good = "every frame is valid now" if report.verified.ok else f"STILL BAD: {report.verified.problem}"
        lines.append(f"{good}; what was changed is kept in {os.path.relpath(report.kept, report.path)}")
    else:
        lines.append("nothing has been changed; --yes does it")
    return "\n".join(lines)
