"""demo/demo.py, on a tiny model with random weights."""

from __future__ import annotations

import importlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.helpers import logged_by, tiny_cfg

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo() -> dict:
    return vars(importlib.import_module("hypernet_d2.cli.detect"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    """The words that name a model's config and weights on the command line."""
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", 96)
    folder = tmp_path_factory.mktemp("model")
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return ["--config-file", str(folder / "config.yaml"), "--threshold", "0"]


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """What is logged as an error, as it comes."""
    with logged_by("hypernet_d2.demo", logging.ERROR) as messages:
        yield messages


def write_image(path: Path, size: tuple[int, int] = (60, 80)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    return str(path)


def write_video(path: Path, frames: int = 4) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (80, 60))
    assert writer.isOpened()
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    writer.release()
    return str(path)


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_pictures_names_json_and_a_broken_file(demo, model, tmp_path, errors):
    from pycocotools.coco import COCO

    first, second = write_image(tmp_path / "a/x.jpg"), write_image(tmp_path / "b/x.jpg")
    third = write_image(tmp_path / "b/y.bmp")
    broken = tmp_path / "b/broken.jpg"
    broken.write_bytes(Path(first).read_bytes()[:300])
    out, file = tmp_path / "out", tmp_path / "found.json"
    words = ["--input", str(tmp_path / "a"), str(tmp_path / "b/*"), "--output", str(out)]
    assert demo["main"]([*model, *words, "--json", str(file)]) == 1
    assert errors[0].startswith(f"{broken}: cannot be read as an image")

    assert {path.name for path in out.iterdir()} == {"x.jpg", "x_2.jpg", "y.png"}
    assert all(cv2.imread(str(path)).shape == (60, 80, 3) for path in out.iterdir())
    coco = COCO(str(file))
    assert [image["file_name"] for image in coco.dataset["images"]] == [first, second, third]
    assert [c["name"] for c in coco.dataset["categories"]] == ["RBC", "WBC", "Platelets"]
    found = Counter(a["image_id"] for a in coco.dataset["annotations"])
    assert set(found) == {1, 2, 3}
    assert len(coco.loadRes(coco.dataset["annotations"]).anns) == sum(found.values())


def test_detections_in_json_are_the_predictors(demo, model, tmp_path):
    image, file = write_image(tmp_path / "x.png"), tmp_path / "found.json"
    args = [*model, "--input", image, "--output", str(tmp_path / "out"), "--json", str(file)]
    assert demo["main"](args) == 0
    predictor, _ = demo["build_viewer"](demo["parse_args"](args))
    expected = predictor(cv2.imread(image))["instances"]
    found = json.loads(file.read_text())["annotations"]
    assert len(found) == len(expected) > 0
    for one, box, score in zip(found, expected.pred_boxes, expected.scores, strict=True):
        x, y, w, h = one["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(box.tolist(), abs=1e-3)
        assert one["score"] == pytest.approx(float(score))


def test_a_picture_is_detected_in_by_tiles(demo, model, tmp_path):
    words = ["--input", write_image(tmp_path / "x.png"), "--output", str(tmp_path / "out")]
    found = []
    for tiles in ([], ["--tile", "80"], ["--tile", "50"]):
        file = tmp_path / "found.json"
        assert demo["main"]([*model, *words, "--json", str(file), *tiles]) == 0
        found.append(json.loads(file.read_text())["annotations"])
    assert len(found[0]) > 0
    assert found[1] == found[0]  # one tile
    assert found[2] != found[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", (64, 8)),
        ("--tile 50", (50, 10)),
        ("--tile 50 --tile-overlap 20", (50, 20)),
        ("--show features", (0, 8)),
    ],
)
def test_tiles_are_those_of_the_command_line_or_the_config(demo, model, tmp_path, words, expected):
    image = ["--input", write_image(tmp_path / "x.png"), "--output", str(tmp_path / "out")]
    opts = "--opts MODEL.HYPERNET.TILES.SIZE 64 MODEL.HYPERNET.TILES.OVERLAP 8"
    args = demo["parse_args"]([*model, *image, *words.split(), *opts.split()])
    tiles = demo["demo_cfg"](args, args.config_file).MODEL.HYPERNET.TILES
    assert (tiles.SIZE, tiles.OVERLAP) == expected


def test_a_narrow_image_is_detected_in_by_tiles_only(demo, model, tmp_path, errors):
    words = ["--input", write_image(tmp_path / "line.png", (1, 900))]
    words += ["--output", str(tmp_path / "out")]
    assert demo["main"]([*model, *words]) == 1
    assert "line.png: 900 x 1 pixels (width x height) cannot be resized" in errors[0]
    assert demo["main"]([*model, *words, "--tile", "300"]) == 0
    assert cv2.imread(str(tmp_path / "out" / "line.png")).shape == (1, 900, 3)


def test_video_is_written_frame_by_frame(demo, model, tmp_path):
    video, file = write_video(tmp_path / "clip.avi"), tmp_path / "found.json"
    words = ["--input", video, "--output", str(tmp_path / "out"), "--json", str(file)]
    assert demo["main"]([*model, *words]) == 0
    frames = frames_of(tmp_path / "out" / "clip.mp4")
    assert [frame.shape for frame in frames] == [(60, 80, 3)] * 4
    images = json.loads(file.read_text())["images"]
    assert [(image["file_name"], image["frame"]) for image in images] == [
        (video, i) for i in range(4)
    ]


@pytest.mark.trackers
def test_a_video_is_tracked_in_tiles(demo, model, tmp_path):
    video, file = write_video(tmp_path / "clip.avi"), tmp_path / "found.json"
    words = ["--input", video, "--output", str(tmp_path / "out"), "--json", str(file)]
    assert demo["main"]([*model, *words, "--track", "--tile", "50"]) == 0
    content = json.loads(file.read_text())
    assert len(content["images"]) == len(frames_of(tmp_path / "out" / "clip.mp4")) == 4
    ids = [(one["image_id"], one["track_id"]) for one in content["annotations"]]
    assert {id for frame, id in ids if frame == 1} == {None}  # to be confirmed
    assert all(id is None or id >= 1 for _, id in ids)


def test_a_video_that_ends_early_or_is_none_is_an_error(demo, model, tmp_path, errors):
    cut, none = tmp_path / "cut.avi", tmp_path / "none.mp4"
    write_video(cut, 8)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    none.write_text("no video")
    words = ["--input", str(cut), str(none), "--output", str(tmp_path / "out")]
    assert demo["main"]([*model, *words]) == 1
    assert errors[0].startswith(f"{cut}: ends at frame")
    assert errors[1:] == [f"{none}: cannot be read as a video", "2 of 2 could not be read"]
    assert 0 < len(frames_of(tmp_path / "out" / "cut.mp4")) < 8


def test_a_codec_that_opencv_lacks_is_named(demo, model, tmp_path, monkeypatch):
    video = write_video(tmp_path / "clip.avi")
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False, raising=True)
    with pytest.raises(ValueError, match="cannot write the codec 'mp4v'.*--codec"):
        demo["main"]([*model, "--input", video, "--output", str(tmp_path / "out")])


def test_webcam_is_recorded(demo, model, tmp_path, monkeypatch):
    video, open_source = write_video(tmp_path / "clip.avi", 3), cv2.VideoCapture
    asked = []
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda source: asked.append(source) or open_source(video)
    )
    assert demo["main"]([*model, "--webcam", "--output", str(tmp_path / "out")]) == 0
    monkeypatch.undo()
    assert asked == [0]
    assert len(frames_of(tmp_path / "out" / "webcam.mp4")) >= 3  # more where detection is slow


