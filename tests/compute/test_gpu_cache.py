"""What a process keeps on its device: no more than fits, and what was used last."""

import itertools

import torch

from study.compute.gpu_cache import DeviceMemory, device_memory, release_memory


def tensors(count, size=10):
    return [torch.full((size,), float(index)) for index in range(count)]  # 4 bytes a value


def test_memory_gives_back_what_it_kept():
    memory = DeviceMemory(100)
    kept = tensors(2)
    memory.keep("a", kept)
    assert memory.get("a") is kept
    assert memory.get("b") is None
    assert memory.used_bytes == 80


def test_memory_lets_the_least_recently_used_go():
    memory = DeviceMemory(120)
    for key in "abc":
        memory.keep(key, tensors(1))
    memory.get("a")
    memory.keep("d", tensors(1))
    assert {key for key in "abcd" if memory.get(key)} == {"a", "c", "d"}


def test_memory_keeps_nothing_larger_than_its_bound():
    memory = DeviceMemory(100)
    memory.keep("small", tensors(1))
    memory.keep("large", tensors(3))
    assert memory.get("large") is None
    assert memory.get("small")


def test_memory_replaces_what_has_the_same_key():
    memory = DeviceMemory(100)
    for _ in range(3):
        memory.keep("a", tensors(2))
    assert memory.used_bytes == 80


def test_watch_keeps_what_was_taken_whole():
    memory = DeviceMemory(100)
    assert len(list(memory.watch("a", tensors(2), rows=20))) == 2
    assert len(memory.get("a")) == 2


def test_watch_keeps_nothing_incomplete_or_too_large():
    memory = DeviceMemory(100)
    list(itertools.islice(memory.watch("broken off", tensors(2), rows=20), 1))
    assert len(list(memory.watch("too large", tensors(5), rows=50))) == 5
    assert memory.used_bytes == 0


def test_watch_lets_nothing_go_for_what_does_not_fit():
    memory = DeviceMemory(100)
    memory.keep("a", tensors(2))
    list(memory.watch("too large", tensors(5), rows=50))
    assert memory.get("a")


def test_watch_holds_no_more_than_the_bound_at_any_time():
    memory = DeviceMemory(120)
    for key in "ab":
        memory.keep(key, tensors(1))
    used = [memory.used_bytes for _ in memory.watch("c", tensors(3), rows=30)]
    assert used == [0, 0, 0]  # besides the 40, 80 and 120 bytes that were yielded
    assert memory.used_bytes == 120


def hits(memory, trials, epochs):
    """Ask for `epochs` epochs of 40 bytes in each of some trials, keep what was missing, and count what was not."""
    found = []
    for _ in range(trials):
        kept = [memory.get(epoch) is not None or list(memory.watch(epoch, tensors(1), rows=10)) for epoch in epochs]
        found.append(sum(each is True for each in kept))
    return found


def test_memory_serves_the_epochs_that_fit_in_every_trial():
    assert hits(DeviceMemory(160), 4, range(5)) == [0, 4, 4, 4]


def test_memory_replaces_the_epochs_that_nobody_asks_for_any_more():
    memory = DeviceMemory(160)
    hits(memory, 3, range(5))
    assert hits(memory, 3, range(10, 14)) == [0, 4, 4]


def test_memory_of_a_trial_is_its_part_of_the_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (900, 1000))
    whole, quarter = (device_memory.__wrapped__(torch.device("cuda"), share) for share in (1.0, 0.25))
    assert (whole.limit_bytes, quarter.limit_bytes) == (450, 125)


def test_release_memory_forgets_what_devices_keep():
    before = device_memory(torch.device("cpu"))
    release_memory()
    assert device_memory(torch.device("cpu")) is not before


def test_device_memory_of_a_cpu_keeps_nothing():
    memory = device_memory(torch.device("cpu"))
    memory.keep("a", tensors(1))
    assert memory.get("a") is None
