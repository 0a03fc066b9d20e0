"""Image files of any kind become RGB pixels of one size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.images import noise

from study.data.image_files import read_image
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
