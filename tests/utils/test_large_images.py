"""Large images that are read in parts."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from hypernet_d2.utils.images import read_image
from hypernet_d2.utils.large_images import open_large_image

PARTS = [(0, 0, 307, 211), (0, 0, 1, 1), (60, 60, 130, 70), (300, 5, 307, 211), (64, 64, 128, 128)]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (211, 307, 3), dtype=np.uint8)


def check_parts(path, expected: np.ndarray) -> None:
    with open_large_image(path) as image:
        assert image.size == expected.shape[:2]
        for x1, y1, x2, y2 in PARTS:
            assert np.array_equal(image.read((x1, y1, x2, y2)), expected[y1:y2, x1:x2])


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (64, 64)},
        {"rowsperstrip": 10},
        {"tile": (64, 64), "compression": "zlib", "predictor": True},
        {"tile": (32, 64), "bigtiff": True},
    ],
)
def test_parts_of_a_tiff_file_are_those_of_the_whole(pixels, tmp_path, options):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", **options)
    check_parts(path, pixels[:, :, ::-1])
    check_parts(path, read_image(path))
    tifffile.imwrite(path, pixels[:, :, 0], photometric="minisblack", **options)
    check_parts(path, read_image(path))


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.jpg", {}), ("a.tif", {"compression": "tiff_lzw"}), ("b.tif", {})],
)
def test_any_other_file_is_read_as_a_whole(pixels, tmp_path, name, options):
    Image.fromarray(pixels).save(tmp_path / name, **options)
    check_parts(tmp_path / name, read_image(tmp_path / name))


def test_rotated_and_16_bit_files_are_read_as_everywhere(pixels, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "rotated.tif"
    tags = [(274, 3, 1, 3, True)]  # upside down
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), extratags=tags)
    check_parts(path, pixels[::-1, ::-1, ::-1])
    deep = pixels[:, :, 0].astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="minisblack", tile=(64, 64))
    check_parts(tmp_path / "deep.tif", read_image(tmp_path / "deep.tif"))


def test_a_part_takes_the_memory_of_a_part(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, np.zeros((2000, 2000, 3), np.uint8), photometric="rgb", tile=(256, 256))
    tracemalloc.start()
    try:
        with open_large_image(path) as image:
            image.read((700, 700, 900, 900))
        assert tracemalloc.get_traced_memory()[1] < 3e6  # of 12 MB
    finally:
        tracemalloc.stop()


def test_truncated_damaged_and_missing_files_are_named(pixels, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.tif: the file is truncated: \d+ of the 20 parts"):
        with open_large_image(path):
            pass
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1]
    path.write_bytes(content[:last] + bytes(len(content) - last))
    with open_large_image(path) as image:
        image.read((0, 0, 64, 64))
        with pytest.raises(ValueError, match=r"a\.tif: part 20 of the 20 parts of this image cann"):
            image.read((290, 200, 300, 210))
    with pytest.raises(FileNotFoundError, match="no such image"):
        with open_large_image(tmp_path / "b.tif"):
            pass
