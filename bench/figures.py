"""The figures to hold: what, against what, and the goal. `python -m bench` judges them all.

A row stands on the heat of that title, which a workload of this folder makes.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.kit.judging import Bound, Figure

# Those that could be taken instead of shmlog, and that sync.
DURABLE_PEERS = (
    "os.write",
    "okaywal (Rust)",
    "wal-db (Rust)",
    "Aeron Archive (Java)",
    "Chronicle Queue (Java)",
)
# Those that find a record's end by themselves.
READING_PEERS = (
    "flock + frame + os.write",
    "okaywal (Rust)",
    "wal-db (Rust)",
    "Aeron Archive (Java)",
    "Chronicle Queue (Java)",
)
APPENDING_PEERS = (*DURABLE_PEERS[1:], "iceoryx2", "Aeron IPC (Java)")

RATE = "records_per_s"
TAKE = "take 4096 records of 128 B"
RECOVER = "recover and verify 1*"
READ = "read 128 B records"
ONE_CALLER = "durable append 128 B, 1 caller"
FIRST = "first append of 128 B of a session"
IDLE = "idle for *"
TEN_LOGS = "ten idle logs *"
TASKS = "durable appends by 1000 callers of one process"


def _least(
    what: str, heat: str, contender: str, least: float, *against: str, value: str = RATE, runs: int = 0
) -> Figure:
    goal = f"≥ {least:g}x {_named(against)}" if against else f"≥ {_plain(least)} {value}"
    goal += f", each of {runs} runs" if runs else ""
    return Figure(what, heat, contender, value, (Bound(at_least=least, against=against),), goal, runs)


def _most(what: str, heat: str, contender: str, most: float, *against: str, value: str) -> Figure:
    goal = f"≤ {most:g}x {_named(against)}" if against else f"≤ {_plain(most)} {value}"
    return Figure(what, heat, contender, value, (Bound(at_most=most, against=against),), goal)


def _either(one: Figure, other: Figure) -> Figure:
    goal = f"{one.goal}, or {other.goal}"
    return Figure(one.what, one.heat, one.contender, one.value, one.bounds + other.bounds, goal)


def _named(against: tuple[str, ...]) -> str:
    return against[0] if len(against) == 1 else "every peer"


def _plain(bound: float) -> str:
    return f"{bound / 1e6:g} M" if bound >= 1e6 else f"{bound:g}"


def _appends() -> Iterator[Figure]:
    one = "append {} B, {} writers"
    batches = "append {} B in batches of 128, {} writers"
    yield _least("append, 16 B, 1 writer", one.format(16, 1), "shmlog", 8, "os.write")
    yield _least("append, 128 B, 1 writer", one.format(128, 1), "shmlog", 3.5, "os.write")
    for size, named in ((65536, "64 KiB"), (1 << 20, "1 MiB")):
        for writers in (1, 4):
            heat, said = one.format(size, writers), f"{named}, {writers} writer{'s'[: writers > 1]}"
            yield _least(f"append, {said}", heat, "shmlog", 1, "os.write")
            yield _least(f"reserve, {said}", heat, "shmlog reserve", 1, "shmlog append of a filled buffer")
    for writers in (1, 4):
        said = f"append_many, 128 B, {writers} writer{'s'[: writers > 1]}"
        yield _least(said, batches.format(128, writers), "shmlog append_many", 0.9, "os.writev")
    for way in ("append_many", "append_array"):
        yield _least(f"{way}, 128 B, 1 writer", batches.format(128, 1), f"shmlog {way}", 8, "os.write")
    against_memcpy = "append 65536 B against memcpy, 1 writer"
    yield _least("append, 64 KiB, 1 writer", against_memcpy, "shmlog", 0.5, "memcpy into a map")


def _durable() -> Iterator[Figure]:
    loop = "store + fdatasync"
    yield _most("durable, 128 B, 1 caller, p50", ONE_CALLER, "shmlog", 1.2, loop, value="p50_us")
    yield _most("durable, 128 B, 1 caller, p99", ONE_CALLER, "shmlog", 2, loop, value="p99_us")
    many = "durable append {} B, {} callers in {} processes"
    for size, callers, processes in (
        *((128, 4, 4), (128, 16, 4)),
        *((4096, 16, 4), (4096, 64, 1), (4096, 64, 8), (4096, 256, 8)),
    ):
        what = f"durable, {size} B, {callers} callers in {processes}"
        yield _least(what, many.format(size, callers, processes), "shmlog", 1, *DURABLE_PEERS)
    crowd = many.format(128, 64, 8)
    yield _least("durable, 128 B, 64 callers in 8", crowd, "shmlog", 20, "shmlog, 1 caller", runs=5)


def _reading() -> Iterator[Figure]:
    yield _least("read by record, 128 B", READ, "shmlog by record", 6e6)
    yield _least("read by record, 128 B", READ, "shmlog by record", 1, *READING_PEERS)
    yield _least("read indexed, checksum off", READ, "shmlog indexed, checksum off", 20e6)
    yield _least("read indexed, checksum on", READ, "shmlog indexed, checksum on", 5e6)
    yield _least("scan into pyarrow", READ, "shmlog scan to pyarrow", 24e6)
    yield _least("scan into polars", READ, "shmlog scan to polars", 19e6)
    yield _least("scan counted by DuckDB", READ, "shmlog scan counted by DuckDB", 8e6)
    for form in ("rows", "a batch"):
        take = f"shmlog take() as {form}"
        yield _most(f"take of 4,096 random records, {form}", TAKE, take, 500, value="us_per_take")
    arrays = ("batch.array() of 128 B records", "batch of 65536", 2, "batch of 256")
    yield _most("equal-sized batch as an array", *arrays, value="us_per_array")


def _others() -> Iterator[Figure]:
    wake = ("wake-up of a tail, p50", "wake-up, 128 B", "shmlog tail")
    yield _either(
        _most(*wake, 4, "semaphore round trip", value="p50_us"),
        _most(*wake, 1.25, "semaphore relay", value="p50_us"),
    )
    never = ("recovery, 1 GB, never synced", RECOVER, "shmlog recover, never synced")
    yield _either(
        _least(*never, 0.9, "CRC-32C over memory", value="mb_per_s"),
        _least(*never, 1, "write + fdatasync", value="mb_per_s"),
    )
    for what, contender in (("recovery, 1 GB, synced", "shmlog recover"), ("verify, 1 GB", "shmlog verify")):
        yield _least(what, RECOVER, contender, 0.5, "CRC-32C over memory", value="mb_per_s")
    rolls = ("append 1024 B, * with and without rolls", "shmlog with rolls", 2, "shmlog without rolls")
    yield _most("roll to the next segment, append p99.9", *rolls, value="p99.9_us")
    for age in ("a new log", "an old log"):
        yield _most(f"first append, {age}", FIRST, f"shmlog, {age}", 10_000, value="first_us")
    yield _most("import", "import", "import shmlog", 1.3, "import numpy", value="import_ms")
    yield _most("idle flusher", IDLE, "shmlog flusher", 1, value="cpu_percent")
    yield _most("idle flusher", IDLE, "shmlog flusher", 40, value="rss_mib")
    for value, most in (("pss_mb", 12), ("disk_mb", 20)):
        yield _most("ten idle logs, each", TEN_LOGS, "shmlog, each of ten", most, value=value)
    yield _least("1,000 tasks that await durability", TASKS, "tasks", 0.8, "threads")
    yield _most("1,000 tasks, stall of the loop", TASKS, "tasks", 5, value="stall_ms")


def _shipping() -> Iterator[Figure]:
    ship, client = "shmlog ship", "nats-py"
    yield _least("ship to JetStream, chunks", "JetStream, chunks *", ship, 0.85, client)
    yield _least("ship to JetStream, records", "JetStream, records *", ship, 0.7, client)
    archive = ("archive", "archive of *", "shmlog archive", 0.8, "obstore, put and get")
    yield _least(*archive, value="mb_per_s")
    yield _most("lag of a shipper, p99", "lag at *", ship, 30, value="p99_ms")
    yield _most("idle shipper", "an idle shipper *", ship, 2, value="cpu_percent")
    yield _least("a writer beside an idle shipper", "a writer, *", "shmlog ship, idle", 0.95, "no shipper")
    plain = "client with position"
    yield _least("ship to Kafka, chunks", "to Kafka as chunks*", ship, 0.9, plain)
    yield _least("ship to Kafka, records", "to Kafka as records*", ship, 0.8, plain)


FIGURES: tuple[Figure, ...] = (*_appends(), *_durable(), *_reading(), *_others())
SHIPPED: tuple[Figure, ...] = tuple(_shipping())

BESIDE = {
    "append 16 B, 1 writers": ("an empty C call", *APPENDING_PEERS),
    "append 65536 B, ? writers": APPENDING_PEERS,
    ONE_CALLER: DURABLE_PEERS,
    "durable append *": ("os.write", "wal-db (Rust)", "Chronicle Queue (Java)"),
}
"""Who takes part in the first round only: no figure there speaks of them, or they are far behind."""
