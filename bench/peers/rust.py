"""Write-ahead logs in Rust: wal-db, okaywal, walrus-rust. Each is used by one process."""

from __future__ import annotations

import re

from bench.kit.program import BUILD, SOURCES, ProgramPeer, built, pinned_version

SOURCE = SOURCES / "rust"
TARGET = BUILD / "rust"


class RustPeer(ProgramPeer):
    package = ""

    def version(self) -> str:
        return pinned_version(SOURCE / "Cargo.toml", rf'{re.escape(self.package)} = "=([^"]+)"')

    def command(self) -> list[str]:
        build = ["cargo", "build", "--release", "--locked", "--target-dir", str(TARGET)]
        return [str(built("cargo", build, SOURCE, TARGET / "release" / "bench-peers"))]


class WalDb(RustPeer):
    name = "wal-db (Rust)"
    program_name = package = "wal-db"
    durability = "page cache, one pwrite each"
    durable_by = "append_and_sync, group commit over threads"
    has_batches = False


class OkayWal(RustPeer):
    name = "okaywal (Rust)"
    program_name = package = "okaywal"
    durability = "fsynced by every commit: it has no lesser level"
    durable_by = "commit, group commit over threads"


class Walrus(RustPeer):
    name = "walrus (Rust)"
    program_name = "walrus"
    package = "walrus-rust"
    durability = "page cache (NoFsync), one pwrite each"
    durable_by = "FsyncSchedule::SyncEach (O_SYNC and fsync of every append)"
