"""Java systems: Chronicle Queue, Aeron over shared memory, Aeron Archive."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.kit.harness import Outcome
from bench.kit.peer import Job
from bench.kit.program import BUILD, SOURCES, ProgramPeer, built, pinned_version
from bench.kit.workers import Skipped

SOURCE = SOURCES / "java"
TARGET = BUILD / "java"

# What the documentation of Chronicle (Java 17) and of Agrona asks for.
MODULE_FLAGS = (
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-exports=jdk.unsupported/sun.misc=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.file=ALL-UNNAMED",
    "--add-opens=jdk.compiler/com.sun.tools.javac=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.lang.reflect=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.util.zip=ALL-UNNAMED",
    "--add-opens=java.base/jdk.internal.misc=ALL-UNNAMED",
)
# Chronicle would report its use to its makers.
QUIET_FLAGS = (
    "-Dchronicle.analytics.disable=true",
    "-Dchronicle.announcer.disable=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
)


class JavaPeer(ProgramPeer):
    has_batches = False
    version_name: str

    def version(self) -> str:
        name = f"{self.version_name}.version"
        return pinned_version(SOURCE / "pom.xml", f"<{name}>([^<]+)</{name}>")

    def command(self) -> list[str]:
        if shutil.which("java") is None:
            raise Skipped("java is not installed")
        build = ["mvn", "-q", "-B", f"-Dpeers.build={TARGET}", "package"]
        built("mvn", build, SOURCE, TARGET / "classes" / "bench" / "Main.class")
        return [
            "java",
            "-XX:+UseSerialGC",
            "-Xmx2g",
            *MODULE_FLAGS,
            *QUIET_FLAGS,
            "-cp",
            f"{TARGET / 'classes'}:{TARGET / 'lib'}/*",
            "bench.Main",
        ]


class ChronicleQueue(JavaPeer):
    name = "Chronicle Queue (Java)"
    program_name = version_name = "chronicle"
    durability = "page cache (memory-mapped)"
    durable_by = "SyncMode.SYNC, msync by each caller"
    several_programs = True


class _Aeron(JavaPeer):
    version_name = "aeron"

    def _run(self, job: Job, jobs: Sequence[str], threads: int = 1) -> list[dict[str, Any]]:
        try:
            return super()._run(job, jobs, threads)
        finally:
            # Where the program puts Aeron's buffers; it may have been killed.
            name = "aeron-" + str(job.directory).replace("/", "-")
            for path in Path("/dev/shm").glob(name + "*"):
                shutil.rmtree(path, ignore_errors=True)


class AeronIpc(_Aeron):
    name = "Aeron IPC (Java)"
    program_name = "aeron"
    durability = "none (shared memory)"
    keeps_records = False

    def read_all(self, job: Job) -> Outcome:
        raise Skipped("keeps nothing to read again")

    def reopen(self, job: Job) -> Outcome:
        raise Skipped("keeps nothing to open again")


class AeronArchive(_Aeron):
    name = "Aeron Archive (Java)"
    program_name = "aeron-archive"
    durability = "page cache once recorded"
    durable_by = "file-sync-level 1; a caller waits for the recording to pass it"
