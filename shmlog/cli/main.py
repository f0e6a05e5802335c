"""Main: the shmlog command, its verbs and how they end.

Every verb prints for people, or one JSON document (cat: one a line) with --json.
Exit status: 0 done; 1 an error, reported on stderr, or a reader of the output that has
gone, which is not; 2 wrong usage; 3 fenced (ship); 130 interrupted.

This module knows the verbs' words.  It may not know what a verb does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from shmlog.cli import arguments as words
from shmlog.cli import completions, engines, health, records, upkeep
from shmlog.cli import top as show
from shmlog.cli.output import drop_output, put, report
from shmlog.errors import ShmlogError

COMPLETIONS = "Print a script by which a shell completes shmlog's verbs, options and files."


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Of the width that argparse asks shutil for, which keeps a third of a megabyte in every flusher."""
    try:
        width = int(os.environ.get("COLUMNS", 0)) or os.get_terminal_size(1).columns
    except (ValueError, OSError):
        width = 80
    return argparse.HelpFormatter(prog, width=(width or 80) - 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shmlog",
        description="A durable append-only log that many processes write.",
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], text: str, place: str = "DIR"
    ) -> argparse.ArgumentParser:
        new = verbs.add_parser(name, help=text, description=text, formatter_class=_formatter)
        new.set_defaults(run=run, refuse=new.error)
        meant = {"DIR": "the log's directory", "URL": "of an archive: s3://BUCKET/PREFIX, file:///PATH ..."}
        if place:
            new.add_argument(
                "directory", metavar=place, help=meant.get(place, "a log's directory or an archive")
            )
        if place not in ("DIR", ""):
            new.add_argument("--log", metavar="ID", help="of an archive with several: which log")
            new.add_argument("--config", metavar="FILE", help="TOML: [store], settings of an archive's store")
        new.add_argument("--json", action="store_true", help="print JSON")
        return new

    sub = verb("create", upkeep.create, "Create a log; an error if there is one already.")
    sub.add_argument(
        "--segment-bytes", type=words.size, metavar="SIZE", help="a power of two (default 64MiB)"
    )
    sub.add_argument("--window-bytes", type=words.size, metavar="SIZE", help="a power of two (default 64MiB)")
    sub.add_argument("--mode", type=words.mode, default=0o600, help="mode of the files, octal (default 600)")
    sub.add_argument("--exist-ok", action="store_true", help="no error if there is one of these sizes")
    _choose_retention(sub)

    sub = verb("flush", upkeep.flush, "Be the log's flusher until SIGTERM or Ctrl-C.")
    sub.add_argument(
        "--sync-interval", type=words.seconds, default=0.01, metavar="S", help="seconds (default 0.01)"
    )
    sub.add_argument("--mode", type=words.mode, help="mode of new files, octal (default: the log's)")
    sub.add_argument("--detach", action="store_true", help="go to the background; leave with the last user")
    sub.add_argument("--session", type=int, help=argparse.SUPPRESS)  # by handles: flushers.start

    sub = verb(
        "append", records.append, "Append standard input: a record a line, or all of it as one record."
    )
    sub.add_argument("--whole", action="store_true", help="all of standard input is one record")
    sub.add_argument("--tag", type=words.tag, default=0, help="the records' tag (default 0)")
    sub.add_argument("--create", action="store_true", help="create the log if absent")
    sub.add_argument("--no-sync", action="store_true", help="do not wait until all is durable")

    sub = verb("cat", records.cat, "Print records, a line each (--json: with their columns).", "DIR|URL")
    sub.add_argument("--stop", type=int, metavar="LSN", help="up to the records that begin before this")
    sub.add_argument("--follow", action="store_true", help="go on as records are committed")
    _choose_records(sub)
    sub = verb("tail", records.cat, "Print records, and go on as more are committed: cat --follow.")
    sub.set_defaults(stop=None, follow=True)
    _choose_records(sub)

    sub = verb("export", records.export, "Write records to a file: .jsonl, .csv, .parquet or .mcap.")
    sub.add_argument("target", metavar="OUT", help="a new file; its ending is the format")
    sub.add_argument("--start", type=int, metavar="LSN", help="from this record on")
    sub.add_argument("--stop", type=int, metavar="LSN", help="up to the records that begin before this")
    sub.add_argument(
        "--since", type=words.moment, metavar="TIME", help="ISO 8601, or 10m for ten minutes ago"
    )
    sub.add_argument("--until", type=words.moment, metavar="TIME", help="the same")
    sub.add_argument("--tag", type=words.tags, metavar="TAGS", help="only these: 3, 3,5 or 10-19")
    sub.add_argument("--dtype", type=words.dtype, help="what every payload is, as NumPy writes it, or JSON")
    sub.add_argument("--force", action="store_true", help="replace a file that is there")

    verb("cursors", records.cursors, "List the named cursors, their lag and who has them open.")
    sub = verb("configure", upkeep.configure, "Show how much of the log is kept, or change it.")
    _choose_retention(sub)
    verb("info", upkeep.info, "Show what the log is and who uses it.", "DIR|URL")
    sub = verb("recover", upkeep.recover, "Do to a log that nobody uses what the next opening would.")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be done")
    _ask_whether_it_restarted(sub)
    verb("verify", upkeep.verify, "Check every frame; exit status 1 if one is bad.", "DIR|URL")

    _health(verb)
    sub = verb("trim", upkeep.trim, "Give up the oldest records, by whole segments.")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--before", type=words.count, metavar="LSN", help="the records below this")
    what.add_argument(
        "--older-than", type=words.moment, metavar="TIME", help="ISO 8601, or 10m for ten minutes ago"
    )

    sub = verb("backup", upkeep.backup, "Copy the log, in use or not, or add what is new to such a copy.")
    sub.add_argument("target", metavar="TARGET", help="a new directory, or an earlier backup of this log")
    sub.add_argument("--same-id", action="store_true", help="the copy is to take the log's place")

    sub = verb("repair", upkeep.repair, "Say what of a damaged log can be kept; with --yes, keep it.")
    sub.add_argument("--yes", action="store_true", help="do it; what is overwritten is kept in DIR/repaired")
    _ask_whether_it_restarted(sub)
    _add_engines(verb)
    sub = verb("completions", partial(completions.print_script, parser), COMPLETIONS, place="")
    sub.add_argument("shell", choices=completions.SHELLS, help="whose")
    return parser


