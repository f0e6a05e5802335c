"""Top: a log as it moves, in a terminal.

With the package rich (extra `cli`) on a terminal a picture that is drawn anew, else a few
lines for each look.

This module knows statistics and terminals.  It may not know where statistics come from.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shmlog.cli.arguments import check_place
from shmlog.cli.output import put

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shmlog import Statistics

BAR = 40


def top(chosen: argparse.Namespace) -> int:
    check_place(chosen.directory)
    shown = sys.stdout is not None and sys.stdout.isatty() and not chosen.json
    if shown and importlib.util.find_spec("rich"):
        _picture(chosen)
    else:
        for now, before in _looks(chosen):
            text = json.dumps(now.to_dict()) if chosen.json else "\n".join([*_lines(chosen, now, before), ""])
            put(text.encode(errors="surrogateescape") + b"\n", flush=True)
    return 0


def _looks(chosen: argparse.Namespace) -> Iterator[tuple[Statistics, Statistics]]:
    """Each look and the one before; until Ctrl-C, or as many as were asked for."""
    import shmlog

    with shmlog.open_readonly(chosen.directory) as log:
        before = log.statistics()
        left = chosen.count if chosen.count is not None else -1
        while left:
            time.sleep(chosen.interval)
            now = log.statistics()
            yield now, before
            before, left = now, left - 1


def size(count: float) -> str:
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count:.0f} B"


def seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def bar(now: Statistics) -> str:
    """From trimmed_lsn to the end of what is ready: durable =, committed -, reserved ~, room a dot."""
    begin, end = now.trimmed_lsn, max(now.limit_lsn, now.reserved_lsn)
    marks = (now.durable_lsn, now.committed_lsn, now.reserved_lsn, end)
    text, at = "", 0
    for mark, sign in zip(marks, "=-~.", strict=True):
        upto = round(BAR * (mark - begin) / (end - begin)) if end > begin else 0
        upto = min(BAR, max(upto, at + (mark > begin and sign != "." and upto == at and _any(now, sign))))
        text, at = text + sign * (upto - at), max(at, upto)
    return text.ljust(BAR, ".")


def _any(now: Statistics, sign: str) -> int:
    """Whether there is anything of that kind: then it has a column, however small."""
    held = {
        "=": now.durable_lsn > now.trimmed_lsn,
        "-": now.committed_lsn > now.durable_lsn,
        "~": now.reserved_lsn > now.committed_lsn,
    }
    return int(held[sign])


def _facts(now: Statistics, before: Statistics) -> list[tuple[str, str]]:
    passed_s = max(1e-3, (now.time_ns - before.time_ns) / 1e9)
    records = max(0, now.records - before.records) / passed_s
    payload = max(0, now.payload_bytes - before.payload_bytes) / passed_s
    syncs = max(0, now.syncs - before.syncs) / passed_s
    who = f"pid {now.flusher_pid}" if now.flusher_pid is not None else "none"
    facts = [
        ("log", f"[{now.trimmed_lsn}, {now.reserved_lsn}), {size(now.reserved_lsn - now.trimmed_lsn)}"),
        ("not durable", size(now.reserved_lsn - now.durable_lsn)),
        ("appends", f"{records:,.0f} records/s, {size(payload)}/s"),
        ("flusher", who),
    ]
    if now.syncs:
        quick, slow = (seconds(now.sync_quantile_s(share)) for share in (0.5, 0.99))
        facts.append(("syncs", f"{syncs:,.0f}/s, half below {quick}, 99 % below {slow}"))
    if now.blocked_by is not None and now.blocked_by.since_ns is not None:
        facts.append(("waits for", str(now.blocked_by)))
    if now.failed:
        facts.append(("FAILED", now.failed))
    return facts


def _writers(now: Statistics, before: Statistics) -> list[tuple[str, str, str]]:
    rates = {rate.participant: rate for rate in now.rates(before)}
    found = []
    for each in now.participants:
        if each.role == 1:
            rate = rates.get(each.number)
            name = f"{each.name} (pid {each.pid}){'' if each.alive else ', dead'}"
            speed = f"{rate.records_per_s:,.0f}/s, {size(rate.bytes_per_s)}/s" if rate else "new"
            found.append((name, speed, f"{each.records:,}"))
    return found


def _lines(chosen: argparse.Namespace, now: Statistics, before: Statistics) -> list[str]:
    lines = [f"{chosen.directory}  |{bar(now)}|"]
    lines += [f"  {name:12} {text}" for name, text in _facts(now, before)]
    lines += [
        f"  writer       {name}: {speed}; {count} in all" for name, speed, count in _writers(now, before)
    ]
    lines += [f"  cursor       {place.name}: {size(place.lag_bytes)} behind" for place in now.cursors]
    return lines


def _picture(chosen: argparse.Namespace) -> None:
    from rich.live import Live

    with Live(refresh_per_second=8, transient=False) as live:  # NO_COLOR is rich's own affair
        for now, before in _looks(chosen):
            live.update(_drawn(chosen, now, before), refresh=True)


def _drawn(chosen: argparse.Namespace, now: Statistics, before: Statistics) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    colours = {"=": "green", "-": "blue", "~": "yellow", ".": "bright_black"}
    picture = Text.assemble((chosen.directory, "bold"), "  ")
    for sign in bar(now):
        picture.append("━" if sign != "." else "─", colours[sign])
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(now, before):
        bad = name in ("FAILED", "waits for")
        facts.add_row(Text(name, "red" if bad else "dim"), Text(text, "red" if bad else ""))
    parts: list[Any] = [picture, facts]
    legend = Text("durable", "green") + Text(" committed", "blue") + Text(" reserved", "yellow")
    parts.insert(1, legend)
    writers = Table("writer", "now", "records", box=None, header_style="dim")
    for row in _writers(now, before):
        writers.add_row(*map(Text, row))
    cursors = Table("cursor", "behind", "at LSN", box=None, header_style="dim")
    for place in now.cursors:
        cursors.add_row(*map(Text, (place.name, size(place.lag_bytes), str(place.lsn))))
    parts += [table for table in (writers, cursors) if table.row_count]
    return Group(*parts)
