"""Objects: an S3 server that a test starts and ends, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

from support.processes import until
from support.serving import free_ports


def missing() -> str | None:
    """Why no object store can be used here, or None."""
    try:
        import obstore  # noqa: F401
    except ImportError:
        return "obstore is not installed"
    return None


def moto() -> str | None:
    """The server, if it is installed."""
    return shutil.which("moto_server", path=os.path.dirname(sys.executable)) or shutil.which("moto_server")


@contextlib.contextmanager
def s3() -> Iterator[tuple[str, dict[str, Any]]]:
    """(URL of a bucket, settings) of a server that keeps objects in memory until the end."""
    command, (port,) = moto(), free_ports(1)
    assert command is not None
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([command, "-H", "127.0.0.1", "-p", str(port)], stdout=quiet, stderr=quiet)
    try:

        def made() -> bool:
            assert process.poll() is None, "the server has ended"
            request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
                return True
            return False

        until(made, "the server answers")
        yield (
            "s3://bucket/logs",
            {
                "endpoint": f"http://127.0.0.1:{port}",
                "region": "us-east-1",
                "access_key_id": "test",
                "secret_access_key": "test",
                "client_options": {"allow_http": True},
            },
        )
    finally:
        process.kill()
        process.wait()
