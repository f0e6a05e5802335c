"""Make golden files: small logs of today's format, and what is known to be in them.

    python tests/golden/make.py VERSION NAME...

    v2/SHA256SUMS               of every file below, as sha256sum writes and checks it
    v2/NAME/log/                a log's files, but for flusher.log, which is for people
    v2/NAME/expected.json       what the writers said that they appended, and what follows

The logs are made by the library with processes that are killed, cut off or closed; what
a power cut or a bad disk does to bytes is written by hand.  What is expected does not
come from the library: LSNs, tags, writers and payloads are what the writers said, the
rest follows from those and from the second reader.  Ids, times and the number of syncs
differ from run to run, everything else is the same.

    closed      two writers that left: every size around a granule's end, tags, rows, atomic
                batches, one of them over a segment's end; a PAD, a FILL, and a segment
                that is full without a PAD
    killed      a hole in one segment and one over a segment's end, records above both
    torn        frames of a log that lost power: one written in part, garbage above them
    trimmed     the first segments gone
    cursor      a cursor that was committed three times; its reader was killed
    corrupt     one bit of a payload, below the mark

Golden files are added, never edited: what is there already is refused.  Of format 1, which
was never released, one log is left, to be refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `support`, when run as a script

import writers
from support.pyreader import DATA, FILL, GOES_ON, HEADER_AREA, PAD, Frame, Mark, Origin, PyLog
from writers import SEGMENT_BYTES, Story, Writer, kill_all, pattern

import shmlog

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
OTHER_BOOT = bytes(range(16))
HEX_BYTES_MAX = 64
"""A longer payload is expected by its checksum."""

ROWS = np.array(
    [(number, number / 8, b"row %d" % number) for number in range(7)],
    dtype=[("number", "<u4"), ("value", "<f8"), ("text", "S11")],
)


def overwrite(path: Path, lsn: int, data: bytes) -> None:
    first = lsn - lsn % SEGMENT_BYTES
    with (path / "segments" / f"{first:020d}.seg").open("r+b") as file:
        file.seek(HEADER_AREA + lsn - first)
        file.write(data)


# ----------------------------------------------------------------------- logs
#
# Each makes one log and returns how it is to be judged: by machines of which boot id, and
# what has to come of it.


def closed(story: Story) -> list[dict[str, Any]]:
    with Writer(story) as second, Writer(story) as first:
        sizes = {0, 1, *(32 * n + more for n in range(1, 6) for more in (-1, 0, 1)), 4063, 4064, 4065}
        for number, size in enumerate(sorted(sizes)):
            (first, second)[number % 2].append(pattern(number, size), tag=number)
        first.append(b"the greatest tag", 2**32 - 1, durable=True)
        given_up = second.do(writers.tail)
        second.do(writers.reserve_and_abort, 1000)
        first.append_many([b"of one call", b"", b"but not atomic"], tag=7)
        first.append_array(ROWS, tag=8)
        second.append_array(np.arange(60, dtype="<i8").reshape(20, 3), tag=9)
        second.append_many([b"all", b"or", b"none" * 10], tag=10, atomic=True)
        first.fill_and_publish(pattern(11, 100), tag=11)
        second.fill_up_to(480)
        batch = second.append_many([pattern(n, 150) for n in range(5)], tag=12, atomic=True)
        assert batch[1] + 192 == SEGMENT_BYTES - 96 and batch[2] == SEGMENT_BYTES
        first.fill_up_to(96)
        assert first.append(pattern(13, 64), tag=13) + 96 == 2 * SEGMENT_BYTES  # just fits
        first.fill_up_to(64)
        assert second.append(pattern(14, 33), tag=14) == 3 * SEGMENT_BYTES  # just does not
        second.append(b"the last one", tag=15)
    story.fillers = [
        (FILL, given_up, given_up + 1056, 0),
        (PAD, SEGMENT_BYTES - 96, SEGMENT_BYTES, GOES_ON),  # within the batch
        (PAD, 3 * SEGMENT_BYTES - 64, 3 * SEGMENT_BYTES, 0),
    ]
    return [judged(story, seen, "clean", story.end_lsn) for seen in SEEN]


def killed(story: Story) -> list[dict[str, Any]]:
    with Writer(story, sync_interval=1000) as first, Writer(story, sync_interval=1000) as second:
        vouched_for(first)
        first.fill_up_to(8000)
        end = first.do(writers.tail)
        first.do(writers.reserve, 1000)
        above = [second.append(pattern(n, 40 * n), tag=2) for n in range(9)]
        begin_over_end = second.do(writers.tail)
        second.do(writers.reserve, 20_000)
        over_end = first.append(b"above both", tag=3)
        second.append_many([b"an atomic", b"batch above both"], tag=4, atomic=True)
        kill_all(story, first, second)
    holes = [(end, above[0]), (begin_over_end, over_end)]
    assert holes[0] == (end, end + 1056)
    assert begin_over_end < SEGMENT_BYTES < over_end == SEGMENT_BYTES + 20_032
    return [
        judged(story, "same", "holes", story.end_lsn, holes=holes),
        judged(story, "container", "holes", story.end_lsn, holes=holes),
        judged(story, "other", "torn", end, dropped_bytes=story.end_lsn - end),
        judged(story, "unclear", "unclear", bad=holes[0]),
        judged(story, "copied", "copy", bad=holes[0]),
    ]


def torn(story: Story) -> list[dict[str, Any]]:
    with Writer(story, sync_interval=1000) as writer:
        vouched_for(writer)
        late = [writer.append(pattern(n, 100 + n), tag=2) for n in range(10)]
        batch = writer.append_many([pattern(n, 200) for n in range(6)], tag=3, atomic=True)
        kill_all(story, writer)
    # What a power cut leaves: a frame of which a part was never written, and behind the last
    # one bytes that were another file's.
    overwrite(story.path, batch[3] + 32 + 50, bytes(150))
    garbage = story.end_lsn + 96
    overwrite(story.path, garbage, b"\xa5" * 100)
    assert late[-1] < batch[0]
    return [judged(story, "other", "torn", batch[0], dropped_bytes=garbage + 128 - batch[0])]


def trimmed(story: Story) -> list[dict[str, Any]]:
    with Writer(story) as writer:
        while len(story.lsns) < 12 or story.lsns[-1] < 3 * SEGMENT_BYTES:
            writer.append(pattern(len(story.lsns), 15_000 + len(story.lsns)), tag=len(story.lsns))
        story.trimmed_lsn = writer.do(writers.trim, 2 * SEGMENT_BYTES + 20_000)
        assert story.trimmed_lsn == 2 * SEGMENT_BYTES
        at = max(lsn for lsn in story.lsns if lsn < 3 * SEGMENT_BYTES)
        pad = at + (32 + len(story.told[at][-1]) + 31) // 32 * 32
        story.fillers = [(PAD, pad, 3 * SEGMENT_BYTES, 0)]
        writer.append(b"after the trim", durable=True)
    return [judged(story, seen, "clean", story.end_lsn) for seen in SEEN]


def cursor(story: Story) -> list[dict[str, Any]]:
    with Writer(story, sync_interval=1000) as writer:
        vouched_for(writer)
        lsns = [writer.append(b"record %d" % n, tag=2) for n in range(20)]
        story.cursors["etl"] = [writer.do(writers.commit, "etl", lsns[n]) for n in (4, 9, 13)]
        writer.append(b"not waited for")
        kill_all(story, writer)
    assert story.cursors["etl"] == [lsns[n] for n in (4, 9, 13)]
    return [
        judged(story, seen, "intact" if seen in ("same", "container") else "restart", story.end_lsn)
        for seen in SEEN
    ]


def corrupt(story: Story) -> list[dict[str, Any]]:
    with Writer(story) as writer:
        lsns = [writer.append(pattern(n, 50 + n), tag=n) for n in range(12)]
    payload = story.told[lsns[5]][-1]
    overwrite(story.path, lsns[5] + 32 + 20, bytes([payload[20] ^ 4]))
    return [judged(story, seen, "corrupt", bad=(lsns[5], lsns[6])) for seen in SEEN]


MAKERS: dict[str, Callable[[Story], list[dict[str, Any]]]] = {
    maker.__name__: maker for maker in (closed, killed, torn, trimmed, cursor, corrupt)
}


SEEN: dict[str, Callable[[Origin], Origin]] = {
    "same": lambda mark: mark._replace(up_ns=mark.up_ns + 10**9),
    "other": lambda mark: mark._replace(boot_id=OTHER_BOOT, file_system=1),
    "container": lambda mark: mark._replace(
        boot_id=OTHER_BOOT, kernels=False, started_ns=mark.started_ns + 999, up_ns=mark.up_ns + 10**9
    ),
    "unclear": lambda mark: mark._replace(
        boot_id=OTHER_BOOT, kernels=False, started_ns=mark.started_ns + 10**9, up_ns=mark.up_ns + 10**9
    ),
    "copied": lambda mark: mark._replace(born_ns=mark.born_ns + 1),
}
"""From where a log is seen that was written somewhere: there and before a restart, after one, by a
container on the same run of the machine, by one that cannot tell, and in another place."""


def vouched_for(writer: Writer) -> None:
    """Records below a mark and some that were only synced."""
    for number in range(8):
        writer.append(pattern(number, 30 * number), tag=1)
    writer.do(writers.wait_durable)
    writer.append(b"synced, and its sync carries the mark that vouches for what is below", tag=1)
    writer.do(writers.wait_durable)


def judged(
    story: Story,
    seen: str,
    case: str,
    end_lsn: int | None = None,
    holes: Sequence[tuple[int, int]] = (),
    dropped_bytes: int = 0,
    bad: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What comes of the log seen from somewhere: SEEN."""
    here = SEEN[seen](PyLog(story.path).newest_mark().origin)
    body: dict[str, Any] = {"seen": seen, "here": plain_origin(here), "case": case}
    if bad is not None:
        return {**body, "bad_lsn": bad[0], "bad_bytes": bad[1] - bad[0]}
    epoch = 2 if case in ("torn", "restart") else 1
    return {
        **body,
        "end_lsn": end_lsn,
        "epoch": epoch,
        "trimmed_lsn": story.trimmed_lsn,
        "holes": [list(hole) for hole in holes],
        "dropped_bytes": dropped_bytes,
    }