def _health(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """How a log fares, and what dead ones left."""
    verb(
        "doctor", health.doctor, "Say what is wrong, and what to do about it; exit status 1 if something is."
    )
    sub = verb("top", show.top, "Show the log as it moves, until Ctrl-C.")
    sub.add_argument("--interval", type=words.seconds, default=1.0, metavar="S", help="seconds (default 1)")
    sub.add_argument("--count", type=words.count, metavar="N", help="at most so many looks")
    sub = verb("metrics", health.metrics, "Print OpenMetrics text, or serve it with a page for people.")
    sub.add_argument(
        "--listen", type=words.address, metavar="HOST:PORT", help="serve until Ctrl-C; :PORT is on 127.0.0.1"
    )
    text = "List what every log has in /dev/shm; with --yes, remove what nobody uses."
    sub = verb("gc", health.gc, text, place="")
    sub.add_argument("names", metavar="NAME", nargs="*", help="only these control blocks, as listed")
    sub.add_argument("--yes", action="store_true", help="remove what is unused; what is unsettled if named")


def _ask_whether_it_restarted(sub: argparse.ArgumentParser) -> None:
    """For whoever knows what the files and the clocks do not tell."""
    answers = sub.add_mutually_exclusive_group()
    answers.add_argument(
        "--restarted",
        action="store_true",
        default=None,
        help="the machine restarted since: drop what is torn",
    )
    answers.add_argument(
        "--not-restarted",
        action="store_false",
        dest="restarted",
        default=None,
        help="it did not: keep all, and fill the holes of dead writers",
    )


def _add_engines(verb: Callable[..., argparse.ArgumentParser]) -> None:
    sub = verb("ship", engines.ship, "Ship records to an engine on other machines, as they come.")
    sub.add_argument(
        "url",
        metavar="URL",
        help="nats://HOST[,HOST...]/STREAM[?replicas=N], valkey://HOST/KEY,"
        " kafka://HOST[,HOST...]/TOPIC[?partition=N]",
    )
    sub.add_argument("--name", default="ship", help="of the cursor that holds what is not shipped (ship)")
    form = sub.add_mutually_exclusive_group()
    form.add_argument(
        "--records", action="store_const", dest="form", const="records", help="one message a record"
    )
    form.add_argument(
        "--chunks", action="store_const", dest="form", const="chunks", help="many records a message"
    )
    sub.add_argument(
        "--chunk-bytes",
        type=words.size,
        default=256 << 10,
        metavar="SIZE",
        help="at most so much in one write (default 256K)",
    )
    sub.add_argument("--tag", type=words.tags, metavar="TAGS", help="only these: 3, 3,5 or 10-19")
    sub.add_argument("--config", metavar="FILE", help="TOML: settings for the engine's library")
    sub.add_argument(
        "--max-held-bytes",
        type=words.size,
        metavar="SIZE",
        help="stop keeping for the engine what is more behind than this (default: never)",
    )
    sub.add_argument("--once", action="store_true", help="end when what is there now is shipped")

    sub = verb("forward", engines.forward, "Forward OpenTelemetry's spans to a collector, as they come.")
    sub.add_argument(
        "--otlp", metavar="URL", required=True, help="of a collector, OTLP over HTTP: http://HOST:4318"
    )
    text = "spans (default), or messages of shmlog.integrations.logging as OTLP logs"
    sub.add_argument("--format", choices=("spans", "logging"), default="spans", help=text)
    sub.add_argument("--name", default="forward", help="of the cursor that holds what is not forwarded")
    sub.add_argument("--aside", metavar="DIR2", help="a log, made if absent, for what is refused for good")
    sub.add_argument("--config", metavar="FILE", help="TOML: [otlp], headers, ca_file and timeout")
    sub.add_argument("--once", action="store_true", help="end when what is there now is forwarded")

    sub = verb("archive", engines.archive, "Put sealed segments into an object store, as they come.")
    sub.add_argument("url", metavar="URL", help="s3://BUCKET/PREFIX, gs://, az://, file:///PATH")
    sub.add_argument("--name", default="archive", help="of the cursor that holds what is not archived")
    sub.add_argument("--trim", action="store_true", help="give up in the log what is archived")
    sub.add_argument(
        "--keep-bytes", type=words.size, default=0, metavar="SIZE", help="but for so much (default 0)"
    )
    sub.add_argument("--config", metavar="FILE", help="TOML: [store], settings of the store")
    sub.add_argument("--once", action="store_true", help="end when what is sealed now is archived")

    sub = verb("restore", engines.restore, "Make a log's directory from an archive.", "URL")
    sub.add_argument("target", metavar="DIR", help="where nothing is yet")


def _choose_retention(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--retain-bytes", type=words.budget, metavar="SIZE", help="keep the files within it; none: all"
    )
    sub.add_argument(
        "--retain-age", type=words.age, metavar="AGE", help="how long: 90s, 10m, 2h, 7d; none: for ever"
    )
    sub.add_argument("--cursors", choices=("protect", "ignore"), help="whether what a cursor needs stays")
    sub.add_argument(
        "--when-full", choices=("wait", "trim"), help="a cursor holds the budget back: writers wait, or not"
    )


def _choose_records(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--start", type=int, metavar="LSN", help="from this record on")
    sub.add_argument("--tag", type=words.tag, help="only records of this tag")
    sub.add_argument("--count", type=words.count, metavar="N", help="at most so many records")
    sub.add_argument("--raw", action="store_true", help="the payloads alone, without line ends")
    sub.add_argument(
        "--since", type=words.moment, metavar="TIME", help="ISO 8601, or 10m for ten minutes ago"
    )
    sub.add_argument(
        "--format",
        choices=("plain", "logging"),
        default="plain",
        help="logging: what shmlog.integrations.logging wrote, as text",
    )
    sub.add_argument(
        "--level", type=words.level, metavar="LEVEL", help="only messages of this level and above"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.verb is None and not chosen.version:
        parser.print_usage(sys.stderr)
        return 2
    try:
        if chosen.version:
            import shmlog

            put(f"shmlog {shmlog.__version__}\n".encode())
            status = 0
        else:
            status = int(chosen.run(chosen))
        put(b"", flush=True)
        return status
    except BrokenPipeError:
        drop_output()
        return 1
    except KeyboardInterrupt:
        return 130
    except (ShmlogError, OSError, ValueError) as error:
        report(error, chosen.verb is not None and chosen.json)
        return 1
