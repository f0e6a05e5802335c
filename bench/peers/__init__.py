"""Other systems doing the same jobs; each module says how it uses them."""

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
