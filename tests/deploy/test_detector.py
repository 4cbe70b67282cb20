"""hypernet_d2.deploy on small graphs: images, thresholds, threads, processes, and bad input."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hypernet_d2.deploy import Detector, ModelInfo, read_image
from hypernet_d2.deploy.__main__ import main
from hypernet_d2.deploy.torch_runner import check_archive
from hypernet_d2.utils.tiles import merge_detections, tile_boxes
from hypernet_d2_cli import run

from . import toy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The toy in the formats that can be written here."""
    folder = tmp_path_factory.mktemp("toy")
    found = {"torch_export": toy.write_torch(folder / "toy.pt2")}
    try:
        found["onnx"] = toy.write_onnx(folder / "toy.onnx")
    except ImportError:
        pass
    return found


@pytest.fixture(params=["onnx", "torch_export"])
def file(request, files) -> Path:
    if request.param == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
    return files[request.param]


@pytest.fixture
def detector(file) -> Detector:
    return Detector(file, threads=1)


def image_of(height: int, width: int, red: int = 128) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 2] = red  # BGR, and the toy looks at the first channel of RGB
    return image


def test_boxes_are_in_pixels_of_the_image_and_channels_in_the_models_order(detector):
    found = detector(image_of(96, 128))
    assert [x.dtype for x in found] == [np.float32, np.float32, np.int64]
    np.testing.assert_allclose(found.boxes, [[0, 0, 128, 96], [0, 0, 64, 48]], atol=1e-4)
    np.testing.assert_allclose(found.scores, [128 / 255, 0.15], atol=1e-6)
    assert found.classes.tolist() == [1, 0]


def test_an_image_is_padded_as_detectron2_pads_it(detector):
    """To multiples of size_divisibility, 4; the feature of the toy model has its size."""
    assert detector.stages(image_of(48, 50)).feature.shape == (3, 12, 13)
    prepared, size = detector._prepare(image_of(48, 50))
    assert (prepared.shape, size) == ((48, 52, 3), (48, 50))
    assert not prepared[:, 50:].any()


def test_an_image_that_does_not_fit_the_canvas_is_scaled_down_with_one_warning(detector, caplog):
    detector(image_of(96, 128))
    assert not caplog.messages
    for _ in range(2):
        found = detector(image_of(200, 50))
    (message,) = caplog.messages
    assert "image of 200 x 50: detectron2 resizes it to 64 x 16" in message
    assert "the canvas of 48 x 64: the file resizes it to 48 x 12" in message
    np.testing.assert_allclose(found.boxes[0], [0, 0, 50, 200], atol=1e-4)
    np.testing.assert_allclose(found.scores[0], 128 / 255, atol=1e-6)


def test_threshold_and_number_of_proposals(detector):
    image = image_of(96, 128)
    assert len(detector(image, score_threshold=0.2).scores) == 1
    assert len(detector(image, num_proposals=1).scores) == 1
    stages = detector.stages(image, num_proposals=3)
    assert stages.proposals.shape == stages.windows.shape == (3, 4)
    np.testing.assert_allclose(stages.proposals[1], [64, 0, 128, 48], atol=1e-4)
    assert stages.objectness.tolist() == [0, -1, -2]
    assert stages.feature.shape == (3, 12, 16)
    assert len(detector.stages(image_of(10, 64)).feature[0]) == 3  # cells of the image alone
    for name, value in (
        ("score_threshold", 0.05),
        ("score_threshold", 1.5),
        ("num_proposals", 0),
        ("num_proposals", 5),
    ):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
            detector(image, **{name: value})


