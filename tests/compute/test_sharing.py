"""How many trials one GPU, or the CPU cores of a computer, take, from what is known before they start."""

import pytest

from study import limits
from study.compute.sharing import trials_on_cores, trials_per_gpu

GB = 10**9


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A computer with 64 GB of free memory, and the limits of a container as files in a directory of the test."""
    (tmp_path / "meminfo").write_text(f"MemAvailable: {64 * GB // 1024} kB\n")
    monkeypatch.setattr(limits, "PROC", tmp_path)
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    return tmp_path


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


@pytest.mark.parametrize(
    ("models", "image_size", "batch_size", "trials", "cores", "share"),
    [
        (["resnet18"], 32, 256, 20, 2, 2),
        (["resnet18"], 32, 256, 20, 8, 4),
        (["resnet18"], 32, 256, 20, 9, 3),
        (["resnet18"], 32, 256, 20, 7, 1),  # no number of trials divides 7 cores
        (["resnet18"], 32, 256, 20, 1, 1),
        (["resnet18"], 32, 256, 3, 8, 2),  # 3 do not divide 8 cores
        (["resnet18"], 32, 256, 1, 8, 1),
        (["resnet18"], 96, 64, 20, 2, 2),
        (["resnet18"], 224, 16, 20, 2, 1),  # chunks of 64 images pass through the frozen blocks
        (["timm/tf_efficientnet_lite0"], 96, 256, 20, 2, 2),
        (["timm/tf_efficientnet_lite0"], 224, 256, 20, 2, 1),
        (["resnet18", "vgg16"], 32, 256, 20, 2, 1),  # as many as the largest model allows
    ],
)
def test_trials_on_cores_follows_work_and_cores(container, models, image_size, batch_size, trials, cores, share):
    found = trials_on_cores(models, image_size=image_size, batch_size=batch_size, trials=trials, cores=cores)
    assert found == share


@pytest.mark.parametrize(("free", "share"), [(11, 4), (9, 3), (6, 2), (4, 1)])
def test_trials_on_cores_need_memory(container, free, share):
    (container / "memory.max").write_text(str((free + 3) * GB))
    (container / "memory.current").write_text(str(3 * GB))
    (container / "memory.stat").write_text("active_file 0\ninactive_file 0\n")
    assert trials_on_cores(["resnet18"], image_size=32, batch_size=256, trials=20, cores=12) == share


def test_trials_on_cores_need_processes(container):
    (container / "pids.max").write_text("400")
    (container / "pids.current").write_text("300")
    assert trials_on_cores(["resnet18"], image_size=32, batch_size=256, trials=20, cores=12) == 2
