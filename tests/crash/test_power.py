"""Power cuts by the model, at toy size; and bugs that only a power cut shows, planted one at a
time in a copy of the package, each of which must be seen.

`make crash` runs the same for minutes (recipes/power_model.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest
from crash.power import mounts, workers
from crash.recipes import power_disk, power_live, power_model
from support.steps import ROOT, Mutation

from shmlog.disk import directory, recovery
from shmlog.disk.cursors import CursorFile
from shmlog.format.geometry import Geometry
from shmlog.system import files

pytestmark = pytest.mark.skipif(workers.missing() is not None, reason=str(workers.missing()))


def _copy(where: Path, mutation: Mutation) -> Path:
    """A copy of the package with the mutation in it."""
    shutil.copytree(ROOT / "shmlog", where / "shmlog", ignore=shutil.ignore_patterns("native", "__pycache__"))
    file = where / "shmlog" / mutation.file
    file.write_text(mutation.apply(file.read_text()))
    return where


def test_what_was_promised_survives_three_hundred_power_cuts() -> None:
    cuts = workers.cut(20260101, 30.0, states=300)
    assert not cuts.violations
    assert sum(cuts.counts[kind] for kind in ("cut", "nested", "resurrected")) == 300
    assert cuts.counts["canary"] > 10, "a disk that ignores syncs loses what was promised"
    assert cuts.counts["as torn"] > 20 and cuts.counts["as restart"] > 20


PLANTED = {
    "a mark vouches for its own sync": Mutation(
        "flusher/syncing.py",
        "self._native.sync(fds, self.mark.encode(",
        "self._native.sync(fds, self.mark.next(durable_lsn=target).next().encode(",
    ),
    "durable before the sync": Mutation(
        "flusher/syncing.py",
        "error = self._native.sync(",
        "self._native.store(CB.DURABLE_LSN, target)\n"
        "        self._native.wake(CB.DURABLE_LSN)\n"
        "        error = self._native.sync(",
    ),
    "a new segment's name is not synced": Mutation(
        "disk/segment.py", "files.sync_directory(os.path.dirname(path))", "pass"
    ),
    "a new segment's bytes are not synced": Mutation(
        "disk/segment.py", "os.fsync(fd)\n        os.rename(", "os.rename("
    ),
    "the tail is not zeroed": Mutation("disk/recovery.py", "files.zero(fd,", "(lambda *_: None)(fd,"),
    "segments above the tear are left": Mutation("disk/recovery.py", "if first > last:", "if first < 0:"),
    "a log whose maker was killed is not made durable": Mutation(
        "disk/recovery.py", "    directory.sync_names()\n", ""
    ),
    "a log's identity is durable before its segments' directory": Mutation(
        "disk/directory.py", "                files.sync_directory(path)\n", "                pass\n"
    ),
    "a cursor's name is not synced": Mutation(
        "disk/cursors.py", "            files.sync_directory(directory.cursors_path)\n", ""
    ),
    "trimmed files go before the mark says so": Mutation(
        "flusher/syncing.py",
        "self.sync_mark(clean=False)\n            if control.failed:",
        "if control.failed:",
    ),
    "a cursor's place is not synced": Mutation(
        "disk/cursors.py",
        "            os.fsync(fd)\n        self._sequence, self.lsn = sequence, lsn",
        "        self._sequence, self.lsn = sequence, lsn",
    ),
    "a cursor has one copy": Mutation(
        "disk/cursors.py", "return CURSOR_SLOTS.offset(sequence), copy", "return 0, copy"
    ),
}


@pytest.mark.crash
@pytest.mark.timeout(400)
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_seen_when_the_power_is_cut(bug: str, tmp_path: Path) -> None:
    package = _copy(tmp_path, PLANTED[bug])
    cuts = workers.cut(7, 240.0, package=package, keep=tmp_path / "kept", canary=False)
    assert cuts.violations, f"nothing was seen: {dict(cuts.counts)}"
    print(cuts.violations[0])


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("recipe", [power_disk, power_live], ids=["power_disk", "power_live"])
def test_durable_before_the_sync_is_seen_on_real_file_systems(recipe: ModuleType, tmp_path: Path) -> None:
    if why := recipe.RECIPE.missing():
        pytest.skip(why)
    package = _copy(tmp_path, PLANTED["durable before the sync"])
    kept = ["--keep", str(tmp_path / "kept")]
    cuts = workers.run([[*command, *kept] for command in recipe.commands()], 7, 90.0, package)
    seen = [violation for violation in cuts.violations if "promised and is lost" in violation]
    assert seen, dict(cuts.counts)
    name, _, _ = seen[0].partition(" ")
    again = mounts.in_namespace("crash.power.images", "--name", name, *kept)
    assert workers.run([again], 7, 60.0).violations == seen[:1]


def test_a_log_has_its_segments_directory_for_good_before_it_has_its_identity(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an identity and no such directory it would be a log that cannot be opened.  Its first
    maker was killed before the directory's name was durable."""
    (log_path / "segments").mkdir(parents=True)
    durable: list[set[str]] = []
    sync = files.sync_directory

    def look_and_sync(where: str) -> None:
        if where == str(log_path):
            durable.append({path.name for path in log_path.iterdir()})
        sync(where)

    monkeypatch.setattr(files, "sync_directory", look_and_sync)
    directory.create(str(log_path), Geometry(1 << 16, 1 << 16), 0o600)
    first_of_the_identity = next(n for n, names in enumerate(durable) if "shmlog.json" in names)
    assert any("segments" in names for names in durable[:first_of_the_identity])


def test_names_that_a_killed_process_left_are_made_durable_by_the_next(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been killed after it gave them and before it synced their directory."""
    where = directory.create(str(log_path), Geometry(1 << 16, 1 << 16), 0o600)
    CursorFile(where, "etl", 0o600, lambda: 0).close()
    synced: list[str] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    CursorFile(where, "etl", 0o600, lambda: 0).close()
    assert set(synced) == {where.cursors_path, where.path}
    synced.clear()
    recovery.recover(where, bytes(16))
    assert set(synced) >= {where.segments_path, where.path, str(log_path.parent)}


def test_a_state_that_broke_a_promise_is_seen_again_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = _copy(tmp_path, PLANTED["durable before the sync"])
    cuts = workers.cut(7, 30.0, package=package, keep=tmp_path / "kept", canary=False)
    name, _, problem = cuts.violations[0].partition(" ")
    assert "promised and is lost" in problem
    monkeypatch.setattr(workers, "KEPT", tmp_path / "kept")
    again = power_model.RECIPE.replay
    assert again is not None and again(name).violations == [cuts.violations[0]]