def test_tiles_are_cut_from_the_image_and_their_detections_merged(detector):
    image = image_of(96, 128)
    image[:, 64:, 2] = 200
    tiles = tile_boxes((96, 128), 64, 16)
    found = [detector(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in tiles]
    expected = merge_detections(found, tiles, (96, 128))
    tiled = detector(image, tile=64, overlap=16)
    for one, other in zip(tiled, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(tiled.boxes[0], [0, 0, 128, 96])  # seen in all tiles
    np.testing.assert_allclose(tiled.scores[0], 200 / 255, atol=1e-6)
    by_default = detector(image, tile=80)
    np.testing.assert_array_equal(by_default.boxes, detector(image, tile=80, overlap=16).boxes)


def test_the_whole_image_is_detected_in_as_well(detector):
    image = image_of(96, 128, red=200)
    tiles = tile_boxes((96, 128), 64, 16)
    found = [detector(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in tiles]
    expected = merge_detections(
        [*found, detector(image)], np.vstack([tiles, [0, 0, 128, 96]]), (96, 128)
    )
    both = detector(image, tile=64, overlap=16, whole_image=True)
    for one, other in zip(both, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(both.boxes) > len(detector(image, tile=64, overlap=16).boxes)  # its first quarter
    with pytest.raises(ValueError, match="whole_image is True, but no tile is given"):
        detector(image, whole_image=True)


def test_a_tiff_file_is_read_in_parts(detector, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(32, 32), photometric="rgb")
    in_memory = detector(image[:, :, ::-1], tile=64, overlap=16)
    in_parts = detector(tmp_path / "a.tif", tile=64, overlap=16)
    for one, other in zip(in_parts, in_memory, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_image_of_one_tile_has_exactly_the_plain_detections(detector):
    image = image_of(50, 128)
    for one, other in zip(detector(image), detector(image, tile=128, overlap=0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_line_of_50000_pixels_and_wrong_tiles(detector):
    line = image_of(1, 50_000)
    found = detector(line, tile=6400, overlap=640)
    np.testing.assert_allclose(found.boxes[0], [0, 0, 50_000, 1], atol=1e-2)
    with pytest.raises(ValueError, match="tiles of 64 pixels overlap by 64; expected 0 to 63"):
        detector(line, tile=64, overlap=64)
    with pytest.raises(ValueError, match="overlap is 64, but no tile is given"):
        detector(line, overlap=64)


def test_eight_threads_find_what_one_does(detector):
    images = [image_of(40 + i, 64, red=8 * i + 40) for i in range(16)] * 4
    alone = [detector(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(detector, images))
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_an_image_may_be_a_path_and_is_turned_as_its_exif_data_says(detector, tmp_path):
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32, 0] = 255  # red on the left half
    exif = Image.Exif()
    exif[274] = 6  # shown after a quarter turn clockwise: red above
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.shape == (64, 48, 3)
    assert image[0, 0].tolist() == [0, 0, 255] and image[-1, 0].tolist() == [0, 0, 0]
    found = detector(tmp_path / "turned.png")
    np.testing.assert_array_equal(found.boxes, detector(image).boxes)
    np.testing.assert_allclose(found.boxes[0], [0, 0, 48, 64], atol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["gray", "alpha", "float", "empty"],
)
def test_an_array_that_is_no_image_is_refused(detector, image):
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(H, W, 3\), got"):
        detector(image)


def test_an_image_of_pillow_is_read_as_its_file(detector, tmp_path):
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32, 0], rgb[:8, :, 2] = 255, 255  # red on the left, blue above
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(rgb).save(tmp_path / "color.png", exif=exif)
    Image.fromarray(rgb).convert("P").save(tmp_path / "palette.png")
    sixteen_bits = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    Image.fromarray(sixteen_bits).save(tmp_path / "gray.png")
    for name in ("color.png", "palette.png", "gray.png"):
        expected = detector(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            found = detector(image)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    scores = detector(tmp_path / "gray.png").scores
    np.testing.assert_allclose(scores[0], 0.5, atol=0.01)  # the mean, not that of a white picture
    with pytest.raises(ValueError, match="image: cannot be used: it has signed or 32-bit integers"):
        detector(Image.fromarray(np.zeros((8, 8), np.int32)))


def test_an_unreadable_image_is_named(detector, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.png: no such image"):
        detector(tmp_path / "none.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(ValueError, match="broken.png: cannot be read as an image"):
        detector(tmp_path / "broken.png")


# Files


def test_a_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.onnx: no such model file"):
        Detector(tmp_path / "none.onnx")
    torch.save({"model": {}}, tmp_path / "model_final.pth")
    with pytest.raises(ValueError, match="model_final.pth: refused, as it is a checkpoint"):
        Detector(tmp_path / "model_final.pth")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photos/1.txt", "")
    with pytest.raises(ValueError, match="photos.zip: refused, as it holds '1.txt'"):
        Detector(tmp_path / "photos.zip")
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(
        ValueError, match="text.onnx: expected a model that tools/export_model.py wrote"
    ):
        Detector(tmp_path / "text.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 4}, "it has format version 4"),
        ({"format_version": 1}, "it has format version 1, .* export the model again"),
        ({"input_format": "YUV"}, "input_format is 'YUV'"),
        ({"more": 1}, "expected the metadata"),
        ({"canvas": [1]}, "cannot be read"),
        ({"canvas": [10**9, 64]}, "canvas is"),
        ({"canvas": [48, 66]}, "canvas is .48, 66., expected multiples of size_divisibility, 4"),
        ({"min_size": -1}, "min_size is -1, expected 0 or more"),
        ({"max_proposals": "4"}, "max_proposals is '4'"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"score_thresholds": [0.5]}, "score_thresholds is .* number from 0 to 1 for each class"),
        ({"heads": ["boxes"]}, "heads is .*, expected names of"),
    ],
)
def test_metadata_is_checked(change, message):
    values = {**json.loads(toy.INFO.to_json()), **change}
    with pytest.raises(ValueError, match=message) as caught:
        ModelInfo.from_json(json.dumps(values), "a.onnx")
    assert str(caught.value).startswith("a.onnx: ")


def test_metadata_survives_the_file(detector):
    assert detector.info == toy.INFO


def test_an_onnx_file_of_another_tool_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    copy = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "other", [value], [copy])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "o")
    with pytest.raises(ValueError, match="did not write: it has no metadata"):
        Detector(tmp_path / "o")


class _Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran code')",)


def _rewrite(path: Path, to: Path, member: str, change) -> Path:
    """A copy of an archive with one member changed, or added where it is not there."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(to, "w") as target:
        folder = source.namelist()[0].partition("/")[0]
        names = dict.fromkeys([*source.namelist(), f"{folder}/{member}"])
        for name in names:
            content = source.read(name) if name in source.namelist() else b""
            if name == f"{folder}/{member}":
                content = change(content)
            target.writestr(name, content)
    return to


def _graph(change):
    """A change of the graph's json from a change of its first node."""

    def apply(content: bytes) -> bytes:
        model = json.loads(content)
        change(model)
        return json.dumps(model).encode()

    return apply


def _set_target(name: str):
    return _graph(lambda m: m["graph_module"]["graph"]["nodes"][0].update(target=name))


@pytest.mark.parametrize(
    ("member", "change", "message"),
    [
        ("data/sample_inputs/model.pt", lambda _: pickle.dumps(_Bomb()), "unpickle"),
        ("data/constants/custom_obj_0", lambda _: pickle.dumps(_Bomb()), "custom_obj_0"),
        ("data/aotinductor/model/model.so", lambda _: b"\x7fELF", "model.so"),
        ("models/model.json", _set_target("torch.hub.load"), "torch.hub.load"),
        ("models/model.json", _set_target("torch.ops.aten.from_file.default"), "from_file"),
        ("models/model.json", _graph(lambda m: m.update(guards_code=["f()"])), "guards"),
        (
            "models/model.json",
            _graph(lambda m: m.update(x={"expr_str": "().__class__.__base__"})),
            "__class__",
        ),
        (
            "data/weights/model_weights_config.json",
            lambda c: json.dumps(
                {"config": {"w": {"use_pickle": True, "tensor_meta": None}}}
            ).encode(),
            "'w' as a pickle",
        ),
    ],
    ids=[
        "inputs", "object", "library", "function", "file", "guard", "shape", "weights",
    ],
)  # fmt: skip
def test_an_archive_that_could_run_code_is_refused(files, tmp_path, member, change, message):
    path = _rewrite(files["torch_export"], tmp_path / "changed.pt2", member, change)
    with pytest.raises(ValueError, match=f"changed.pt2: refused, as it .*{message}"):
        Detector(path)


def test_an_archive_that_was_only_copied_is_let_through(files, tmp_path):
    path = _rewrite(files["torch_export"], tmp_path / "copy.pt2", "byteorder", bytes)
    assert json.loads(check_archive(path.read_bytes(), path))["config"] == "toy.yaml"


# The command line, and what it needs


def test_command_line_prints_and_draws(file, tmp_path, capsys):
    Image.fromarray(image_of(96, 128)[:, :, ::-1]).save(tmp_path / "in.png")
    output = tmp_path / "new" / "out.png"
    assert main([str(file), str(tmp_path / "in.png"), "--output", str(output)]) == 0
    assert capsys.readouterr().out == "bright 0.502 0.0 0.0 128.0 96.0\n"
    drawn = np.asarray(Image.open(output))
    assert drawn.shape == (96, 128, 3)
    assert (drawn != image_of(96, 128)[:, :, ::-1]).any()
    assert main([str(file), str(tmp_path / "in.png"), "--threshold", "0.12"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    tiles = ["--threshold", "0.12", "--tile", "64", "--overlap", "16"]
    assert main([str(file), str(tmp_path / "in.png"), *tiles]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "bright 0.502 0.0 0.0 128.0 96.0" and len(lines) > 2  # quarters of tiles


def test_command_line_takes_a_folder(file, tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("b.JPG", "a.png"):
        Image.fromarray(image_of(96, 128)[:, :, ::-1]).save(folder / name)
    (folder / "notes.txt").touch()
    assert main([str(file), str(folder), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["a.png:", "bright"], ["b.JPG:", "bright"]]
    assert sorted(path.name for path in output.iterdir()) == ["a.png.png", "b.JPG.png"]
    (folder / "b.JPG").write_bytes(b"damaged")
    assert main([str(file), str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("a.png: bright") and out.count("\n") == err.count("\n") == 1
    assert "left out" in err and "b.JPG: cannot be read as an image" in err


def test_a_users_mistake_is_one_line_on_the_command_line(files, tmp_path, capsys):
    file, empty = files["torch_export"], tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bad.png").write_bytes(b"damaged")
    for arguments, message in (
        ([file, tmp_path / "none.png"], "none.png: no such image"),
        ([file, tmp_path / "bad.png"], "bad.png: cannot be read as an image"),
        ([file, empty], "empty: this folder has no image"),
        ([tmp_path / "none.onnx", "x"], "none.onnx: no such model file"),
        ([file, tmp_path / "bad.png", "--threshold", "2"], "bad.png"),
    ):
        assert run(main, [str(word) for word in arguments]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
        with pytest.raises((OSError, ValueError)):
            run(main, [*map(str, arguments), "--debug"])


FORKED = """
    import os, sys, torch
    import numpy as np
    from hypernet_d2.deploy import Detector
    torch.set_num_threads(2)
    path, image = sys.argv[1], np.zeros((48, 64, 3), np.uint8)
    detector = Detector(path)
    expected = detector(image)
    def detect(make, threads):
        child = os.fork()
        if not child:
            torch.set_num_threads(threads)
            try:
                found = make()(image)
                print("detects", (found.scores == expected.scores).all(), flush=True)
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    detect(lambda: detector, 2)
    detect(lambda: Detector(path), 2)
    detect(lambda: detector, 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_is_told_at_once_that_pytorch_would_hang(files):
    path = str(files["torch_export"])
    told = _run_alone(FORKED, "detectron2", arguments=[path]).splitlines()
    assert len(told) == 3
    for line in told[:2]:
        assert line.startswith(f"{path}: PyTorch with several threads hangs in a forked process")
        assert "spawn" in line and "torch.set_num_threads(1)" in line
    assert told[2] == "detects True"


def _run_alone(code: str, *hidden: str, arguments: Sequence[str] = ()) -> str:
    """Run code in a fresh Python in which the modules `hidden` cannot be imported."""
    hide = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in hidden)
    done = subprocess.run(
        [sys.executable, "-c", hide + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_onnx_needs_neither_torch_nor_opencv(files):
    pytest.importorskip("onnxruntime")
    if "onnx" not in files:
        pytest.skip("no onnxscript to write an ONNX file with")
    code = f"""
        import numpy as np
        from hypernet_d2.deploy import Detector
        found = Detector({str(files["onnx"])!r})(np.zeros((48, 64, 3), np.uint8))
        print(found.scores.tolist())
    """
    hidden = ("detectron2", "torch", "torchvision", "cv2", "matplotlib", "onnx", "fvcore")
    (score,) = json.loads(_run_alone(code, *hidden))
    assert score == pytest.approx(0.15)


def test_what_runs_the_file_is_named_where_it_is_missing(files, tmp_path):
    (tmp_path / "any.onnx").write_text("")
    for path, hidden in ((tmp_path / "any.onnx", "onnxruntime"), (files["torch_export"], "torch")):
        code = f"""
            from hypernet_d2.deploy import Detector
            try:
                Detector({str(path)!r})
            except ImportError as error:
                print(error)
        """
        told = _run_alone(code, "detectron2", hidden)
        assert str(path) in told and f"pip install {hidden}" in told
