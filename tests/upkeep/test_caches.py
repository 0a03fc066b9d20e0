"""Caches are shown with their sizes, and cleared unless a process uses them or other programs share them."""

from study.config.paths import cache_directory
from study.data.pixel_store import PixelStore
from study.upkeep.caches import clear, format_caches, list_caches


def find(name):
    return next(cache for cache in list_caches() if cache.name == name)


def test_clear_empties_the_feature_store_but_no_lock():
    directory = cache_directory() / "features"
    directory.mkdir(parents=True)
    (directory / "a.safetensors").write_bytes(bytes(1000))
    (directory / "a.lock").touch()
    assert find("features").size_bytes == 1000
    assert clear(find("features")) == 1000
    assert {file.name for file in directory.iterdir()} >= {"a.lock"}
    assert not [*directory.glob("*.safetensors")]


def test_clear_leaves_images_that_a_study_reads():
    store = PixelStore(cache_directory() / "images")
    for source in ("/one", "/two"):
        with store.open(source, {"size": [4, 4]}):
            pass
    with store.open("/one", {"size": [4, 4]}) as pack:
        clear(find("images"))
        assert [folder for _, _, folder in store._entries()] == [pack.folder]


def test_clear_of_a_missing_cache_does_nothing():
    assert clear(find("images")) == 0


def test_downloads_are_shown_but_not_cleared(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert {cache.name for cache in list_caches() if cache.clearable} == {"features", "images"}
    shown = format_caches(list_caches())
    assert str(tmp_path / "torch" / "hub") in shown and str(tmp_path / "hf" / "hub") in shown
