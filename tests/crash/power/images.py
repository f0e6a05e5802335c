"""Images: a disk after a power cut, with a file system on it that holds a log.

    python -m crash.power.images --name 7-1-120      check a kept one once more

Runs in a mount namespace of its own.

This module knows how an image is checked and kept.  It may not know how it was made.
"""

from __future__ import annotations

import errno
import pickle
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from crash.power.mounts import attached, copy_sparse, mount, unmount
from crash.power.promises import Found, Promises, Violation, check
from crash.power.workers import report, worker_arguments

_DAMAGED = errno.EUCLEAN, errno.EBADMSG, errno.EINVAL, errno.EIO
OTHER_BOOT = bytes(15) + b"\x01"


class DamagedError(Exception):
    """The file system cannot be mounted: it does not survive that a block of its own is torn."""


@dataclass
class Image:
    """What a cut has left on a disk, and what should be in it."""

    file: Path
    kind: str
    promises: Promises

    def check(self, scratch: Path) -> Found:
        """Mount a copy and recover the log; Violation, DamagedError."""
        copy, path = scratch / "checked", scratch / "fs"
        copy_sparse(self.file, copy)
        with attached(copy) as device:
            try:
                mount(device, path, self.kind)
            except OSError as error:
                if error.errno in _DAMAGED:
                    raise DamagedError from error
                raise
            try:
                return check(path / "log", self.promises, OTHER_BOOT)
            finally:
                unmount(path)

    def keep(self, where: Path, name: str, story: str, problem: Violation) -> str:
        """Keep it, to be seen again; how a violation is reported."""
        where.mkdir(parents=True, exist_ok=True)
        copy_sparse(self.file, where / f"{name}.img")
        (where / f"{name}.state").write_bytes(pickle.dumps((self.kind, self.promises, story)))
        return f"{name} {story}: {problem}"


def main() -> int:
    parser = worker_arguments()
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    where: Path = options.keep
    kind, promises, story = pickle.loads((where / f"{options.name}.state").read_bytes())
    mount("none", options.scratch, "tmpfs", "size=2g")
    (options.scratch / "fs").mkdir()
    violations = []
    try:
        Image(where / f"{options.name}.img", kind, promises).check(options.scratch)
    except Violation as problem:
        violations.append(f"{options.name} {story}: {problem}")
    report(Counter({"images": 1}), violations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
