"""hypernet-d2 web: uploaded pictures, and the page in a browser where there is one."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypernet_d2.cli import web
from hypernet_d2.cli.web import upload
from hypernet_d2.cli.web.models import ExportedModel
from tests.deploy import toy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ExportedModel:
    return ExportedModel(toy.write_torch(tmp_path_factory.mktemp("models") / "toy.pt2"))


@pytest.fixture
def image() -> np.ndarray:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :, 0] = 200
    return rgb


@pytest.fixture
def picture(image, tmp_path) -> str:
    Image.fromarray(image).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_pictures_and_counts_follow_the_threshold(model, image, picture):
    text, *views = upload.run_model(model, picture, 0.1, 0, 0)
    assert text.startswith("**Detections: 2**") and "64 x 48 pixels" in text
    large, factor = upload.scale(image)
    assert factor == 720 / 64 and [view.shape for view in views[:3]] == [large.shape] * 3
    assert all((view != large).any() for view in views[:3])
    text, detections, *_ = upload.run_model(model, picture, 0.5, 0, 0)
    assert text.startswith("**Detections: 1**")
    assert (detections != views[0]).any()


def test_tiles_are_those_of_the_page(model, picture):
    text, detections, *stages = upload.run_model(model, picture, 0.1, 32, 0)
    assert text.startswith("**Detections: 6**") and detections is not None  # without tiles: 2
    assert stages == [None] * len(upload.STAGES)  # those of which tile?
    text, *views = upload.run_model(model, picture, 0.5, 32, 32)
    assert text == "tiles of 32 pixels overlap by 32; expected 0 to 31 pixels"
    assert views == [None] * 4


def test_without_a_picture_there_are_no_views(model):
    assert upload.run_model(model, None, 0.5, 0, 0) == (upload.NO_PICTURE, *[None] * 4)


def test_a_damaged_picture_shows_its_message(model, picture):
    Path(picture).write_bytes(Path(picture).read_bytes()[:60])
    text, *views = upload.run_model(model, picture, 0.5, 0, 0)
    assert text.startswith("red.png: cannot be read as an image: ")
    assert views == [None] * 4


def test_a_picture_of_16_bits_is_not_white(model, tmp_path):
    values = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    Image.fromarray(values).save(tmp_path / "gray.png")
    _, detections, *_ = upload.run_model(model, str(tmp_path / "gray.png"), 1.0, 0, 0)
    assert abs(int(np.median(detections)) - 128) < 10


def test_every_channel_is_shown_with_its_own_maximum():
    feature = np.zeros((7, 4, 6), np.float32)  # tiles of 6 x 8 with their frames
    feature[6, 1, 2], feature[0] = 0.001, -5
    tiles = upload.tile_channels(feature)
    assert tiles.dtype == np.uint8 and tiles.shape[2] == 3
    times = tiles.shape[1] // (2 * 8)
    assert tiles.shape[:2] == (4 * 6 * times, 2 * 8 * times) and tiles.shape[1] >= 720
    (y, *_), (x, *_) = (np.unique(axis) for axis in np.nonzero(tiles[:, :, 0] == 255))
    assert (y, x) == ((3 * 6 + 1 + 1) * times, (1 + 2) * times)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model a --model b --model c", "at most two models, got 3"),
        ("--port 70000", "--port 70000: expected 1 to 65535"),
        ("--num-images 0", "--num-images 0: expected 1 or more"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, words, message):
    with pytest.raises(SystemExit):
        web.parse_args(words.split())
    assert message in capsys.readouterr().err


def test_the_default_is_the_digits_model():
    assert web.parse_args([]).model == [web.DIGITS_MODEL]


def test_a_port_that_is_taken_is_one_line_before_any_model_is_loaded(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: Address already in use"):
            web.main(["--model", str(tmp_path / "missing.onnx"), "--port", str(port)])


def test_a_folder_that_is_no_training_is_named(tmp_path):
    args = web.parse_args(["--model", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="no config.yaml; expected OUTPUT_DIR"):
        web.load_models(args)


def test_the_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # restores what main sets
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'hypernet-d2\[web\]'"):
        web.main(["--port", str(free_port())])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_drop_a_picture_and_move_the_sliders(serve, model, picture, tmp_path):
    from playwright.sync_api import expect

    from hypernet_d2.cli.web.page import build_page

    page = serve(build_page([model, model], {}))
    counts = [page.locator(f"#count-{index}") for index in (0, 1)]
    expect(counts[0]).to_contain_text("Drop a picture")
    drop(page, Path(picture))
    for count in counts:
        expect(count).to_contain_text("Detections: 1")
    slide(page, "upload-threshold", "0.1")
    for count in counts:
        expect(count).to_contain_text("Detections: 2")
    page.locator("#tile input").fill("32")
    for count in counts:
        expect(count).to_contain_text("Detections: 6")
    page.locator("#tile input").fill("0")
    for tab in upload.STAGES:
        page.get_by_role("tab", name=tab).first.click()
        expect(page.get_by_role("tabpanel").locator("img:visible").first).to_be_visible()
    page.screenshot(path=os.environ.get("HYPERNET_D2_SCREENSHOT") or tmp_path / "page.png")
    assert page.elsewhere == []


def test_no_other_file_is_served(serve, model, tmp_path, monkeypatch):
    from hypernet_d2.cli.web.page import build_page

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "secret.txt").write_text("secret")
    monkeypatch.chdir(folder)
    page = serve(build_page([model], {}))
    for path in (
        "secret.txt",
        folder / "secret.txt",
        "/etc/passwd",
        "../served/../folder/secret.txt",
    ):
        for prefix in ("file=", "gradio_api/file=", "static/../"):
            assert page.request.get(f"{page.address}{prefix}{path}").status in (403, 404)


def drop(page, path: Path) -> None:
    """Drop a file on the picture's place, as a mouse does."""
    content = list(path.read_bytes())
    transfer = page.evaluate_handle(
        """([content, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], name, {type: "image/png"}));
            return transfer;
        }""",
        [content, path.name],
    )
    target = page.locator("#picture button, #picture [role=button]").first
    target.dispatch_event("drop", {"dataTransfer": transfer})


def slide(page, name: str, value: str) -> None:
    page.locator(f"#{name} input[type=range]").fill(value)
