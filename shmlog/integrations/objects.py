"""Objects: an archive's objects, their names, and the store that has them.

    PREFIX/<log id>/shmlog.json               who the log is
    PREFIX/<log id>/segments/<lsn>.seg        a sealed segment, the same from every copy of the log
    PREFIX/<log id>/segments/<lsn>.json       its sidecar: LSNs, records, times, checksum; the commit mark

This module knows names and bytes.  It may not know when an object may be put.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

try:
    import obstore
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "obstore is not installed: pip install 'shmlog[archive]'", name="obstore"
    ) from None
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

import shmlog
from shmlog.integrations.repeating import EngineError

FORMAT: Final = "shmlog-archive"


class Sidecar(NamedTuple):
    """What an archive says of one segment."""

    log_id: str
    first_lsn: int
    end_lsn: int
    records: int
    first_time_ns: int
    last_time_ns: int
    object_bytes: int
    crc32c: int
    """of the whole object"""

    @classmethod
    def of(cls, log_id: str, segment: shmlog.SealedSegment) -> Sidecar:
        first, end, records, times, checksum, data = segment
        return cls(log_id, first, end, records, *times, len(data), checksum)

    def encode(self) -> bytes:
        body = {"format": FORMAT, "version": 1, **self._asdict()}
        return json.dumps(body, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, path: str) -> Sidecar:
        try:
            body = json.loads(data)
            if body.pop("format") != FORMAT or body.pop("version") != 1:
                raise ValueError("another format or version")
            found = cls(**body)
            if not all(isinstance(number, int) for number in found[1:]) or not isinstance(found.log_id, str):
                raise ValueError("a number is none")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise shmlog.FormatError(f"{path} is no sidecar of an archive: {error}") from error
        return found


class Store:
    """An object store, with the few operations that an archive needs."""

    def __init__(self, url: str, settings: Mapping[str, Any] | None = None) -> None:
        """settings: for obstore.store.from_url(), by its names."""
        self.url, self.settings = url, dict(settings or {})
        parts = urlsplit(url)
        self._synced: set[Path] = set()
        self._root = Path(unquote(parts.path)) if parts.scheme == "file" else None
        more = {"mkdir": True} if self._root is not None else {}
        with _engine():
            make: Any = from_url  # whose overloads know no settings of all kinds
            self._store = make(url, **more, **(settings or {}))

    def create(self, path: str, data: bytes | bytearray) -> bool:
        """Put an object that must not be there; False if it is.  Durable as far as the store says."""
        try:
            with _engine():
                obstore.put(self._store, path, memoryview(data), mode="create")
        except AlreadyExistsError:
            return False
        if self._root is not None:
            self._sync(self._root / path)
        return True

    def _sync(self, path: Path) -> None:
        """A directory that is a store keeps what it is given when the power fails only if it is told."""
        for part in (path, *path.parents):
            if self._root is None or part == self._root.parent or part in self._synced:
                break
            if part not in (path, path.parent):
                self._synced.add(part)  # what is in it does not change any more
            fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def get(self, path: str) -> bytes | None:
        """An object's bytes, or None if it is not there."""
        try:
            with _engine():
                return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError:
            return None

    def holds(self, path: str, data: bytes | bytearray) -> bool | None:
        """Whether an object's bytes are these, or None if it is not there; without a copy of them."""
        try:
            with _engine():
                return bool(obstore.get(self._store, path).bytes() == data)
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        """Of the objects below a prefix, in order."""
        with _engine():
            return sorted(found["path"] for part in obstore.list(self._store, prefix) for found in part)

    def probe(self, prefix: str) -> None:
        """ValueError if the store puts over what is there (I20)."""
        name = f"{prefix}/probe-{secrets.token_hex(8)}"
        try:
            if not self.create(name, b"1") or self.create(name, b"2") or self.get(name) != b"1":
                raise ValueError(f"{self.url} does not honour create-only puts: nothing was archived")
        finally:
            with contextlib.suppress(BaseError, OSError), _engine():
                obstore.delete(self._store, name)


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    """EngineError for what may be better the next time.  Its text is one line: the library's own goes on
    with the whole request."""
    try:
        yield
    except (AlreadyExistsError, FileNotFoundError):
        raise
    except (BaseError, OSError) as error:
        raise EngineError(f"store: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from None


def segment_path(log_id: str, lsn: int) -> str:
    return f"{log_id}/segments/{lsn:020d}.seg"


def sidecar_path(log_id: str, lsn: int) -> str:
    return f"{log_id}/segments/{lsn:020d}.json"


def sidecar_lsns(store: Store, log_id: str) -> list[int]:
    """The first LSNs of the segments that an archive has whole, ascending."""
    names = [name.rpartition("/")[2] for name in store.names(f"{log_id}/segments")]
    return [int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()]


def archived_until(store: Store, log_id: str) -> int | None:
    """Up to where the archive has the log without a gap, from where it begins; None if it has nothing."""
    lsns = sidecar_lsns(store, log_id)
    if not lsns:
        return None
    path = sidecar_path(log_id, lsns[0])
    segment_bytes = Sidecar.decode(store.get(path) or b"", path).end_lsn - lsns[0]
    end = lsns[0]
    for lsn in lsns:
        if lsn != end:
            break
        end += segment_bytes
    return end


def logs_in(store: Store) -> list[str]:
    """The ids of the logs that a store has an archive of."""
    return sorted({name.split("/")[0] for name in store.names("") if name.endswith("/shmlog.json")})
