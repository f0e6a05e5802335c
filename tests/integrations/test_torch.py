"""A log as a torch dataset: every record to one worker, resumed where it stood.

Where torch is not installed, which takes gigabytes, a stand-in with its protocol takes its
place: from_numpy, IterableDataset, get_worker_info.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmlog

HAS_TORCH = importlib.util.find_spec("torch") is not None
SEGMENT_BYTES = 64 << 10
COUNT = 5000
ROW = np.dtype([("n", "i4"), ("x", "f4", (2,))])

if not HAS_TORCH:
    torch, utils, data = (types.ModuleType(name) for name in ("torch", "torch.utils", "torch.utils.data"))
    vars(torch).update(Tensor=np.ndarray, from_numpy=lambda array: array)
    iterable = type("IterableDataset", (), {"__class_getitem__": classmethod(lambda kind, _: kind)})
    vars(data).update(IterableDataset=iterable, get_worker_info=lambda: None)
    sys.modules.update({module.__name__: module for module in (torch, utils, data)})


class _Worker(types.SimpleNamespace):
    id: int
    num_workers: int


_worker: _Worker | None = None


@pytest.fixture
def dataset_type(monkeypatch: pytest.MonkeyPatch) -> Any:
    from shmlog.integrations import torch as integration

    monkeypatch.setattr(integration, "get_worker_info", lambda: _worker)
    return integration.LogDataset


@pytest.fixture
def worker() -> Iterator[Any]:
    """as_worker(id, of): from now on this process is that loader worker."""
    global _worker

    def as_worker(number: int, count: int) -> None:
        global _worker
        _worker = _Worker(id=number, num_workers=count)

    yield as_worker
    _worker = None


@pytest.fixture
def numbers(log_path: Path) -> Iterator[Path]:
    """A log of the numbers below COUNT, odd ones tagged 1."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        for n in range(0, COUNT, 500):
            rows = np.zeros(500, ROW)
            rows["n"] = np.arange(n, n + 500)
            rows["x"] = rows["n"][:, None] / [2, 3]
            for row in rows:
                log.append(row.tobytes(), int(row["n"]) % 2)
    yield log_path


def test_each_record_is_yielded_once_as_tensors_of_its_fields(dataset_type: Any, numbers: Path) -> None:
    found = list(dataset_type(numbers, ROW))
    assert [int(row["n"]) for row in found] == list(range(COUNT))
    assert np.allclose(np.asarray(found[6]["x"]), [3, 2])


def test_batches_have_the_wanted_size_whatever_the_segments(dataset_type: Any, numbers: Path) -> None:
    batches = list(dataset_type(numbers, ROW, batch_size=64))
    assert {len(batch["n"]) for batch in batches[:-1]} == {64}
    assert np.concatenate([np.asarray(batch["n"]) for batch in batches]).tolist() == list(range(COUNT))


def test_tensor_is_the_consumers_own_memory(dataset_type: Any, numbers: Path) -> None:
    for batch in dataset_type(numbers, ROW, batch_size=1000):
        batch["n"][:] = 7
    with shmlog.open_readonly(numbers) as log:
        assert next(iter(log.scan())).array(ROW)["n"][5] == 5


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 40])
def test_workers_share_every_record_out_among_them(
    workers: int, dataset_type: Any, numbers: Path, worker: Any
) -> None:
    dataset = pickle.loads(pickle.dumps(dataset_type(numbers, ROW, tags=1)))
    seen: Counter[int] = Counter()
    for number in range(workers):
        worker(number, workers)
        seen.update(int(row["n"]) for row in dataset)
    assert seen == Counter(range(1, COUNT, 2))


def test_ranks_share_every_record_out_as_workers_do(dataset_type: Any, numbers: Path, worker: Any) -> None:
    seen: Counter[int] = Counter()
    for rank in range(3):
        dataset = dataset_type(numbers, ROW, rank=rank, ranks=3)
        for number in range(2):
            worker(number, 2)
            seen.update(int(row["n"]) for row in dataset)
    assert seen == Counter(range(COUNT))


@pytest.mark.parametrize("stop", [0, 1, 777, 2500 - 1])
def test_state_goes_on_at_the_record_after_the_last_yielded(
    stop: int, dataset_type: Any, numbers: Path, worker: Any
) -> None:
    worker(1, 2)
    dataset = dataset_type(numbers, ROW)
    whole = [int(row["n"]) for row in dataset]
    reading = iter(dataset)
    for _ in range(stop):
        next(reading)
    state = pickle.loads(
        pickle.dumps(dataset.state_dict() if stop else dataset_type(numbers, ROW).state_dict())
    )
    resumed = dataset_type(numbers, ROW)
    resumed.load_state_dict(state)
    assert [int(row["n"]) for row in resumed] == whole[stop:]
    assert [int(row["n"]) for row in resumed] == whole, "the next epoch begins at the beginning"
    worker(0, 3)
    with pytest.raises(ValueError, match="same number of workers"):
        resumed.load_state_dict(state)


def test_payload_of_another_size_is_refused(dataset_type: Any, numbers: Path) -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        next(iter(dataset_type(numbers, "f8")))


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_data_loader_with_processes_yields_every_record_once(numbers: Path) -> None:
    from torch.utils.data import DataLoader

    from shmlog.integrations.torch import LogDataset

    loader = DataLoader(LogDataset(numbers, ROW), batch_size=100, num_workers=2)
    seen = Counter(int(n) for batch in loader for n in batch["n"])
    assert seen == Counter(range(COUNT))


@pytest.mark.skipif(importlib.util.find_spec("torchdata") is None, reason="torchdata is not installed")
@pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning")  # torchdata calls what torch deprecates
def test_stateful_data_loader_goes_on_where_it_was_saved(numbers: Path) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    from shmlog.integrations.torch import LogDataset

    def loader() -> Any:
        return StatefulDataLoader(LogDataset(numbers, ROW, batch_size=50), batch_size=None, num_workers=2)

    first, seen = loader(), Counter[int]()
    for number, batch in enumerate(first):
        seen.update(batch["n"].tolist())
        if number == 30:
            state = first.state_dict()
            break
    second = loader()
    second.load_state_dict(state)
    for batch in second:
        seen.update(batch["n"].tolist())
    assert seen == Counter(range(COUNT))


def test_following_workers_share_out_what_comes_later(dataset_type: Any, numbers: Path, worker: Any) -> None:
    with shmlog.open(numbers) as log:
        later = np.zeros(40_000, ROW)
        later["n"] = np.arange(COUNT, COUNT + len(later))
        seen: Counter[int] = Counter()
        datasets = [dataset_type(numbers, ROW, follow=True, timeout=0.5, batch_size=500) for _ in range(2)]
        log.append_array(later)
        log.wait_committed()
        shares = []
        for number, dataset in enumerate(datasets):
            worker(number, 2)
            share: Counter[int] = Counter()
            for batch in dataset:
                share.update(np.asarray(batch["n"]).tolist())
            shares.append(share)
            seen.update(share)
    assert all(share.total() > 1000 for share in shares)
    assert seen == Counter(range(COUNT + len(later)))
