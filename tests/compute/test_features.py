"""The prefix's outputs are the same for whoever asks, and batches cut from them lose nothing."""

import pytest
import torch
from support.images import store_images

from study.augmentation.augment import draw
from study.compute.feature_store import FeatureStore
from study.compute.features import CHUNK, epoch_outputs, prefix_outputs, rebatch, run_blocks
from study.compute.gpu_cache import DeviceMemory
from study.compute.hardware import Hardware
from study.models.classifier import build
from study.models.preprocessing import preprocessing
from study.training.loop import train

CPU = Hardware(torch.device("cpu"), "fp32")


def outputs(images, order, *, precision="fp32", draws=None):
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    return list(
        prefix_outputs(
            classifier.prefix,
            order,
            preprocess=preprocessing("resnet18", 32),
            images=torch.from_numpy(images.pixels),
            draws=draws,
            hardware=Hardware(torch.device("cpu"), precision),
        )
    )


def test_rebatch_keeps_every_value_in_order():
    values = torch.arange(23)
    batches = list(rebatch(values.split(5), [7, 7, 1, 8]))
    assert [len(batch) for batch in batches] == [7, 7, 1, 8]
    assert torch.equal(torch.cat(batches), values)


def test_rebatch_asks_for_the_end():
    chunks = iter(torch.arange(8).split(4))
    ended = []

    def stream():
        yield from chunks
        ended.append(True)

    assert len(list(rebatch(stream(), [5, 3]))) == 2
    assert ended


def test_rebatch_gives_copies_that_autograd_may_save():
    with torch.inference_mode():
        chunk = torch.ones(4)
    (batch,) = rebatch([chunk], [4])
    assert not batch.is_inference()


def test_prefix_outputs_follow_the_order(make_images):
    images = make_images(CHUNK)
    forward, backward = (outputs(images, order)[0] for order in (torch.arange(CHUNK), torch.arange(CHUNK).flip(0)))
    torch.testing.assert_close(forward, backward.flip(0))


def test_prefix_outputs_come_in_chunks_of_one_size(make_images):
    sizes = [len(chunk) for chunk in outputs(make_images(CHUNK + 6), torch.arange(CHUNK + 6))]
    assert sizes == [CHUNK, 6]


