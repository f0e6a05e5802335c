"""Every small damage to a small log below its mark is seen: a sample of what the recipe does."""

from __future__ import annotations

import random

import pytest
from fuzz import flipping
from fuzz.flipping import LOG_BYTES, Reference
from support.pyreader import HEADER_AREA


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path = tmp_path_factory.mktemp("flips") / "log"
    flipping.make(path)
    return Reference.of(path)


def test_every_bit_below_the_mark_that_flips_is_seen_by_the_walker(reference: Reference) -> None:
    assert reference.silent(reference.image), "undamaged it is whole"
    assert reference.count > 50 and len(reference.padding) < LOG_BYTES // 3
    assert [bad for bad in reference.flips(0, LOG_BYTES // 4) if bad] == []


def test_zeros_from_any_byte_on_are_seen_by_the_walker(reference: Reference) -> None:
    assert [bad for bad in reference.cuts() if bad] == []


def test_a_granule_zeroed_moved_or_doubled_is_seen_by_the_walker(reference: Reference) -> None:
    found = list(reference.granules(random.Random(1), share=0.05))
    assert len(found) > 10_000
    assert [bad for bad in found if bad] == []


def test_a_flipped_bit_or_a_cut_is_refused_by_recovery_verify_and_every_opening(reference: Reference) -> None:
    rng = random.Random(2)
    for turn in range(120):
        assert reference.flip_in_file(rng.randrange(LOG_BYTES), rng.randrange(8), full=turn % 12 == 0) is None
    for _ in range(60):
        assert reference.cut_file(rng.randrange(HEADER_AREA + LOG_BYTES)) is None
    assert flipping.shmlog.verify(reference.path).ok, "the damage was undone"
