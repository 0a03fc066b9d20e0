"""Stored outputs equal computed ones, whatever happens to the files, and each is computed once."""

import dataclasses
import functools
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open

from study.compute import feature_store
from study.compute.feature_file import Key
from study.compute.feature_store import MAX_LIMIT_BYTES, SEGMENT, FeatureStore, default_limit_bytes
from study.compute.hardware import Hardware, choose_hardware
from study.data.images import Images
from study.models.classifier import build
from study.results.metrics import EpochResult, Evaluation
from study.training.loop import evaluate, train

KEY = Key("resnet18", "0" * 16, 1, 32, "1" * 16, "2" * 16, "autoaugment", 0, 1, "bf16", "a machine")
ORDER = torch.arange(SEGMENT + 70)
SEGMENTS = 2
IMAGE_BYTES = 8 * 3 * 3 * 2
CHUNK = 64


def compute(order):
    """Outputs (n, 8, 3, 3) channels-last bf16 that tell the images apart, 64 at a time, like a prefix's."""
    for rows in order.split(CHUNK):
        values = rows[:, None, None, None] * torch.ones(8, 3, 3) + torch.arange(8.0)[:, None, None]
        yield values.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


EXPECTED = list(compute(ORDER))


def refuse(order):
    raise AssertionError("computed what is stored")


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features", 10**9)


def read(store, key=KEY, compute=compute):
    return list(store.stream(key, ORDER, compute))


def files(store, suffix=".safetensors"):
    return sorted(store.directory.glob(f"*{suffix}"))


def same(chunks, others=EXPECTED):
    return all(
        torch.equal(chunk, other) and chunk.stride() == other.stride()
        for chunk, other in zip(chunks, others, strict=True)
    )


def test_stream_yields_what_was_computed_in_the_same_layout(store):
    assert same(read(store))
    assert same(read(store, compute=refuse))


def test_stream_says_where_outputs_come_from(store):
    read(store)
    assert store.tally == {"stored": len(ORDER)}
    read(store)
    assert store.tally == {"stored": len(ORDER), "read": len(ORDER)}


def test_stream_reads_what_another_store_has_left(store):
    read(store)
    assert same(read(FeatureStore(store.directory, 10**9), compute=refuse))


