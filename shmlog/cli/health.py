"""Health: the verbs that say how a log fares, and clear away what dead ones left.

This module knows shmlog's tools and their reports.  It may not know how anything is found.
"""

from __future__ import annotations

import argparse
import os

from shmlog.cli.arguments import check_place
from shmlog.cli.output import colour, put, say


def doctor(chosen: argparse.Namespace) -> int:
    from shmlog.tools.doctor import WRONG, examine

    check_place(chosen.directory)
    checks = examine(chosen.directory)
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        verdict = colour(f"{check.verdict:7}", {"ok": 32, "warning": 33, "wrong": 31}[check.verdict])
        lines.append(f"{verdict}  {check.name:{width}}  {check.text}")
        if check.advice and check.verdict != "ok":
            lines.append(f"{'':7}  {'':{width}}  -> {check.advice}")
    say(chosen, [check.to_dict() for check in checks], "\n".join(lines))
    return int(any(check.verdict == WRONG for check in checks))


def metrics(chosen: argparse.Namespace) -> int:
    from shmlog.tools.metrics import metrics_text

    check_place(chosen.directory)
    if chosen.listen is None:
        if chosen.json:
            import shmlog

            with shmlog.open_readonly(chosen.directory) as log:
                say(chosen, [metric._asdict() for metric in log.statistics().metrics()], "")
        else:
            put(metrics_text(chosen.directory).encode())
        return 0
    from shmlog.tools.page import Server, serve

    host, port = chosen.listen
    server = Server(chosen.directory, host, port)
    url = f"http://{server.address}/"
    say(chosen, {"url": url}, f"{chosen.directory}: {url} for people, {url}metrics for Prometheus")
    serve(server)
    return 0


def gc(chosen: argparse.Namespace) -> int:
    from shmlog.tools.leftovers import leftovers

    names = {os.path.basename(name) for name in chosen.names}
    found = leftovers(names, chosen.yes)
    unknown = sorted(names - {left.name for left in found})
    if unknown:
        raise FileNotFoundError(f"/dev/shm has no control block {unknown[0]}, nor semaphores of it")
    lines = []
    for left in found:
        text = f"{left.name}  {left.state:9}  {left.memory_bytes >> 10} KiB of user {left.owner}"
        lines.append(text + (f": {left.why}" if left.why else "") + ("; removed" if left.removed else ""))
    if any(left.state == "unused" and not left.removed for left in found):
        lines.append("nothing has been removed; --yes removes what is unused")
    if any(left.state == "unsettled" and not left.removed for left in found):
        lines.append("what is unsettled is finished when its log is opened; `gc --yes NAME` gives it up")
    say(chosen, [left.to_dict() for left in found], "\n".join(lines) or "nothing in /dev/shm")
    return 0
