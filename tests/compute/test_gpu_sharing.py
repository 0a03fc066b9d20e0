"""How many trials one GPU takes, from what is known before they start."""

import pytest

from study.compute.gpu_sharing import trials_per_gpu

GB = 10**9


@pytest.mark.parametrize(
    ("model", "image_size", "batch_size", "gpu_bytes", "trials"),
    [
        ("resnet18", 224, 64, 80 * GB, 4),
        ("resnet18", 224, 64, 24 * GB, 2),
        ("resnet18", 224, 64, 12 * GB, 1),
        ("resnet18", 224, 256, 80 * GB, 1),  # such batches fill a GPU
        ("resnet18", 96, 256, 80 * GB, 4),
        ("vgg16", 224, 64, 80 * GB, 1),
        ("timm/vit_tiny_patch16_224", 224, 64, 80 * GB, 4),
        ("resnet18", 224, 64, None, 1),  # its memory is not known
    ],
)
def test_trials_per_gpu_follows_memory_and_work(model, image_size, batch_size, gpu_bytes, trials):
    found = trials_per_gpu([model], image_size=image_size, batch_size=batch_size, gpu_bytes=gpu_bytes)
    assert found == trials


def test_trials_per_gpu_heeds_the_largest_model():
    found = trials_per_gpu(["resnet18", "vgg16"], image_size=224, batch_size=64, gpu_bytes=80 * GB)
    assert found == 1
