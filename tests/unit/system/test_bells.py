"""Bells that are not ours to ring."""

from __future__ import annotations

import os
import secrets

import pytest
from support.processes import Child, Wire

from shmlog.system.bells import Bell, unlink

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
NOBODY = 65534


def _open(wire: Wire, name: str) -> None:
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    Bell(name)


def test_a_bell_that_another_user_made_is_an_os_error() -> None:
    name = f"/shmlog-test-{secrets.token_hex(4)}"
    Bell(name, 0).close()
    try:
        with Child(_open, name) as child, pytest.raises(PermissionError, match=f"sem.{name[1:]}"):
            child.result()
    finally:
        unlink(name)
