"""Reading of images: more than 8 bits, modes, orientation; and sizes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hypernet_d2.utils import images
from hypernet_d2.utils.images import fit_size, image_size, list_images, read_image
from tests.helpers import logged_by

RAMP = np.tile(np.linspace(0, 1, 64), (8, 1))
RAMP_8 = np.rint(255 * RAMP).astype(np.uint8)
XMP = (
    b'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def write_ramp(folder: Path, kind: str) -> Path:
    """A ramp from black to white with more than 8 bits."""
    path = folder / f"ramp.{kind.split()[-1]}"
    values = np.rint(65535 * RAMP).astype(np.uint16)
    if kind.startswith("float"):
        Image.fromarray(RAMP.astype(np.float32)).save(path)
    elif kind.startswith("color"):
        cv2 = pytest.importorskip("cv2")
        cv2.imwrite(str(path), np.stack([values] * 3, axis=2))
    elif kind.startswith("big-endian"):
        Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()).save(path)
    elif kind.startswith("inverted"):
        Image.fromarray(65535 - values).save(path, tiffinfo={262: 0})
    elif kind.endswith("pgm"):
        path.write_bytes(b"P5 64 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    "kind",
    ["gray png", "gray tif", "gray pgm", "big-endian tif", "inverted tif", "float tif",
     "color png", "color tif"],
)  # fmt: skip
def test_more_than_8_bits_are_those_of_the_8_bit_image(tmp_path, kind):
    read = read_image(write_ramp(tmp_path, kind))
    assert read.dtype == np.uint8 and read.shape == (8, 64, 3)
    assert np.abs(read.astype(int) - RAMP_8[:, :, None]).max() <= 1


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", ["gray png", "gray tif", "float tif", "color tif"])
def test_training_evaluation_and_deployment_read_the_same(tmp_path, kind):
    from hypernet_d2.data import NamedErrorDatasetMapper
    from hypernet_d2.data.dataset_mapper import read_named

    path = write_ramp(tmp_path, kind)
    expected = read_image(path)
    np.testing.assert_array_equal(read_named(path), expected)
    for is_train in (True, False):
        mapper = NamedErrorDatasetMapper(is_train, augmentations=[], image_format="BGR")
        record = mapper({"file_name": str(path), "height": 8, "width": 64, "annotations": []})
        np.testing.assert_array_equal(record["image"].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (255 * RAMP.astype(np.float32), "values from 0 to 255; expected floats from 0 to 1"),
        (RAMP.astype(np.float32) * np.nan, "values from nan to nan; expected floats"),
        (np.rint(255 * RAMP).astype(np.int32), "signed or 32-bit integers; expected unsigned"),
    ],
    ids=["float over 1", "nan", "int32"],
)
def test_values_of_an_unknown_range_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"a.tif: cannot be read as an image: it has {message}"):
        read_image(tmp_path / "a.tif")


def test_an_image_that_uses_few_of_its_bits_is_reported_once(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_warned", False)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.rint(4095 * RAMP).astype(np.uint16)).save(tmp_path / name)
    with logged_by("hypernet_d2.utils.images", 30) as messages:
        for name in ("a.png", "b.png"):
            read_image(tmp_path / name)
    (message,) = messages
    assert "a.png has more than 8 bits, but its largest value is only 4095" in message


MODES = ["1", "L", "LA", "P", "P transparent", "PA", "RGB", "RGBA", "CMYK", "YCbCr"]


@pytest.mark.detectron2
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", ["BGR", "RGB", "L", "YUV-BT.601", None])
def test_8_bit_images_are_bitwise_those_of_detectron2(tmp_path, mode, format):
    from detectron2.data.detection_utils import read_image as stock

    from hypernet_d2.data.dataset_mapper import read_named

    rgba = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    image = Image.fromarray(rgba).convert("RGBA" if mode == "RGBA" else "RGB")
    path, options = tmp_path / "a.png", {}
    if mode == "P transparent":
        image, options = image.convert("P"), {"transparency": 3}
    elif mode == "PA":
        image, path = image.convert("P").convert("PA"), tmp_path / "a.tif"
    else:
        image = image.convert(mode)
        path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path, **options)
    np.testing.assert_array_equal(read_named(path, format), stock(str(path), format))
    if format == "BGR":
        np.testing.assert_array_equal(read_image(path), stock(str(path), format))


# Orientation

UPRIGHT = np.zeros((3, 5, 3), np.uint8)
UPRIGHT[0, :, 0], UPRIGHT[:, 0, 1] = 255, 255  # red above, green on the left


def write_turned(folder: Path, suffix: str, where: str) -> Path:
    """UPRIGHT stored a quarter turn counterclockwise, with what turns it back."""
    path, stored = (
        folder / f"a.{suffix}",
        Image.fromarray(np.rot90(UPRIGHT).repeat(8, 0).repeat(8, 1)),
    )
    exif, options = Image.Exif(), {}
    if where == "exif":
        exif[274] = 6
        options["exif"] = exif
    elif suffix == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif suffix == "tif":
        options["tiffinfo"] = {700: XMP}
    else:
        options["xmp"] = XMP
    stored.save(path, **options)
    return path


@pytest.mark.parametrize("where", ["exif", "xmp"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation_is_that_of_exif_or_xmp(tmp_path, suffix, where):
    path = write_turned(tmp_path, suffix, where)
    read = read_image(path)
    assert read.shape == (24, 40, 3) and image_size(path) == (40, 24)
    centers = read[4::8, 4::8, ::-1]
    np.testing.assert_array_equal(centers[:, :, :2] > 128, UPRIGHT[:, :, :2] > 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 13000  # 16 bits turn likewise
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image)) / 257
    read = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(read[:, :, 0], expected, atol=0.5)
    assert image_size(tmp_path / "a.png") == expected.shape[::-1]


def test_damaged_exif_data_leaves_the_pixels(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, ::-1], UPRIGHT)


def test_a_program_is_refused_before_it_runs(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(UPRIGHT).save(stream, "EPS")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match="a.png: .*it is PostScript, a program"):
            read(tmp_path / "a.png")


# Files and sizes


def test_the_images_of_a_folder_are_listed_whatever_the_case_of_their_suffix(tmp_path):
    for name in ("b.JPG", "a.jpeg", "d.Tiff", "c.png", "notes.txt", "png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.JPG", "c.png", "d.Tiff"]


@pytest.mark.detectron2
@pytest.mark.parametrize("size", [(480, 640), (641, 427), (100, 100), (33, 1001), (720, 31)])
def test_sizes_are_those_of_detectron2(size):
    from detectron2.data.transforms import ResizeShortestEdge

    expected = ResizeShortestEdge.get_output_shape(*size, 240, 400)
    assert fit_size(size, 240, 400, (400, 400)) == expected


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (3000, 4000)])
def test_sizes_fit_the_canvas_and_are_at_least_one_pixel(size):
    for least in (0, 240):
        height, width = fit_size(size, least, 400, (240, 320))
        assert 1 <= height <= 240 and 1 <= width <= 320


def test_a_picture_above_pillows_limit_is_named_with_the_way_out(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"huge.png: Image size \(4096 .*MAX_IMAGE_PIXELS = None"):
        read_image(path)