def machine_boot_id() -> bytes:
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes


# ------------------------------------------------------------------- expected


def plain_payload(payload: bytes) -> dict[str, Any]:
    if len(payload) <= HEX_BYTES_MAX:
        return {"bytes": len(payload), "hex": payload.hex()}
    return {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


def plain_frames(frames: Iterable[Frame]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records and fillers."""
    records, fillers = [], []
    for frame in frames:
        if frame.kind == DATA:
            head = {key: getattr(frame, key) for key in ("lsn", "time_ns", "tag", "writer", "flags")}
            records.append(head | plain_payload(frame.payload))
        else:
            kind = {PAD: "PAD", FILL: "FILL"}[frame.kind]
            size = frame.end_lsn - frame.lsn
            fillers.append({"lsn": frame.lsn, "kind": kind, "bytes": size, "flags": frame.flags})
    return records, fillers


def plain_mark(mark: Mark | None) -> dict[str, Any] | None:
    return None if mark is None else {**mark._asdict(), "origin": plain_origin(mark.origin)}


def plain_origin(origin: Origin) -> dict[str, Any]:
    return {**origin._asdict(), "boot_id": origin.boot_id.hex()}


def plain_segments(log: PyLog) -> list[dict[str, Any]]:
    return [
        {
            "first_lsn": first,
            "epoch": header.epoch,
            "created_ns": header.created_ns,
            "marks": [plain_mark(mark) for mark in log.marks(first)],
        }
        for first, header in log.segments().items()
    ]


def describe(story: Story, verdicts: list[dict[str, Any]], version: int, since_ns: int) -> dict[str, Any]:
    """expected.json: what was said, held against what the second reader finds."""
    log = PyLog(story.path)
    ranges = readable(log, verdicts[0])
    frames = [frame for begin, end in ranges for frame in log.frames(begin, end)]
    data = [frame for frame in frames if frame.kind == DATA]
    known = [lsn for lsn in story.lsns if any(begin <= lsn < end for begin, end in ranges)]
    assert {frame.lsn: (frame.tag, frame.writer, frame.flags, frame.payload) for frame in data} == {
        lsn: story.told[lsn] for lsn in known
    }
    fillers = [(frame.kind, frame.lsn, frame.end_lsn, frame.flags) for frame in frames if frame.kind != DATA]
    assert fillers == story.fillers
    times = [since_ns, *(frame.time_ns for frame in data), time.time_ns()]
    assert times == sorted(times), "the clock jumped back: make it again"
    newest = log.newest_mark()
    assert newest.origin.boot_id == machine_boot_id() and newest.trimmed_lsn == story.trimmed_lsn
    cursors = {}
    for name, places in story.cursors.items():
        copies = [copy._asdict() if copy else None for copy in log.cursor(name)]
        assert sorted(copy["lsn"] for copy in copies if copy) == places[-2:]
        cursors[name] = {"lsn": places[-1], "copies": copies}
    plain_records, plain_fillers = plain_frames(frames)
    return {
        "version": version,
        "made_by": f"shmlog {shmlog.__version__}",
        "log_id": log.log_id.hex(),
        "segment_bytes": log.segment_bytes,
        "window_bytes": log.window_bytes,
        "created_ns": log.created_ns,
        "segments": plain_segments(log),
        "newest_mark": plain_mark(newest),
        "judged": verdicts,
        "cursors": cursors,
        "fillers": plain_fillers,
        "records": plain_records,
    }


def readable(log: PyLog, verdict: dict[str, Any]) -> list[tuple[int, int]]:
    """The ranges that hold frames and nothing else, of a log judged so."""
    if verdict["case"] == "corrupt":
        bad, size = verdict["bad_lsn"], verdict["bad_bytes"]
        return [(0, bad), (bad + size, log.newest_mark().durable_lsn)]
    edges = [verdict["trimmed_lsn"], *itertools.chain(*verdict["holes"]), verdict["end_lsn"]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def encode(expected: dict[str, Any]) -> str:
    """JSON with a line for each thing in it."""
    lines = []
    for key, value in expected.items():
        if isinstance(value, list) and value:
            items = ",\n  ".join(json.dumps(item) for item in value)
            lines.append(f'"{key}": [\n  {items}\n ]')
        else:
            lines.append(f'"{key}": {json.dumps(value)}')
    return "{\n " + ",\n ".join(lines) + "\n}\n"


# ----------------------------------------------------------------------- files


def checksums(root: Path) -> dict[str, str]:
    """Of every file below root but the list itself."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / SUMS
    }


def make(root: Path, version: int, name: str) -> Path:
    """Make one golden log below root/vVERSION; where it is."""
    place = root / f"v{version}" / name
    if place.exists():
        raise FileExistsError(f"{place} is there: golden files are added, never edited")
    with tempfile.TemporaryDirectory(prefix="shmlog-golden-") as scratch:
        path = Path(scratch, "log")
        story, since_ns = Story(path), time.time_ns()
        verdicts = MAKERS[name](story)
        made = json.loads((path / "shmlog.json").read_bytes())["version"]
        if made != version:
            raise ValueError(f"this library makes format version {made}, not {version}")
        (path / "flusher.log").unlink()
        expected = describe(story, verdicts, version, since_ns)
        place.mkdir(parents=True)
        shutil.copytree(path, place / "log")
        (place / "expected.json").write_text(encode(expected), encoding="utf-8")
    with (place.parent / SUMS).open("a", encoding="ascii") as file:
        file.writelines(f"{digest}  {name}/{path}\n" for path, digest in checksums(place).items())
    return place


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or not arguments[0].isdecimal() or set(arguments[1:]) - set(MAKERS):
        sys.exit(f"usage: make.py VERSION NAME...\nnames: {' '.join(MAKERS)}")
    for name in arguments[1:]:
        try:
            print(make(HERE, int(arguments[0]), name))
        except (FileExistsError, ValueError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
