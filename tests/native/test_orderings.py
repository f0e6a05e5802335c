"""The orderings that the core's atomics ask for, on machines weaker than x86.

orderings.c runs the core's own headers under a model of C11's atomics (weak_memory.h): what
ThreadSanitizer sees of one run on this machine, this sees of every run with a few switches and
a few stale loads, of release and acquire as well as of seq_cst.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support.steps import Mutation

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "shmlog" / "native"
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-Wno-missing-field-initializers")

SCENARIOS = {
    # name: how many choices may cost, in `make test` and in `make crash`
    "read": (2, 4),
    "writers": (1, 2),
    "holes": (2, 4),
    "handle": (2, 4),
    "room": (2, 3),
    "sleep": (3, 5),
    "wait": (2, 3),
    "sync": (3, 4),
}


def build(where: Path, mutations: tuple[Mutation, ...] = ()) -> Path:
    """Compile the program over a copy of the core's headers, with the mutations."""
    texts = {f"core/{path.name}": path.read_text() for path in sorted((NATIVE / "core").glob("*.h"))}
    texts |= {path.name: path.read_text() for path in (HERE / "orderings.c", HERE / "weak_memory.h")}
    for mutation in mutations:
        texts[mutation.file] = mutation.apply(texts[mutation.file])
    (where / "core").mkdir()
    for name, text in texts.items():
        (where / name).write_text(text)
    compiler = shlex.split(os.environ.get("CC") or "cc")
    command = [*compiler, "-std=gnu11", "-O1", *WARNINGS, "-Icore", "orderings.c", "-o", "orderings"]
    made = subprocess.run(command, cwd=where, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return where / "orderings"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=1000)
    assert done.returncode in (0, 1), f"{arguments}: {done.returncode} {done.stderr}"
    return done


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("orderings"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_run_on_a_weak_machine_breaks_the_protocol(program: Path, name: str) -> None:
    done = run(program, name, SCENARIOS[name][0])
    assert done.returncode == 0, done.stderr


@pytest.mark.crash
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_longer_run_on_a_weak_machine_does_either(program: Path, name: str) -> None:
    for arguments in ((SCENARIOS[name][1],), (12, 20261124, 2_000_000)):
        done = run(program, name, *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"


PUBLISH = "atomic_fetch_or_explicit(&words[low], low_mask & high_mask, memory_order_seq_cst);"
PUBLISH_RELEASE = PUBLISH.replace("seq_cst", "release")
CLAIM_STORE = """        SHMLOG_STEP("claim begin");
        atomic_store_explicit(word_at(t->claim, CL_BEGIN), pos, memory_order_release);
"""
RESERVE = """atomic_compare_exchange_strong_explicit(reserved, &pos, end, memory_order_seq_cst,
                                                    memory_order_relaxed)"""
FILLED = """    if (outcome == OUTCOME_DONE)
        outcome = fill(w, plan, t, lsns);
"""
PUBLISHED = """    if (outcome == OUTCOME_DONE)
        outcome = publish(w, t, plan->count, plan->payload_bytes);
"""
GIVEN = """CL_BEGIN), NO_LSN, memory_order_release);
    atomic_fetch_or"""
COMMIT = "atomic_store(word_at(control, CB_COMMITTED_LSN), c->committed);"
SCAN = "atomic_load_explicit(&b->words[at >> 6], memory_order_acquire)"
SLEEPS = "atomic_load(word_at(w->control, CB_COMMIT_SLEEP))"
WANTED = "atomic_load(word_at(control, wanted)) > old"
REACHED = """    shared_u64 *word = word_at(control, watermark);
    if (atomic_load(word) >= target)"""
RING = "atomic_load(word_at(control, sleep_word)) != SLEEP_AWAKE"
FLOOR = "atomic_load_explicit(&w->floor, memory_order_acquire)"
FLOOR_SET = "atomic_store_explicit(&w->floor, end, memory_order_release);"
LIMIT = "end > atomic_load_explicit(limit, memory_order_acquire)"
LIMIT_STORE = "atomic_store(limit_word, c->limit); /* LIMIT (release) */"
PREPARED = "atomic_load_explicit(word_at(control, CB_PREPARED_LSN), memory_order_acquire)"
FENCE = "atomic_thread_fence(memory_order_seq_cst)"
WEAK_FENCE = FENCE.replace("seq_cst", "acq_rel")
DURABLE = "atomic_store(durable, target);"


def weaker(text: str) -> str:
    """The same access, relaxed."""
    if "memory_order" in text:
        return re.sub("memory_order_(seq_cst|acquire|release)", "memory_order_relaxed", text, count=1)
    inside = r"((?:[^()]|\([^()]*\))*)"
    return re.sub(rf"atomic_(load|store)\({inside}\)", r"atomic_\1_explicit(\2, memory_order_relaxed)", text)


LOST, HOLE, RACE = "a wake-up is lost", "taken for a hole", "a race"
LEFT_OUT = {
    # what is left out: (its pair in atomics.h, the mutations, scenario, how many choices, what is seen)
    "PUBLISH is relaxed": ("core/bitmap.h", PUBLISH, weaker(PUBLISH), "read", 2, RACE),
    "SCAN is relaxed": ("core/bitmap.h", SCAN, weaker(SCAN), "read", 2, RACE),
    "COMMIT is relaxed": ("core/commit.h", COMMIT, weaker(COMMIT), "read", 2, RACE),
    "a watermark is loaded relaxed": ("core/wait.h", REACHED, weaker(REACHED), "read", 2, RACE),
    "bits come before the copy": ("core/append.h", FILLED + PUBLISHED, PUBLISHED + FILLED, "read", 2, RACE),
    "a claim is given up relaxed": ("core/writer.h", GIVEN, weaker(GIVEN), "holes", 2, HOLE),
    "a claim is stored after RESERVE": ("core/append.h", CLAIM_STORE, "", "holes", 2, HOLE),
    "RESERVE is relaxed": ("core/append.h", RESERVE, weaker(RESERVE), "holes", 2, HOLE),
    "the floor is loaded relaxed": ("core/append.h", FLOOR, weaker(FLOOR), "handle", 2, "for ever"),
    "the floor is stored relaxed": ("core/append.h", FLOOR_SET, weaker(FLOOR_SET), "handle", 2, "for ever"),
    "LIMIT is loaded relaxed": ("core/append.h", LIMIT, weaker(LIMIT), "room", 2, RACE),
    "LIMIT is stored relaxed": ("core/commit.h", LIMIT_STORE, weaker(LIMIT_STORE), "room", 2, RACE),
    "prepared is loaded relaxed": ("core/commit.h", PREPARED, weaker(PREPARED), "room", 2, RACE),
    "SLEEP: its load is relaxed": ("core/append.h", SLEEPS, weaker(SLEEPS), "sleep", 3, LOST),
    "SLEEP: the bits are release only": ("core/bitmap.h", PUBLISH, PUBLISH_RELEASE, "sleep", 3, LOST),
    "SLEEP: the scan's fence is weak": ("orderings.c", FENCE, WEAK_FENCE, "sleep", 3, LOST),
    "WANTED: the sleep word is loaded relaxed": ("core/wait.h", RING, weaker(RING), "sync", 3, LOST),
    "WAKE: what is wanted is loaded relaxed": ("core/wait.h", WANTED, weaker(WANTED), "wait", 3, LOST),
    "DURABLE is relaxed": ("core/sync.h", DURABLE, weaker(DURABLE), "sync", 3, RACE),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_OUT)
def test_an_ordering_that_is_left_out_is_missed(tmp_path: Path, what: str) -> None:
    file, old, new, scenario, budget, seen = LEFT_OUT[what]
    done = run(build(tmp_path, (Mutation(file, old, new),)), scenario, budget)
    assert done.returncode == 1, f"not missed: {done.stdout}"
    assert seen in done.stderr
