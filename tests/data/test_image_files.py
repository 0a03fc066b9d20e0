"""Image files of any kind become RGB pixels of one size."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from PIL.PngImagePlugin import PngInfo
from support.images import noise

from study.data.image_files import grey_range_of, read_image, recognise
from study.errors import DataError


def test_read_image_crops_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert (read_image(tmp_path / "x.png", (10, 10)) == 200).all()


def test_read_image_filters_as_it_shrinks(tmp_path: Path) -> None:
    """A fine chequerboard becomes grey, where resizing without a filter would give black and white."""
    pixels = np.indices((64, 64)).sum(axis=0) % 2 * 255
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "x.png")
    shrunk = read_image(tmp_path / "x.png", (8, 8)).astype(int)
    assert np.abs(shrunk - 127).max() <= 8


def test_read_image_of_a_large_jpeg_is_nearly_exact(tmp_path: Path) -> None:
    smooth = Image.fromarray(noise(8, 8)).resize((800, 800), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "x.jpg", quality=95)
    full = ImageOps.fit(Image.open(tmp_path / "x.jpg"), (64, 64), Image.Resampling.BILINEAR)
    difference = read_image(tmp_path / "x.jpg", (64, 64)).transpose(1, 2, 0).astype(int) - np.asarray(full)
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize(("extension", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)])
def test_read_image_scales_16_bit_grey(extension: str, dtype: type, tmp_path: Path) -> None:
    ramp = np.tile((np.arange(256) * 257).astype(dtype), (4, 1))
    Image.fromarray(ramp).save(tmp_path / f"x.{extension}")
    assert (read_image(tmp_path / f"x.{extension}", (256, 4)) == np.arange(256)).all()


@pytest.mark.parametrize("values", [np.ones((4, 4), np.float32), np.full((4, 4), 70000, np.int32)])
def test_read_image_refuses_values_of_unknown_range(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: .* neither 8 nor 16 bits wide"):
        read_image(tmp_path / "x.tif", (4, 4))


@pytest.mark.parametrize(
    ("mode", "extension"), [("L", "png"), ("1", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "tif"), ("CMYK", "jpg")]
)
def test_read_image_makes_any_mode_rgb(mode: str, extension: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / f"x.{extension}")
    image = read_image(tmp_path / f"x.{extension}", (16, 16))
    assert image.shape == (3, 16, 16)
    assert (image == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_read_image_shows_transparent_parts_white(mode: str, tmp_path: Path) -> None:
    drawing = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 8, 16))
    drawing.convert(mode).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png", (16, 16))
    assert (image[:, :, :8] == 0).all()
    assert (image[:, :, 8:] == 255).all()


@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_read_image_follows_exif_orientation(extension: str, tmp_path: Path) -> None:
    pixels = noise(6, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / f"x.{extension}", exif=exif, lossless=True)
    assert (read_image(tmp_path / f"x.{extension}", (6, 6)).transpose(1, 2, 0) == np.rot90(pixels, -1)).all()


def test_read_image_of_a_huge_jpeg_is_decoded_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(8, 8)).resize((800, 600)).save(tmp_path / "x.jpg")
    expected = read_image(tmp_path / "x.jpg", (32, 32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert (read_image(tmp_path / "x.jpg", (32, 32)) == expected).all()


def test_read_image_refuses_a_huge_progressive_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(600, 800)).save(tmp_path / "x.jpg", progressive=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(DataError, match=r"480,000 pixels are more than 400,000.* not progressive"):
        read_image(tmp_path / "x.jpg", (32, 32))


def test_read_image_of_a_png_with_much_text(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.fromarray(noise(8, 8)).save(tmp_path / "x.png", pnginfo=text)
    assert read_image(tmp_path / "x.png", (8, 8)).shape == (3, 8, 8)


def test_read_image_of_several_jpegs_in_one_reads_the_first(tmp_path: Path) -> None:
    first, second = (Image.fromarray(noise(16, 16, seed)) for seed in (0, 1))
    first.save(tmp_path / "x.mpo", save_all=True, append_images=[second], quality=95)
    first.save(tmp_path / "x.jpg", quality=95)
    assert (read_image(tmp_path / "x.mpo", (16, 16)) == read_image(tmp_path / "x.jpg", (16, 16))).all()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_read_image_of_an_avif(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 0)).save(tmp_path / "x.avif")
    assert np.abs(read_image(tmp_path / "x.avif", (16, 16))[:, 8, 8].astype(int) - (200, 100, 0)).max() < 10


def test_read_image_of_a_heic_needs_a_package(tmp_path: Path) -> None:
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(DataError, match=r"x\.heic: .*pip install pillow-heif|x\.heic: must be a whole"):
        read_image(tmp_path / "x.heic", (8, 8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_recognise_knows_what_pillow_writes(kind: str, mode: str, tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).convert(mode).save(tmp_path / "x", format=kind)
    assert recognise(tmp_path / "x") == kind


def test_recognise_takes_text_for_no_image(tmp_path: Path) -> None:
    for text in ("BM is a company", "P1 is a paper", "II. Chapter", "GIF8 is short", "RIFF"):
        (tmp_path / "x").write_text(text)
        assert recognise(tmp_path / "x") == "text"


@pytest.mark.parametrize(("fit", "height"), [("pad", 10), ("squash", 20)])
def test_read_image_keeps_all_of_it_unless_cropped(fit: str, height: int, tmp_path: Path) -> None:
    pixels = np.full((10, 20, 3), 100, np.uint8)
    pixels[:, :3] = pixels[:, -3:] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png", (20, 20), fit)
    assert (image == 200).sum() == 3 * 6 * height
    assert not (read_image(tmp_path / "x.png", (20, 20), "crop") == 200).any()


def test_grey_range_passes_over_single_broken_pixels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1000, 3000, (200, 200)).astype(np.uint16)
    values[0, 0], values[0, 1] = 65535, 0
    Image.fromarray(values).save(tmp_path / "x.png")
    with ThreadPoolExecutor(1) as pool:
        low, high = grey_range_of([tmp_path / "x.png"], pool)
    assert 1000 <= low < 1010 and 2990 < high < 3000