@pytest.mark.parametrize("shape", [(512,), (512, 1, 1), (3, 1, 5), (5, 7, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_stream_keeps_any_layout(store, shape, memory_format, dtype):
    """Also where a side is one value, so that strides alone tell layouts apart, or where bytes are no multiple of 8."""
    values = torch.randn(70, *shape).to(dtype)
    if values.dim() == 4:
        values = values.contiguous(memory_format=memory_format)
    for _ in range(2):
        chunks = list(store.stream(KEY, torch.arange(70), lambda order: iter(values[order[0] :].split(CHUNK))))
        assert same(chunks, values.split(CHUNK))


def test_stream_needs_one_segment_before_its_first_chunk(store):
    next(store.stream(KEY, ORDER, compute))
    assert len(files(store)) == 1


def unread(store):
    """Return the files, first segment first, without the mark that reading leaves on them."""
    paths = sorted(files(store), key=lambda path: len(path.name))  # their names end in the segments' starts
    for path in paths:
        os.utime(path, (1, 1))
    return paths


def wait_until_read(path):
    deadline = time.monotonic() + 60
    while path.stat().st_mtime == 1:
        assert time.monotonic() < deadline, f"{path} is not read"
        time.sleep(0.01)


def test_stream_reads_the_first_segment_from_the_call_on(store):
    read(store)
    first, _ = unread(store)
    chunks = store.stream(KEY, ORDER, refuse)
    wait_until_read(first)
    first.unlink()
    assert same(chunks)


def test_stream_reads_the_next_segment_ahead(store):
    read(store)
    _, second = unread(store)
    chunks = store.stream(KEY, ORDER, refuse)
    taken = next(chunks)
    wait_until_read(second)
    second.unlink()
    assert same([taken, *chunks])


def test_stream_finds_what_came_after_reading_ahead(store):
    chunks = store.stream(KEY, ORDER, refuse)
    store._reader.submit(lambda: None).result()  # behind that look
    read(FeatureStore(store.directory, 10**9))
    assert same(chunks)


def test_store_ends_its_thread_with_itself(tmp_path):
    store = FeatureStore(tmp_path, 10**9)
    read(store)
    thread = store._reader.submit(threading.current_thread).result()
    chunks = store.stream(KEY, ORDER, refuse)
    next(chunks)
    del chunks, store
    thread.join(60)
    assert not thread.is_alive()


# Damage


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    path.write_bytes(b"")


def flip_in_header(path, at=20):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_in_values(path):
    flip_in_header(path, at=-5)


def lose_a_page(path):
    data = path.read_bytes()
    path.write_bytes(data[:8192] + bytes(4096) + data[12288:])


def replace_by_text(path):
    path.write_text("not a tensor")


def replace_by_other_values_of_the_format(path):
    from safetensors.torch import save_file

    save_file({"features": torch.zeros(SEGMENT, 3, 3, 8)}, path)


def replace_by_fifo(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        flip_in_header,
        flip_in_values,
        lose_a_page,
        replace_by_text,
        replace_by_other_values_of_the_format,
        replace_by_fifo,
        Path.unlink,
    ],
)
def test_stream_computes_a_damaged_file_again(store, damage):
    read(store)
    damage(files(store)[0])
    assert same(read(store))
    assert same(read(store, compute=refuse))


def test_stream_does_not_take_another_keys_file(store):
    other = dataclasses.replace(KEY, epoch=2)
    list(store.stream(other, ORDER, lambda order: (chunk + 1 for chunk in compute(order))))
    for path in files(store):
        path.rename(path.with_name(path.name.replace(other.digest, KEY.digest)))
    assert same(read(store))


def test_stream_never_unpickles(store, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    read(store)
    for path in files(store):
        path.write_bytes(pickle.dumps(Bomb()))
    assert same(read(store))
    assert not (tmp_path / "exploded").exists()


def test_stream_survives_files_that_vanish_while_it_reads(store):
    read(store)
    chunks = []
    for chunk in store.stream(KEY, ORDER, compute):
        for path in files(store):
            path.unlink()
        chunks.append(chunk)
    assert same(chunks)


def test_stream_survives_a_directory_that_vanishes_while_it_stores(store):
    def compute_and_clean(order):
        for chunk in compute(order):
            for path in store.directory.iterdir():
                path.unlink()
            yield chunk

    assert same(read(store, compute=compute_and_clean))
    assert same(read(store))


def test_stream_leaves_a_file_that_only_cannot_be_read_now(store):
    """No file handle is left for it: the segment is computed, and the file is there for the next."""
    read(store)
    kept = files(store)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        chunks = read(store)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert same(chunks)
    assert files(store) == kept
    assert store.failure is None
    assert same(read(store, compute=refuse))


# The bound


def fill(store, epoch):
    key = dataclasses.replace(KEY, epoch=epoch)
    list(store.stream(key, ORDER, compute))
    return {path for path in files(store) if path.name.startswith(key.digest)}


def total(store):
    return sum(path.stat().st_size for path in store.directory.iterdir())


def test_store_evicts_the_least_recently_used_first(tmp_path):
    epoch_bytes = len(ORDER) * IMAGE_BYTES + SEGMENTS * 4096
    store = FeatureStore(tmp_path, 2 * epoch_bytes + 100)
    first, second = fill(store, 1), fill(store, 2)
    long_ago = time.time() - 100
    for path in first | second:
        os.utime(path, (long_ago, long_ago))
    fill(store, 1)  # used again
    third = fill(store, 3)
    assert set(files(store)) == first | third
    assert total(store) <= store.limit_bytes


def test_store_serves_the_epochs_that_fit_in_every_trial(tmp_path):
    """One epoch of five does not fit. Its first trial replaces the oldest epoch, and no later one replaces any."""
    epoch_bytes = len(ORDER) * IMAGE_BYTES + SEGMENTS * 4096
    store = FeatureStore(tmp_path, 4 * epoch_bytes + 100, tolerance_s=float("inf"))
    found = []
    for _ in range(3):
        before = store.tally["read"]
        for epoch in range(1, 6):
            read(store, dataclasses.replace(KEY, epoch=epoch))
            time.sleep(0.02)  # the clock of files is coarse
        found.append((store.tally["read"] - before) / len(ORDER))
    assert found == [0, 4, 4]


def test_store_keeps_no_entry_that_is_larger_than_its_bound(tmp_path):
    store = FeatureStore(tmp_path, len(ORDER) * IMAGE_BYTES)
    assert same(read(store))
    assert store.tally == {"computed": len(ORDER)}
    assert not files(store)


def test_store_keeps_within_its_bound_beside_unfinished_work_of_others(tmp_path):
    store = FeatureStore(tmp_path, len(ORDER) * IMAGE_BYTES + SEGMENTS * 4096)
    with FileLock(tmp_path / "another.lock"):
        (tmp_path / "another.partial").write_bytes(bytes(store.limit_bytes - 1000))
        assert same(read(store))
    assert store.tally == {"computed": len(ORDER)}
    assert total(store) <= store.limit_bytes
    assert store.failure is None


def test_eviction_leaves_mapped_entries_readable(tmp_path):
    store = FeatureStore(tmp_path, len(ORDER) * IMAGE_BYTES + SEGMENTS * 4096 + 100)
    chunks = read(store)
    assert fill(store, 2)
    assert not any(path.name.startswith(KEY.digest) for path in files(store))
    assert same(chunks)


@pytest.mark.parametrize("when", ["storing", "reading"])
def test_store_gives_up_where_files_are_slower_than_computing(tmp_path, when, monkeypatch):
    ready = [chunk.clone() for chunk in EXPECTED]  # so that computing takes no time at all
    store = FeatureStore(tmp_path, 10**9, tolerance_s=0)
    if when == "reading":
        load = feature_store.read_segment
        monkeypatch.setattr(feature_store, "read_segment", lambda *span: time.sleep(0.1) or load(*span))
        read(FeatureStore(tmp_path, 10**9), compute=lambda order: iter(ready[int(order[0]) // CHUNK :]))
    assert same(read(store, compute=lambda order: iter(ready[int(order[0]) // CHUNK :])))
    assert store.tally == {"stored" if when == "storing" else "read": SEGMENT, "computed": len(ORDER) - SEGMENT}


def test_default_limit_is_a_fifth_of_the_disk(tmp_path):
    assert 0 < default_limit_bytes(tmp_path / "not" / "there") <= 50 * 10**9


def test_default_limit_survives_files_that_vanish_while_it_counts(tmp_path):
    (tmp_path / "evicted.safetensors").symlink_to(tmp_path / "gone")
    assert 0 < default_limit_bytes(tmp_path) <= 50 * 10**9


# A disk that does not work


def test_store_turns_itself_off_where_it_cannot_write(tmp_path):
    (tmp_path / "features").write_text("a file")
    store = FeatureStore(tmp_path / "features", 10**9)
    with pytest.warns(RuntimeWarning, match="features: must be writable and have room, but got 'File exists'") as seen:
        assert same(read(store))
        assert same(read(store))
    assert len(seen) == 1
    assert store.tally == {"unstored": 2 * len(ORDER)}
    assert store.failure == f"{store.directory}: must be writable and have room, but got 'File exists'."


def test_store_survives_an_unreadable_directory(tmp_path):
    """As below a parent that may not be entered, which nothing forbids root."""
    directory = tmp_path / ("long" * 100)
    store = FeatureStore(directory, default_limit_bytes(directory))
    assert store.limit_bytes == MAX_LIMIT_BYTES
    with pytest.warns(RuntimeWarning, match="File name too long"):
        assert same(read(store))


@pytest.mark.slow
def test_store_turns_itself_off_where_files_may_not_grow(tmp_path):
    code = (
        "import resource, warnings, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from test_feature_store import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "store = FeatureStore(Path(sys.argv[2]), 10**9)\n"
        "with pytest.warns(RuntimeWarning, match='must be writable and have room, but got .File too large.'):\n"
        "    assert same(read(store))\n"
        "assert store.tally == {'unstored': len(ORDER)} and not files(store, '.partial')\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    seen = subprocess.run(command, capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr


def test_store_turns_itself_off_where_the_disk_is_full(small_disk):
    store = FeatureStore(small_disk, 10**9)
    with pytest.warns(
        RuntimeWarning, match="must be writable and have room, but got 'No space left on device'"
    ) as seen:
        assert same(read(store))
        assert same(read(store))
    assert len(seen) == 1
    assert store.tally == {"unstored": 2 * len(ORDER)}
    assert not files(store, ".partial")


def test_store_leaves_nothing_of_what_failed(store):
    def fail(order):
        yield next(compute(order))
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        read(store, compute=fail)
    assert [path.name for path in store.directory.iterdir()] == ["room.lock"]


def test_store_removes_what_a_dead_process_left(store):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from test_feature_store import *\n"
        "def die(order):\n"
        "    yield next(compute(order))\n"
        "    os._exit(9)\n"
        "read(FeatureStore(Path(sys.argv[2]), 10**9), compute=die)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(store.directory)], check=False)
    assert len(files(store, ".partial")) == 1
    assert same(read(store))
    assert [path.suffix for path in sorted(store.directory.iterdir())] == [".safetensors", ".safetensors", ".lock"]


# Several at once


@pytest.mark.slow
def test_processes_that_need_one_entry_compute_it_once(tmp_path):
    """Each process writes down what it computes; together that is every segment once."""
    code = (
        "import sys, time, torch; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from test_feature_store import *\n"
        "here, me = Path(sys.argv[2]), sys.argv[3]\n"
        "(here / f'ready-{me}').touch()\n"
        "while not all((here / f'ready-{other}').exists() for other in '12'): time.sleep(0.01)\n"
        "order = torch.arange(4 * SEGMENT)\n"
        "log = open(here / f'log-{me}', 'w')\n"
        "def logged(order):\n"
        "    for rows, chunk in zip(order.split(CHUNK), compute(order), strict=True):\n"
        "        print(int(rows[0]), file=log, flush=True); time.sleep(0.05)\n"
        "        yield chunk\n"
        "assert same(list(FeatureStore(here / 'store', 10**9).stream(KEY, order, logged)), list(compute(order)))\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    processes = [subprocess.Popen([*command, me]) for me in "12"]
    assert [process.wait() for process in processes] == [0, 0]
    computed = [int(line) for me in "12" for line in (tmp_path / f"log-{me}").read_text().split()]
    assert sorted(computed) == list(range(0, 4 * SEGMENT, CHUNK))


def test_whoever_finds_a_segment_in_work_computes_the_next_meanwhile(store):
    begun, go_on = threading.Event(), threading.Event()

    def slowly(order):
        begun.set()
        go_on.wait(60)
        yield from compute(order)

    first = threading.Thread(target=lambda: next(store.stream(KEY, ORDER, slowly)))
    first.start()
    begun.wait(60)
    asked = []

    def observed(order):
        asked.append(int(order[0]))
        go_on.set()
        return compute(order)

    assert same(read(FeatureStore(store.directory, 10**9), compute=observed))
    first.join()
    assert asked == [SEGMENT]


def test_whoever_has_waited_long_enough_computes(store):
    """As where the other process is suspended."""
    begun, go_on = threading.Event(), threading.Event()

    def stuck(order):
        begun.set()
        go_on.wait(60)
        yield from compute(order)

    first = threading.Thread(target=lambda: next(store.stream(KEY, ORDER[:CHUNK], stuck)))
    first.start()
    begun.wait(60)
    impatient = FeatureStore(store.directory, 10**9, patience_s=0.1)
    assert same(list(impatient.stream(KEY, ORDER[:CHUNK], compute)), EXPECTED[:1])
    assert impatient.tally == {"computed": CHUNK}
    go_on.set()
    first.join()


# Trials


@functools.cache
def untrained(model):
    return build(model, classes=3, unfreeze_depth=5, pretrained=None, seed=0).network.state_dict()


def fit(recipe, images, *, features=None, precision="fp32", after_epoch=lambda epoch: None, seed=0):
    """Train and test a small classifier; return what it reports, seconds aside."""
    hardware = Hardware(torch.device("cpu"), precision)
    classifier = build(
        recipe.model, classes=3, unfreeze_depth=recipe.unfreeze_depth, pretrained=untrained(recipe.model), seed=seed
    )
    reports = []
    for result in train(
        classifier,
        recipe,
        images,
        classes=3,
        seed=seed,
        hardware=hardware,
        validation=images.take([2, 5, 9]),
        features=features,
    ):
        reports.append(dataclasses.replace(result, epoch_s=0, images_per_s=0, features=None))
        after_epoch(result.epoch)
    return [*reports, evaluate(classifier, recipe, images, classes=3, hardware=hardware, features=features)]


def epoch_of(path):
    """Return the epoch of a file's key."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["study"])["key"]["epoch"]


def two_segments():
    pixels = np.random.default_rng(0).integers(0, 256, (SEGMENT + 20, 3, 32, 32), np.uint8)
    return Images(pixels, np.arange(SEGMENT + 20) % 3)


EVERY_DEPTH = [("resnet18", depth, precision) for depth in range(4) for precision in ("bf16", "fp32")]
PRECISION = choose_hardware("auto").precision
# VGG's head has a hundred million weights: few images, and at fp32 where this machine only emulates bf16.
VGG_DEPTHS = sorted(
    {("vgg16", depth, PRECISION) for depth in range(3)} | {("vgg16", depth, "fp32") for depth in (0, 3)}
)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "depth", "precision"), [*EVERY_DEPTH, *VGG_DEPTHS])
def test_trial_gives_the_same_results_with_and_without_the_store(
    store, make_recipe, make_images, model, depth, precision
):
    """Losses, confusion matrices and predictions to the last bit: computed, stored, and read."""
    epochs, count = (1, 12) if model == "vgg16" else (2, 70)
    recipe = make_recipe(model=model, unfreeze_depth=depth, epochs=epochs, batch_size=48, optimizer="sgd")
    images = make_images(count)
    alone, storing, reading = (
        fit(recipe, images, features=features, precision=precision) for features in (None, store, store)
    )
    assert alone == storing == reading
    assert store.tally["stored"] == epochs * count + 3 + count
    assert store.tally["computed"] == 0


@pytest.mark.slow
def test_two_trials_that_share_an_epoch_give_one_result(tmp_path, make_recipe):
    """And leave nothing to be computed alone: what one has stored the other reads."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from study.config.recipe import Recipe; from test_feature_store import *\n"
        "here, me, recipe = Path(sys.argv[2]), sys.argv[3], Recipe(**json.loads(sys.argv[4]))\n"
        "store = FeatureStore(here / 'store', 10**9, tolerance_s=1000)\n"
        "(here / f'ready-{me}').touch()\n"
        "while not all((here / f'ready-{other}').exists() for other in '12'): time.sleep(0.01)\n"
        "found = [dataclasses.asdict(report) for report in fit(recipe, two_segments(), features=store)]\n"
        "print(json.dumps([found, store.tally]))\n"
    )
    recipe = make_recipe()
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    given = json.dumps(recipe.to_dict())
    processes = [subprocess.Popen([*command, me, given], stdout=subprocess.PIPE, text=True) for me in "12"]
    results = [json.loads(process.communicate()[0]) for process in processes]
    alone = fit(recipe, two_segments())
    for found, _ in results:
        *epochs, test = found
        assert [*(EpochResult(**epoch) for epoch in epochs), Evaluation(**test)] == alone
    assert {source for _, tally in results for source in tally} == {"read", "stored"}


def test_trial_survives_entries_that_vanish_between_epochs(store, make_recipe, make_images):
    recipe, images = make_recipe(), make_images(70)
    expected = fit(recipe, images)

    def clean(epoch):
        for path in files(store):
            path.unlink()

    assert fit(recipe, images, features=store) == expected
    assert fit(recipe, images, features=store, after_epoch=clean) == expected


def test_trial_that_ends_after_an_epoch_has_stored_one(store, make_recipe, make_images):
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    next(
        train(
            classifier,
            make_recipe(),
            make_images(70),
            classes=3,
            seed=0,
            hardware=Hardware(torch.device("cpu"), "fp32"),
            features=store,
        )
    )
    assert len(files(store)) == 1


def test_trial_reads_its_next_epoch_ahead(store, make_recipe, make_images):
    """And the images are counted where they are trained on."""
    recipe, images = make_recipe(epochs=2), make_images(70)
    fit(recipe, images, features=store)
    (upcoming,) = (path for path in unread(store) if epoch_of(path) == 2)
    counts = []
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=untrained("resnet18"), seed=0)
    hardware = Hardware(torch.device("cpu"), "fp32")
    for result in train(classifier, recipe, images, classes=3, seed=0, hardware=hardware, features=store):
        wait_until_read(upcoming)  # after the first epoch: it has not been asked for yet
        counts.append(result.features)
    assert counts == [{"read": 70}] * 2


def test_trials_share_entries_whatever_trains_the_suffix(store, make_recipe, make_images):
    images = make_images(70)
    fit(make_recipe(), images, features=store)
    stored = store.tally["stored"]
    fit(make_recipe(lr=0.1, optimizer="sgd", batch_size=7, label_smoothing=0.1), images, features=store)
    assert store.tally["stored"] == stored


@pytest.mark.parametrize(
    "changes",
    [{"unfreeze_depth": 2}, {"image_size": 48}, {"augmentation": "none"}],
    ids=lambda changes: next(iter(changes)),
)
def test_trials_share_nothing_that_differs(store, make_recipe, make_images, changes):
    images = make_images(70)
    fit(make_recipe(epochs=1), images, features=store)
    stored = len(files(store))
    recipe = make_recipe(epochs=1, **changes)
    assert fit(recipe, images, features=store) == fit(recipe, images)
    assert len(files(store)) > stored


def test_trials_of_other_seeds_weights_and_images_get_their_own(store, make_recipe, make_images):
    recipe = make_recipe(epochs=1)
    fit(recipe, make_images(70), features=store)
    assert fit(recipe, make_images(70), features=store, seed=1) == fit(recipe, make_images(70), seed=1)
    assert fit(recipe, make_images(70, seed=1), features=store) == fit(recipe, make_images(70, seed=1))


def test_trial_with_an_empty_prefix_stores_nothing(store, make_recipe, make_images):
    fit(make_recipe(unfreeze_depth=5, epochs=1), make_images(16), features=store)
    assert not store.directory.exists()


def test_depth_0_stores_what_the_head_starts_with(store, make_recipe, make_images):
    """512 values an image of ResNet18: pooled and flat."""
    fit(make_recipe(unfreeze_depth=0, epochs=1), make_images(64), features=store)
    assert min(path.stat().st_size for path in files(store)) == 4096 + 3 * 512 * 4
