"""The native core: atomics, bits, checksums, frames, append paths."""

from collections.abc import Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, Final, Self, SupportsIndex, final, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

Bytes = Buffer | npt.NDArray[Any] | np.generic

_Tags = int | tuple[int, int, int] | bytes | None
_Node = tuple[str, str, int, int, int, int, int]

LAYOUT: dict[str, int]
SLOW_ROOM: int
SLOW_MAP: int
SLOW_STALE: int
SLOW_CLAIMS: int
SLOW_BELL: int
SLOW_DURABLE: int
SLOW_LARGE: int
SLOW_FAULT: int
SLOW_SYNC_BELL: int
WAIT_REACHED: int
WAIT_TIMEOUT: int
WAIT_RING: int
WAIT_FAILED: int
WAIT_SLICE_NS: int
DURABLE_SPIN_NS: int
FRAME_VALID: int
FRAME_NEVER_WRITTEN: int
FRAME_BAD_KIND: int
FRAME_BAD_LSN: int
FRAME_BAD_LENGTH: int
FRAME_BAD_CHECKSUM: int
FRAME_OUT_OF_BOUNDS: int
FRAME_TEXTS: tuple[str, ...]
NODE_STRUCT: int
NODE_LIST: int
NODE_LSN: int
NODE_TIME_NS: int
NODE_TAG: int
NODE_WRITER: int
NODE_NBYTES: int
NODE_DATA: int
NODE_COPY: int
NODE_SWAPPED: int
NODE_BITS: int
NODE_INSTANTS: int
NODE_BYTES: int
TAKE_NO_RECORD: int
TAKE_OTHER_SIZE: int
TAKE_NO_SEGMENT: int

class _ControlWords(SimpleNamespace):
    """Where the words of the control block's header are."""

    MAGIC: Final[int]
    SIGNATURE: Final[int]
    LOG_ID: Final[int]
    BOOT_ID: Final[int]
    SEGMENT_BYTES: Final[int]
    WINDOW_BYTES: Final[int]
    PARTICIPANT_COUNT: Final[int]
    CONTROL_BYTES: Final[int]
    EPOCH: Final[int]
    CREATED_NS: Final[int]
    PLACE_DEVICE: Final[int]
    PLACE_INODE: Final[int]
    RESERVED_LSN: Final[int]
    LIMIT_LSN: Final[int]
    COMMITTED_LSN: Final[int]
    CLEARED_LSN: Final[int]
    PREPARED_LSN: Final[int]
    DURABLE_LSN: Final[int]
    INTENT_LSN: Final[int]
    TRIMMED_LSN: Final[int]
    REMOVED_LSN: Final[int]
    TRIMMING_LSN: Final[int]
    STATE: Final[int]
    FAILED_ERRNO: Final[int]
    FAILED_LSN: Final[int]
    FULL_ERRNO: Final[int]
    PREPARE_TRIES: Final[int]
    COMMIT_SLEEP: Final[int]
    SYNC_SLEEP: Final[int]
    WANTED_LIMIT: Final[int]
    WANTED_COMMITTED: Final[int]
    WANTED_DURABLE: Final[int]
    WANTED_TRIMMED: Final[int]
    STARTING_NS: Final[int]
    STARTS: Final[int]
    PARTICIPANT_HIGH: Final[int]
    GENERATION: Final[int]
    FLUSHER_PID: Final[int]
    COMMITS: Final[int]
    SYNCS: Final[int]
    SYNC_NS: Final[int]
    FILL_COUNT: Final[int]
    FILL_BYTES: Final[int]
    RETIRED_RECORDS: Final[int]
    RETIRED_BYTES: Final[int]
    RETIRED_WAITS: Final[int]
    ROLLS: Final[int]
    BLOCKED_LSN: Final[int]
    BLOCKED_NS: Final[int]
    BUDGET_BYTES: Final[int]
    BUDGET_HELD: Final[int]
    SYNC_LATENCY: Final[int]
    HEADER_BYTES: Final[int]

CB: Final[_ControlWords]

class _ParticipantWords(SimpleNamespace):
    """Where the words of a participant's slot are, from its beginning."""

    STATE: Final[int]
    PID: Final[int]
    STARTED_NS: Final[int]
    ROLE: Final[int]
    NAME: Final[int]
    WAITS: Final[int]
    CLAIMS: Final[int]
    BYTES: Final[int]