def test_proposals_are_the_best_in_pixels_of_the_image(demo, model, tmp_path, monkeypatch):
    from hypernet_d2.cli import views

    image = write_image(tmp_path / "x.png", (120, 160))
    words = ["--input", image, "--output", str(tmp_path / "out"), "--show", "proposals"]
    args = demo["parse_args"]([*model, *words, "--num-proposals", "3"])
    predictor, viewer = demo["build_viewer"](args)
    drawn = []
    draw = views.BoxVisualizer.draw_proposals
    monkeypatch.setattr(
        views.BoxVisualizer,
        "draw_proposals",
        lambda self, boxes, *rest: drawn.append((boxes, *rest)) or draw(self, boxes, *rest),
    )
    view = viewer(cv2.imread(image))
    ((boxes, scores, limits),) = drawn
    assert boxes.shape == (3, 4) and view.caption == "3 proposals"
    assert limits == (scores.min(), scores.max()) and (np.diff(scores) <= 0).all()
    assert boxes[:, 2].max() <= 160 and boxes.max() > 96  # the network sees 96 x 128 pixels
    with views.output_of(predictor.model.proposal_generator) as seen:
        predictor(cv2.imread(image))
    (proposals,), _ = seen["output"]
    assert proposals.image_size == (96, 128)
    np.testing.assert_allclose(boxes, proposals.proposal_boxes.tensor[:3] * 160 / 128, atol=1e-3)
    assert view.picture.shape == (120 + views.STRIP, 160, 3)


