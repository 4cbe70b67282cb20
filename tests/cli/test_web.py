"""demo/web.py: its pictures, and the page in a browser where there is one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypernet_d2.deploy import Detector
from tests.deploy import toy

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def web():
    from hypernet_d2.cli import web

    return web


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return toy.write_torch(tmp_path_factory.mktemp("models") / "toy.pt2")


@pytest.fixture(scope="module")
def detector(model) -> Detector:
    return Detector(model)


@pytest.fixture
def image() -> np.ndarray:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :, 0] = 200
    return rgb


@pytest.fixture
def picture(image, tmp_path) -> str:
    Image.fromarray(image).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_views_and_counts_follow_the_sliders(web, detector, image, picture):
    text, *views = web.run_model(detector, picture, 0.1, 4)
    assert text.startswith("**Detections: 2**, proposals: 4, ")
    assert len(views) == len(web.VIEWS)
    large, factor = web.enlarge(image)
    assert factor == 720 / 64 and [view.shape for view in views[:3]] == [large.shape] * 3
    assert all((view != large).any() for view in views[:3])
    text, detections, *_ = web.run_model(detector, picture, 0.5, 2)
    assert text.startswith("**Detections: 1**, proposals: 2, ")
    assert (detections != views[0]).any()


def test_without_a_picture_there_are_no_views(web, detector):
    assert web.run_model(detector, None, 0.5, 4) == (web.NO_PICTURE, None, None, None, None)


def test_a_damaged_picture_shows_its_message(web, detector, picture):
    Path(picture).write_bytes(Path(picture).read_bytes()[:60])
    text, *views = web.run_model(detector, picture, 0.5, 4)
    assert text.startswith("red.png: cannot be read as an image: ")
    assert views == [None] * len(web.VIEWS)


def test_a_picture_of_16_bits_is_not_white(web, detector, tmp_path):
    values = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    Image.fromarray(values).save(tmp_path / "gray.png")
    _, detections, *_ = web.run_model(detector, str(tmp_path / "gray.png"), 1.0, 4)
    assert abs(int(np.median(detections)) - 128) < 10


def test_every_channel_is_shown_with_its_own_maximum(web):
    feature = np.zeros((7, 4, 6), np.float32)  # tiles of 6 x 8 with their frames
    feature[6, 1, 2], feature[0] = 0.001, -5
    tiles = web.tile_channels(feature)
    assert tiles.dtype == np.uint8 and tiles.shape[2] == 3
    times = tiles.shape[1] // (2 * 8)
    assert tiles.shape[:2] == (4 * 6 * times, 2 * 8 * times) and tiles.shape[1] >= 720
    (y, *_), (x, *_) = (np.unique(axis) for axis in np.nonzero(tiles[:, :, 0] == 255))
    assert (y, x) == ((3 * 6 + 1 + 1) * times, (1 + 2) * times)


def test_more_than_two_models_are_refused(web, capsys):
    assert web.parse_args([]).model == [str(web.DIGITS_MODEL)]
    with pytest.raises(SystemExit):
        web.parse_args(["--model", "a", "--model", "b", "--model", "c"])
    assert "at most two, got 3" in capsys.readouterr().err


@pytest.fixture
def page(web, model, monkeypatch):
    """The page with two models, in a browser that records the addresses it asks for."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    pytest.importorskip("gradio")
    sync_api = pytest.importorskip("playwright.sync_api")
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    blocks = web.build_page([("first", Detector(model)), ("second", Detector(model))])
    _, url, _ = web.launch(blocks, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.elsewhere = []
            page.on(
                "request",
                lambda request: (
                    request.url.startswith((url, "data:", "blob:"))
                    or page.elsewhere.append(request.url)
                ),
            )
            page.goto(url)
            yield page
            browser.close()
    finally:
        blocks.close()


def test_drop_a_picture_and_move_the_sliders(page, picture, tmp_path):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)  # a busy machine takes its time over the first load
    counts = [page.locator(f"#count-{index}") for index in (0, 1)]
    expect(counts[0]).to_contain_text("Drop a picture")
    drop(page, Path(picture))
    for count in counts:
        expect(count).to_contain_text("Detections: 1, proposals: 4")
    slide(page, "threshold", "0.1")
    for count in counts:
        expect(count).to_contain_text("Detections: 2, proposals: 4")
    slide(page, "proposals", "1")
    for count in counts:
        expect(count).to_contain_text("Detections: 1, proposals: 1")
    for tab in ("Proposals", "Windows", "Hyper feature"):
        page.get_by_role("tab", name=tab).first.click()
        expect(page.get_by_role("tabpanel").locator("img:visible").first).to_be_visible()
    page.screenshot(path=os.environ.get("HYPERNET_D2_SCREENSHOT") or tmp_path / "page.png")
    assert page.elsewhere == []


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