PT: Final[_ParticipantWords]

class _ClaimWords(SimpleNamespace):
    """Where the words of a claim are, from its beginning."""

    BEGIN: Final[int]
    END: Final[int]
    RECORDS: Final[int]
    PAYLOAD: Final[int]
    BYTES: Final[int]

CL: Final[_ClaimWords]

def crc32c(data: Buffer, seed: int = 0, /) -> int: ...
def crc32c_table(data: Buffer, seed: int = 0, /) -> int: ...
def records(
    mapping: Mapping,
    base_lsn: int,
    begin_lsn: int,
    stop_lsn: int,
    end_lsn: int,
    seed: int,
    verify: bool,
    most: int,
    tags: _Tags = None,
    /,
) -> tuple[list[Record], int, int]: ...
def walk(
    buffer: Buffer,
    base_lsn: int,
    begin_lsn: int,
    end_lsn: int,
    seed: int,
    verify: bool,
    tags: _Tags,
    stop_at_gap: bool,
    columns: tuple[npt.NDArray[Any], ...] | None,
    stop_lsn: int = ...,
    /,
) -> tuple[int, int, int, int]: ...
def arrow_array(
    columns: tuple[_Node, ...],
    mapping: Mapping,
    records: tuple[npt.NDArray[Any], ...],
    places: Bytes,
    requested_schema: object | None,
    /,
) -> tuple[object, object]: ...
def arrow_stream(
    columns: tuple[_Node, ...],
    payload_bytes: int,
    directory: bytes,
    header: bytes,
    header_copy_at: int,
    segment_bytes: int,
    owner: int,
    begin_lsn: int,
    stop_lsn: int,
    end_lsn: int,
    holes: bytes,
    seed: int,
    verify: bool,
    tags: _Tags,
    batch_records: int,
    batch_bytes: int,
    requested_schema: object | None,
    /,
) -> object: ...
def take_rows(source: tuple[Any, ...], lsns: Bytes, row_bytes: int, rows: Bytes, /) -> tuple[int, int]: ...
def take_records(
    source: tuple[Any, ...], lsns: Bytes, columns: tuple[npt.NDArray[Any], ...], places: Bytes, /
) -> tuple[Mapping | None, int, int]: ...
def take_frames(
    frames: Bytes,
    begin_lsn: int,
    end_lsn: int,
    seed: int,
    columns: tuple[npt.NDArray[Any], ...],
    places: Bytes,
    /,
) -> tuple[Mapping, int, int, int]: ...
def find_frame(buffer: Buffer, base_lsn: int, begin_lsn: int, end_lsn: int, seed: int, /) -> int | None: ...
def reseal(
    buffer: Buffer, base_lsn: int, begin_lsn: int, end_lsn: int, seed: int, new_seed: int, /
) -> tuple[int, int, int]: ...
def filler(kind: int, lsn: int, bytes: int, time_ns: int, writer: int, seed: int, /) -> bytes: ...
def lock_byte(fd: int, byte: int, /) -> bool: ...
def unlock_byte(fd: int, byte: int, /) -> None: ...
def byte_locked(fd: int, byte: int, count: int = 1, /) -> bool: ...
def born_ns(fd: int, /) -> int: ...
def has_name(fd: int, /) -> bool: ...
def punch_hole(fd: int, offset: int, bytes: int, /) -> bool: ...
def spawn_detached(arguments: tuple[bytes, ...], environment: tuple[bytes, ...], /) -> None: ...
def fork_generation() -> int: ...
def check_timeout(seconds: object, name: str = "timeout") -> float: ...

WATCH_COMMITTED: int
WATCH_DURABLE: int
WATCH_ARMED: int
WATCH_REACHED: int
WATCH_RING: int
WATCH_FOREIGN: int

@final
class Watch:
    def __new__(cls, memory: Control | Mapping | None) -> Self: ...
    def arm(self, kind: int, target: int, within_ns: int, /) -> int: ...
    def look_at(self, memory: Control | Mapping | None, /) -> None: ...
    def clear(self) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...

