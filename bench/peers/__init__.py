"""Other systems doing the same jobs; each module says how it uses them."""

from collections.abc import Iterable

from bench.kit.harness import Options
from bench.kit.peer import Peer
from bench.peers.databases import Lmdb, PersistQueue, RocksDict, Sqlite
from bench.peers.files import LockedFile, OsWrite
from bench.peers.java import AeronArchive, AeronIpc, ChronicleQueue
from bench.peers.queues import FasterFifo, Iceoryx2, MpQueue
from bench.peers.rust import OkayWal, WalDb, Walrus

PEERS: tuple[Peer, ...] = (
    OsWrite(),
    LockedFile(),
    Sqlite(),
    Lmdb(),
    RocksDict(),
    PersistQueue(),
    MpQueue(),
    FasterFifo(),
    Iceoryx2(),
    WalDb(),
    OkayWal(),
    Walrus(),
    ChronicleQueue(),
    AeronIpc(),
    AeronArchive(),
)


def others(options: Options, but: Iterable[type[Peer]] = ()) -> list[Peer]:
    """The other systems; at toy size only those that need no build."""
    entered = [peer for peer in PEERS if not isinstance(peer, tuple(but))]
    return [
        peer
        for peer in entered
        if not (options.is_small and peer.heavy) or (options.only and options.wants(peer.name))
    ]
