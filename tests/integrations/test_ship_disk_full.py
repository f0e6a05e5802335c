"""An engine that is down for so long that what is kept for it fills the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import nats as servers
from support.namespaces import needs_namespaces, run_in_namespace

if why := servers.missing():
    pytest.skip(why, allow_module_level=True)


@needs_namespaces
def test_writers_notice_nothing_of_an_engine_that_is_down_until_the_disk_is_full_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    program = """
        import random, sys, threading
        from pathlib import Path
        import shmlog
        from shmlog.integrations.nats import NatsReader, NatsSink
        from shmlog.integrations.ship import Shipper
        from support import nats as servers
        from support.processes import until
        dice, written = random.Random(1), []

        def append(log, timeout):
            data = dice.randbytes(dice.randrange(3000))
            written.append((log.append(data, timeout=timeout), data))

        with (
            servers.server(Path(sys.argv[2])) as server,
            shmlog.open(sys.argv[1] + "/log", create=True, segment_bytes=1 << 18) as log,
            Shipper(log, NatsSink([server.address], "S", log.log_id, replicas=1)) as shipper,
        ):
            loop = threading.Thread(target=shipper.run)
            loop.start()
            try:
                for _ in range(300):
                    append(log, 20)
                until(lambda: shipper.statistics.position_lsn > 0)
                server.kill()
                down = len(written)
                try:
                    while True:
                        append(log, 20)
                except shmlog.LogFullError as error:
                    assert "No space left on device" in str(error), error
                assert len(written) > down + 1000
                log.wait_durable(timeout=20)
                until(lambda: shipper.statistics.failing)
                (place,) = log.statistics().cursors
                assert place.lag_bytes > 1 << 20
                held = log.trim(min(cursor.lsn for cursor in log.cursors()))
                server.start()
                until(lambda: shipper.statistics.position_lsn == log.durable_lsn)
                until(lambda: log.cursors()[0].lsn == log.durable_lsn)
                assert log.trim(log.cursors()[0].lsn) > held
                full = len(written)
                for _ in range(500):
                    append(log, 20)
                log.wait_durable(timeout=20)
                until(lambda: shipper.statistics.position_lsn == log.durable_lsn)
            finally:
                shipper.stop()
                loop.join()
            with NatsReader([server.address], "S", log.log_id) as reader:
                found = [(r.lsn, bytes(r.data)) for batch in reader.batches() for r in batch]
            assert found == written
            print(full - down)
    """
    out = run_in_namespace(f"mount -t tmpfs -o size=8m none {small}", program, small, tmp_path / "nats")
    assert int(out) > 1000