@final
class Record(Sequence[Any]):
    """One record.  data is a read-only memoryview of the mapped segment."""

    _fields: ClassVar[tuple[str, ...]]
    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, lsn: int, time_ns: int, tag: int, writer: int, data: Buffer) -> Self: ...
    @property
    def lsn(self) -> int: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def tag(self) -> int: ...
    @property
    def writer(self) -> int: ...
    @property
    def data(self) -> memoryview: ...
    @property
    def next_lsn(self) -> int: ...
    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Any: ...
    @overload
    def __getitem__(self, index: slice, /) -> tuple[Any, ...]: ...
    def __len__(self) -> int: ...
    def _asdict(self) -> dict[str, Any]: ...
    def _replace(self, **fields: Any) -> Self: ...

@final
class Mapping(Buffer):
    def __new__(cls, fd: int, bytes: int, writable: bool, keep: bool = False) -> Self: ...
    def populate(self, offset: int, bytes: int, /) -> None: ...
    def forget(self, offset: int, bytes: int, /) -> None: ...
    def touch(self, offset: int, bytes: int, /) -> None: ...
    def load(self, offset: int, /) -> int: ...
    @property
    def faulted(self) -> bool: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Fd:
    def __new__(cls, path: str, flags: int) -> Self: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...

@final
class Control:
    def __new__(cls, buffer: Buffer, window_bytes: int, slots: int) -> Self: ...
    def load(self, offset: int, /) -> int: ...
    def store(self, offset: int, value: int, /) -> None: ...
    def add(self, offset: int, n: int, /) -> int: ...
    def compare_exchange(self, offset: int, expected: int, value: int, /) -> bool: ...
    def raise_to(self, offset: int, value: int, /) -> None: ...
    def commit_step(self) -> tuple[int, int, int, int]: ...
    def scan(self, begin_lsn: int, end_lsn: int, set: bool, /) -> int: ...
    def publish(self, begin_lsn: int, end_lsn: int, /) -> None: ...
    def wait(
        self,
        watermark: int,
        wanted: int,
        sleep_word: int,
        target: int,
        ring: bool,
        spin_ns: int,
        slice_ns: int,
        /,
    ) -> int: ...
    def sync(self, fds: tuple[int, ...], mark: bytes, mark_offset: int, target: int, /) -> int: ...
    def wake(self, offset: int, /) -> None: ...
    def watch(self, lsn: int, ns: int, /) -> bool: ...
    def spin(self, offset: int, target: int, ns: int, /) -> bool: ...
    def settle(self, offset: int, quiet_ns: int, most_ns: int, /) -> bool: ...
    @property
    def faulted(self) -> bool: ...

class Writer:
    def __init__(self, seed: int, segment_bytes: int, window_bytes: int) -> None: ...
    def append(
        self, data: Bytes, /, tag: SupportsIndex = 0, *, durable: bool = False, timeout: float | None = None
    ) -> int: ...
    def append_many(
        self,
        buffers: Sequence[Bytes],
        /,
        tag: SupportsIndex = 0,
        *,
        atomic: bool = False,
        durable: bool = False,
        timeout: float | None = None,
    ) -> npt.NDArray[np.uint64]: ...
    def _append_rows(
        self, rows: Bytes, /, tag: SupportsIndex = 0, *, durable: bool = False, timeout: float | None = None
    ) -> npt.NDArray[np.uint64]: ...
    def reserve(
        self, nbytes: SupportsIndex, /, tag: SupportsIndex = 0, *, timeout: float | None = None
    ) -> Reservation: ...
    def _attach(self, control: Control, number: int, /) -> None: ...
    def _seal(self) -> int: ...
    def _renew(self) -> None: ...
    def _map(self, number: int, mapping: Mapping, /) -> None: ...
    def _drop_below(self, lsn: int, /) -> None: ...
    def _abandon_own(self) -> int: ...
    def _unmap(self) -> None: ...
    def _slow(
        self, reason: int, lsn: int, timeout: float | None, deadline: float | None, /
    ) -> float | None: ...
    @property
    def record_bytes_max(self) -> int: ...
    @property
    def writer_number(self) -> int: ...

@final
class Reservation(Buffer):
    @property
    def buffer(self) -> memoryview: ...
    @property
    def lsn(self) -> int: ...
    def array(self, dtype: npt.DTypeLike, shape: Any = None) -> npt.NDArray[Any]: ...
    def publish(self) -> int: ...
    def abort(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