def test_prefix_outputs_are_repeated_bit_for_bit(make_images):
    images, order = make_images(20), torch.arange(20)
    draws = draw(20, seed=0, epoch=1)
    first, second = (outputs(images, order, precision="bf16", draws=draws)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_prefix_outputs_leave_autograd_on_between_chunks(make_images):
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    stream = prefix_outputs(
        classifier.prefix, torch.arange(8),
        preprocess=preprocessing("resnet18", 32), images=torch.from_numpy(make_images(8).pixels), draws=None,
        hardware=CPU,
    )  # fmt: skip
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("augmentation", ["none", "autoaugment"])
def test_training_is_the_same_from_a_file(make_images, make_recipe, tmp_path, monkeypatch, augmentation):
    """Bit for bit, with several parts of an epoch read ahead."""
    monkeypatch.setattr("study.compute.features.WINDOW", CHUNK)
    images, recipe = make_images(2 * CHUNK + 6), make_recipe(batch_size=48, augmentation=augmentation)

    def fit(some):
        classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
        results = train(classifier, recipe, some, classes=3, seed=0, hardware=CPU, validation=some)
        return [(result.train_loss, result.val_loss) for result in results]

    assert fit(store_images(images, tmp_path / "pixels")) == fit(images)


def test_epoch_outputs_are_the_same_from_the_devices_memory(make_images, make_recipe, tmp_path):
    images, recipe = make_images(CHUNK + 6), make_recipe()
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    memory, store = DeviceMemory(10**8), FeatureStore(tmp_path, 10**8)

    def epoch(store, number=1):
        stream = epoch_outputs(
            classifier, recipe, images, torch.randperm(CHUNK + 6, generator=torch.Generator().manual_seed(number)),
            augmentation=(0, number), hardware=CPU, store=store, memory=memory,
        )  # fmt: skip
        return [chunk.clone() for chunk in stream]

    plain, first, other = epoch(None), epoch(store), epoch(store, number=2)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    again = epoch(store)
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert store.tally == {"stored": 2 * (CHUNK + 6), "read": CHUNK + 6}


def test_train_keeps_its_epochs_in_the_devices_memory(make_images, make_recipe, tmp_path, monkeypatch):
    """A second trial needs neither the images nor the store's files."""
    memory, store = DeviceMemory(10**8), FeatureStore(tmp_path, 10**8)
    monkeypatch.setattr("study.compute.features.device_memory", lambda device, gpu_share: memory)
    images, recipe = make_images(CHUNK + 6), make_recipe(batch_size=48)

    def fit():
        classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
        hardware = Hardware(torch.device("cpu"), "fp32")
        results = train(classifier, recipe, images, classes=3, seed=0, hardware=hardware, features=store)
        return [(result.train_loss, result.features) for result in results]

    first = fit()
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert fit() == [(loss, {"read": CHUNK + 6}) for loss, _ in first]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["resnet18", "vgg11", "efficientnet_b0", "convnext_tiny", "mobilenet_v3_small"])
def test_epoch_outputs_are_the_same_from_a_shorter_prefixs(make_images, make_recipe, tmp_path, model, precision):
    """Whatever trials of larger unfreeze depths have left in the store, bit for bit."""
    images = make_images(10)

    def epoch(classifier, depth, store):
        stream = epoch_outputs(
            classifier, make_recipe(model=model, unfreeze_depth=depth), images, torch.arange(10),
            augmentation=(0, 1), hardware=Hardware(torch.device("cpu"), precision), store=store,
        )  # fmt: skip
        return torch.cat(list(stream))

    store = FeatureStore(tmp_path, 10**8)
    for depth in (4, 2, 3, 0, 1):
        classifier = build(model, classes=3, unfreeze_depth=depth, pretrained=None, seed=0)
        classifier.network.to(memory_format=torch.channels_last)
        assert torch.equal(epoch(classifier, depth, store), epoch(classifier, depth, None)), depth
    assert store.tally == {"stored": 50}


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(("model", "size"), [("timm/test_vit", 32), ("timm/test_efficientnet", 64)])
def test_epoch_outputs_of_timm_are_the_same_from_the_store(make_images, make_recipe, tmp_path, model, size, depth):
    images, recipe = make_images(10), make_recipe(model=model, unfreeze_depth=depth, image_size=size)
    classifier = build(model, classes=3, unfreeze_depth=depth, pretrained=None, seed=0)

    def epoch(store):
        stream = epoch_outputs(
            classifier, recipe, images, torch.arange(10), augmentation=(0, 1), hardware=CPU, store=store
        )
        return torch.cat(list(stream))

    store = FeatureStore(tmp_path, 10**8)
    computed, stored, read = epoch(None), epoch(store), epoch(store)
    assert torch.equal(stored, computed)
    assert torch.equal(read, computed)
    assert store.tally == {"stored": 10, "read": 10}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_epoch_outputs_stay_on_the_gpu(make_images, make_recipe, tmp_path):
    images, recipe, device = make_images(CHUNK), make_recipe(), torch.device("cuda")
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    classifier.network.to(device)
    memory = DeviceMemory(10**9)
    for _ in range(2):
        (chunk,) = epoch_outputs(
            classifier, recipe, images, torch.arange(CHUNK),
            augmentation=(0, 1), hardware=Hardware(device, "fp32"), store=FeatureStore(tmp_path, 10**9), memory=memory,
        )  # fmt: skip
        assert chunk.device.type == "cuda"
    assert memory.used_bytes == images.pixels.nbytes + chunk.numel() * chunk.element_size()


@pytest.mark.parametrize("model", ["resnet18", "convnext_tiny"])
def test_run_blocks_in_bf16_casts_as_autocast_does(model):
    """The weights are cast once rather than for every chunk; the outputs are equal to the last bit."""
    hardware = Hardware(torch.device("cpu"), "bf16")
    blocks = build(model, classes=3, unfreeze_depth=1, pretrained=None, seed=0).prefix.to(
        memory_format=torch.channels_last
    )
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    expected = images
    with torch.inference_mode(), hardware.autocast():
        for block in blocks:
            expected = block(expected).to(torch.bfloat16)
    (outputs,) = run_blocks(blocks, [images], hardware)
    assert torch.equal(outputs, expected)
    assert {parameter.dtype for parameter in blocks.parameters()} == {torch.float32}