def test_features_cover_the_image_without_its_padding(demo, model, tmp_path, monkeypatch):
    from hypernet_d2.cli import views

    def columns(features, size, content_size):
        """Red from left to right over the padded image, for any maps."""
        assert list(features) == ["hyper"]
        picture = torch.zeros(*size, 3, dtype=torch.uint8)
        picture[..., 0] = torch.arange(size[1]).clamp(max=255)
        return picture[: content_size[0], : content_size[1]]

    monkeypatch.setattr(views, "hypercolumn_picture", columns)
    image = write_image(tmp_path / "x.png", (60, 85))  # resized to 96 x 136, padded to 96 x 144
    words = ["--input", image, "--output", str(tmp_path / "out"), "--show", "features"]
    _, viewer = demo["build_viewer"](demo["parse_args"]([*model, *words]))
    picture = viewer(cv2.imread(image)).picture
    assert picture.shape == (60, 85, 3)
    assert picture[0, -1, 0] == pytest.approx(135, abs=2)


def test_features_of_an_image_that_is_not_resized(demo, model, tmp_path):
    image = write_image(tmp_path / "x.png", (60, 85))
    words = ["--input", image, "--output", str(tmp_path / "out"), "--show", "features"]
    assert demo["main"]([*model, *words, "--opts", "INPUT.MIN_SIZE_TEST", "0"]) == 0
    assert cv2.imread(str(tmp_path / "out" / "x.png")).shape == (60, 85, 3)


def test_two_models_side_by_side(demo, model, tmp_path):
    from hypernet_d2.cli import views

    image, config = write_image(tmp_path / "x.png", (120, 160)), Path(model[1])
    words = ["--input", image, "--output", str(tmp_path / "out")]
    compare = ["--compare", str(config), str(config.parent / "model.pth")]
    data = tmp_path / "data.py"  # it must run once, as a name cannot be registered twice
    data.write_text(
        "from detectron2.data import DatasetCatalog\n"
        "DatasetCatalog.register('test_two_models', list)\n"
    )
    assert demo["main"]([*model, *words, *compare, "--data", str(data)]) == 0
    picture = cv2.imread(str(tmp_path / "out" / "x.png"))
    assert picture.shape == (120 + views.STRIP, 2 * 160 + views.PAD, 3)
    np.testing.assert_array_equal(picture[:, :160], picture[:, -160:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "nowhere.jpg"], "nowhere.jpg: no such file"),
        (["--input", "{empty}"], "holds no image or video"),
        (["--input", "{image}", "--threshold", "2"], "expected a number from 0 to 1"),
        (["--input", "{image}", "--num-proposals", "0"], "expected 1 or more"),
        (["--input", "{image}", "--json", "x", "--show", "features"], "leave out --show"),
        (["--input", "{image}", "--webcam"], "not allowed with"),
        (["--input", "{image}", "--tile", "0"], "--tile 0: expected 1 or more"),
        (["--input", "{image}", "--tile-overlap", "9"], "--tile-overlap needs --tile"),
        (["--input", "{image}", "--tile", "9", "--show", "features"], "leave out --show features"),
    ],
)
def test_wrong_words_are_named(demo, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    known = {"empty": tmp_path / "empty", "image": write_image(tmp_path / "x.png")}
    with pytest.raises(SystemExit):
        demo["parse_args"](
            ["--config-file", "c", "--output", "out", *(word.format(**known) for word in words)]
        )
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "error"), [("", ValueError), ("nowhere.pth", FileNotFoundError)]
)
def test_missing_weights_are_named(demo, model, tmp_path, weights, error):
    words = ["--input", write_image(tmp_path / "x.png"), "--output", str(tmp_path / "out")]
    with pytest.raises(error, match="MODEL.WEIGHTS"):
        demo["main"]([*model, *words, "--opts", "MODEL.WEIGHTS", weights])


def test_an_input_in_the_output_folder_is_not_overwritten(demo, model, tmp_path):
    image = Path(write_image(tmp_path / "x.png"))
    before = image.read_bytes()
    assert demo["main"]([*model, "--input", str(image), "--output", str(tmp_path)]) == 0
    assert image.read_bytes() == before
    assert (tmp_path / "x_2.png").is_file()
