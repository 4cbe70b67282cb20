"""What is chosen for figures of a data set; no data, no model."""

import numpy as np
import pytest

from hypernet_d2.data.choices import (
    DataFigures,
    Speed,
    choose_flip,
    choose_input_size,
    choose_limits,
    choose_schedule,
    choose_tiles,
    choose_training,
)


def figures(size=(480, 640), sides=(40.0,), images=400, most=10) -> DataFigures:
    """``images`` images of one size, each with an object of each side."""
    return DataFigures(
        num_train=images,
        sizes=np.array([size] * images),
        sides=np.tile(np.array(sides, float), images),
        owners=np.repeat(np.arange(images), len(sides)),
        most_objects=most,
        classes=("cat",),
    )


@pytest.mark.parametrize(
    ("size", "side", "device", "expected", "reason"),
    [
        ((480, 640), 100, "cpu", 240, "have 50 pixels"),  # the least for large objects
        ((480, 640), 28, "cpu", 272, "have 16 pixels"),
        ((480, 640), 10, "cpu", 320, "16 would need 768, but the limit on CPU is 320"),
        ((480, 640), 10, "cuda", 768, "have 16 pixels"),
        ((64, 80), 20, "cpu", 64, "have 20 pixels"),  # small images are not enlarged
        ((64, 80), 4, "cpu", 128, "but twice the size of the images is 128"),
    ],
)
def test_the_input_size_makes_small_objects_large_enough(size, side, device, expected, reason):
    choice = choose_input_size(figures(size, [side, *[side * 3] * 8]), device)
    assert choice.values["INPUT.MIN_SIZE_TEST"] == expected
    assert choice.values["INPUT.MIN_SIZE_TRAIN"] == (expected,)
    # The long side has the images' aspect ratio.
    assert choice.values["INPUT.MAX_SIZE_TEST"] >= expected * size[1] / size[0]
    assert choice.values["INPUT.MAX_SIZE_TEST"] < expected * size[1] / size[0] + 32
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("most", "expected"), [(3, (100, 100)), (56, (200, 150)), (92, (300, 200))]
)
def test_limits_grow_with_the_objects_in_an_image(most, expected):
    values = choose_limits(figures(most=most), 200).values
    assert (values["MODEL.RPN.POST_NMS_TOPK_TEST"], values["TEST.DETECTIONS_PER_IMAGE"]) == expected
    assert values["MODEL.RPN.POST_NMS_TOPK_TRAIN"] == max(200, expected[0])


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["cat", "bright", "arrowhead"], "horizontal"),
        (["cat", "turn_left"], "none"),
        (["Right hand"], "none"),
        (["7", "8"], "none"),
    ],
)
def test_classes_with_sides_are_not_flipped(classes, expected):
    assert choose_flip(classes).values["INPUT.RANDOM_FLIP"] == expected


@pytest.mark.parametrize("speed", [Speed(0.5, 0.05), Speed(2.0, 0.3), Speed(12.0, 1.5)])
@pytest.mark.parametrize("images", [20, 450, 5000])
def test_training_on_a_cpu_ends_within_15_minutes(speed, images):
    num_val, num_test = images // 5, images // 10
    values = choose_schedule(figures(images=images), "cpu", 4, speed, (num_val, num_test)).values
    iterations, period = values["SOLVER.MAX_ITER"], values["TEST.EVAL_PERIOD"]
    evaluations = -(-iterations // period)
    seconds = iterations * speed.iteration
    evaluated = (evaluations + 1) * num_val * speed.image + num_test * speed.image
    assert seconds + evaluated <= 900 or evaluated > 450  # evaluation alone takes that long
    assert iterations >= 20 and 1 <= evaluations <= 10
    assert all(0 < step < iterations for step in values["SOLVER.STEPS"])
    assert values["SOLVER.WARMUP_ITERS"] <= iterations / 10


def test_the_schedule_on_a_gpu_and_with_given_iterations():
    speed = Speed(0.1, 0.01)
    long = choose_schedule(figures(), "cuda", 8, speed, (100, 0))
    assert long.values["SOLVER.MAX_ITER"] == 60 * 400 / 8
    given = choose_schedule(figures(), "cpu", 4, speed, (100, 0), iterations=7)
    assert given.values["SOLVER.MAX_ITER"] == 7 and given.values["SOLVER.STEPS"] == (4, 6)
    assert "as given" in given.reason


def test_tiles_are_for_tiny_objects_in_large_images():
    assert choose_tiles(figures((2560, 2560), [200]), "cpu") is None
    assert choose_tiles(figures((600, 800), [8]), "cpu") is None
    values = choose_tiles(figures((2560, 2560), [40, 100]), "cpu").values
    side, overlap = (values[f"MODEL.HYPERNET.TILES.{key}"] for key in ("SIZE", "OVERLAP"))
    assert values["MODEL.HYPERNET.TILES.TRAIN_SIZE"] == side == 768  # 320 * 40 / 16, rounded
    assert 80 <= overlap <= side / 2
    assert choose_tiles(figures((2560, 2560), [40, 100]), "cuda") is None


def test_images_that_are_seen_often_are_varied():
    names = [choice.name for choice in choose_training(3)]
    assert "augmentation" not in names and "checkpoint" in names
    assert "augmentation" in [choice.name for choice in choose_training(30)]
