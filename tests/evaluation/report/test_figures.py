"""Matching, average precision, F1, confusion and errors by kind, on hand-made cases."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from tests.evaluation.report.cases import make_set

pytestmark = pytest.mark.detectron2

# IoU with [0, 0, 20, 20]: 1, 1/3, 0.05
BOX, SHIFTED, FAR = [0, 0, 20, 20], [10, 0, 20, 20], [19, 0, 21, 20]


def kinds(data):
    from hypernet_d2.evaluation.report.errors import KINDS, find_errors
    from hypernet_d2.evaluation.report.matching import match

    errors = find_errors(data, match(data))
    return {kind: errors.count(kind) for kind in KINDS if errors.count(kind)}, errors


def random_set(seed: int, images: int = 12):
    """Objects and detections with every kind of error, and crowds."""
    rng = np.random.default_rng(seed)
    names = ("owl", "dog", "cat")
    objects, detections = {}, {}
    for image in range(images):
        objects[image], detections[image] = [], []
        for _ in range(rng.integers(0, 9)):
            name = str(rng.choice(names))
            box = [*rng.uniform(0, 130, 2), *rng.uniform(8, 70, 2)]
            objects[image].append((name, box, {"iscrowd": int(rng.random() < 0.1)}))
            for _ in range(rng.integers(0, 4)):
                noisy = np.array(box) + rng.normal(0, 6, 4)
                noisy[2:] = np.maximum(noisy[2:], 2)
                found = name if rng.random() < 0.8 else str(rng.choice(names))
                score = round(float(rng.random()), 2)  # with equal scores
                detections[image].append((found, noisy.tolist(), score))
    return make_set(objects, detections, names, images)


class TestAgainstPycocotools:
    @pytest.mark.parametrize("seed", range(4))
    def test_average_precision_of_each_class(self, seed):
        from pycocotools.cocoeval import COCOeval

        from hypernet_d2.evaluation.report.analysis import analyze
        from hypernet_d2.evaluation.report.matching import average_precision

        data = random_set(seed)
        analysis = analyze(data)
        evaluation = COCOeval(data.truth, data.detected, "bbox")
        low, high = analysis.sizes["1of3"]
        evaluation.params.areaRng = [[0, 1e10], [low, high]]
        evaluation.params.areaRngLbl = ["all", "1of3"]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        for label in range(3):
            own = data.of_class(label, analysis.matches.ignored)
            right = analysis.matches.matched[own] >= 0
            ap50 = average_precision(data.scores[own], right, data.count_objects(label))
            assert ap50 == pytest.approx(precision[0, :, label, 0, -1].mean())
            curve = analysis.curves[label]
            assert curve.recall[-1] == pytest.approx(recall[0, label, 0, -1])
            result = analysis.results["all"].of_class(label)
            assert result.ap == pytest.approx(100 * precision[:, :, label, 0, -1].mean())
        small = precision[:, :, :, 1, -1]
        assert analysis.results["1of3"].ap == pytest.approx(100 * small[small > -1].mean())
        every = precision[0, :, :, 0, -1]
        assert analysis.ap50 == pytest.approx(100 * every[every > -1].mean())

    def test_the_limit_of_detections(self):
        boxes = [[20 * i, 0, 10, 10] for i in range(5)]
        objects = [("owl", box) for box in boxes]
        detections = [("owl", box, 0.9 - 0.1 * i) for i, box in enumerate(boxes)]
        from hypernet_d2.evaluation.report.analysis import analyze

        analysis = analyze(make_set(objects, detections, max_detections=3))
        assert len(analysis.data.scores) == 3
        assert analysis.results["all"].ar == pytest.approx(60)
        assert analysis.curves[0].recall[-1] == pytest.approx(0.6)


class TestKinds:
    def test_a_perfect_detection_is_no_error(self):
        assert kinds(make_set([("owl", BOX)], [("owl", BOX, 0.9)]))[0] == {}

    def test_classification(self):
        found, errors = kinds(make_set([("owl", BOX)], [("dog", BOX, 0.9)]))
        assert found == {"classification": 1}  # and the object is not missed
        assert errors.about.tolist() == [0]

    def test_localization(self):
        found, _ = kinds(make_set([("owl", BOX)], [("owl", SHIFTED, 0.9)]))
        assert found == {"localization": 1}

    def test_both(self):
        found, _ = kinds(make_set([("owl", BOX)], [("dog", SHIFTED, 0.9)]))
        assert found == {"both": 1, "missed": 1}

    def test_duplicate(self):
        data = make_set([("owl", BOX)], [("owl", BOX, 0.6), ("owl", [1, 0, 20, 20], 0.9)])
        found, errors = kinds(data)
        assert found == {"duplicate": 1}
        assert errors.kinds.tolist() == ["", "duplicate"]  # the one with the lower score

    def test_background(self):
        found, _ = kinds(make_set([("owl", BOX)], [("owl", BOX, 0.9), ("owl", FAR, 0.8)]))
        assert found == {"background": 1}

    def test_background_in_an_image_without_objects(self):
        data = make_set({0: [("owl", BOX)]}, {0: [("owl", BOX, 1)], 1: [("owl", BOX, 1)]}, images=2)
        assert kinds(data)[0] == {"background": 1}

    def test_missed(self):
        found, errors = kinds(make_set([("owl", BOX), ("dog", [100, 100, 9, 9])],
                                       [("owl", BOX, 0.9)]))  # fmt: skip
        assert found == {"missed": 1}
        assert errors.missed.tolist() == [False, True]

    def test_a_detection_on_a_crowd_is_no_error(self):
        crowd = ("owl", [0, 0, 100, 100], {"iscrowd": 1})
        assert (
            kinds(make_set([crowd, ("dog", BOX)], [("owl", BOX, 0.9), ("dog", BOX, 0.9)]))[0] == {}
        )


class TestLostPrecision:
    def lost(self, objects, detections):
        from hypernet_d2.evaluation.report.errors import lost_precision
        from hypernet_d2.evaluation.report.matching import match

        data = make_set(objects, detections)
        ap50, lost = lost_precision(data, match(data))
        return ap50, {kind: round(value, 1) for kind, value in lost.items() if round(value, 1)}

    def test_each_kind_alone(self):
        other = [100, 100, 20, 20]
        for wrong, kind in ((("owl", SHIFTED, 0.8), "localization"),
                            (("dog", BOX, 0.8), "classification")):  # fmt: skip
            objects = [("owl", BOX), ("owl", other)]
            ap50, lost = self.lost(objects, [wrong, ("owl", other, 0.9)])
            # One of two objects: the precision is 1 up to recall 0.5, 51 of 101 points.
            assert ap50 == pytest.approx(100 * 51 / 101)
            assert lost == {kind: pytest.approx(100 * 50 / 101, abs=0.05)}

    def test_false_detections_before_the_right_one(self):
        for wrong, kind in ((("owl", [100, 0, 20, 20], 0.95), "background"),):
            ap50, lost = self.lost([("owl", BOX)], [wrong, ("owl", BOX, 0.9)])
            assert ap50 == pytest.approx(50)
            assert lost == {kind: pytest.approx(50)}

    def test_missed_objects_are_taken_out(self):
        objects = [("owl", BOX), ("owl", [100, 100, 20, 20])]
        _, lost = self.lost(objects, [("owl", BOX, 0.9)])
        assert lost == {"missed": pytest.approx(100 * 50 / 101, abs=0.05)}

    def test_an_object_that_is_found_gains_nothing_twice(self):
        """The wrong box is removed, not mended, which would be a duplicate."""
        _, lost = self.lost([("owl", BOX)], [("owl", BOX, 0.9), ("owl", SHIFTED, 0.95)])
        assert lost == {"localization": pytest.approx(50)}


class TestThresholds:
    def curve(self, scores, right, objects):
        from hypernet_d2.evaluation.report.matching import score_curve

        return score_curve(np.array(scores), np.array(right), objects)

    def test_the_best_f1(self):
        curve = self.curve([0.9, 0.8, 0.3, 0.2], [True, True, False, False], 2)
        assert curve.best_threshold == pytest.approx((0.8 + 0.3) / 2)
        np.testing.assert_allclose(curve.f1, [2 / 3, 1, 0.8, 2 / 3])

    def test_equal_scores_are_kept_together(self):
        curve = self.curve([0.5, 0.5, 0.4], [True, False, True], 2)
        assert curve.scores.tolist() == [0.5, 0.4]
        assert curve.precision.tolist() == [0.5, pytest.approx(2 / 3)]

    def test_no_right_detection_has_no_threshold(self):
        assert self.curve([0.5], [False], 2).best_threshold is None
        assert self.curve([], np.zeros(0, bool), 2).best_threshold is None
        assert self.curve([0.5], [False], 0).best_threshold is None


class TestConfusion:
    def matrix(self, objects, detections):
        from hypernet_d2.evaluation.report.analysis import analyze

        return analyze(make_set(objects, detections)).confusion.tolist()

    def test_each_object_and_detection_counts_once(self):
        objects = [("owl", BOX), ("owl", [50, 0, 20, 20]), ("dog", [100, 0, 20, 20]),
                   ("dog", [150, 0, 20, 20])]  # fmt: skip
        detections = [("owl", BOX, 0.9), ("dog", BOX, 0.95),  # the owl is found as an owl
                      ("dog", [50, 0, 20, 20], 0.9),  # the second owl is found as a dog
                      ("dog", [100, 0, 20, 20], 0.9),
                      ("owl", [0, 100, 20, 20], 0.9)]  # fmt: skip
        # Rows: owl, dog, no object; columns: owl, dog, not found.
        assert self.matrix(objects, detections) == [[1, 1, 0], [0, 1, 1], [1, 1, 0]]

    def test_detections_below_the_threshold_do_not_count(self):
        objects = [("owl", BOX)]
        detections = [("owl", BOX, 0.9), ("owl", [100, 0, 20, 20], 0.1)]
        assert self.matrix(objects, detections) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


class TestSizes:
    def test_each_object_is_in_one_class(self):
        from hypernet_d2.evaluation.size_classes import quantile_sizes

        areas = np.random.default_rng(0).integers(1, 50, 200).astype(float)
        sizes = quantile_sizes(areas)
        inside = [(areas >= low) & (areas <= high) for low, high in sizes.values()]
        assert (np.sum(inside, axis=0) == 1).all()
        assert all(45 <= part.sum() <= 90 for part in inside)

    @pytest.mark.parametrize(("areas", "classes"), [([], 0), ([7.0] * 9, 1), ([7.0, 9.0] * 5, 2)])
    def test_few_sizes_give_few_classes(self, areas, classes):
        from hypernet_d2.evaluation.size_classes import quantile_sizes

        sizes = quantile_sizes(areas)
        assert len(sizes) == classes
        assert all(name.endswith(f"of{classes}") for name in sizes)

    def test_the_evaluator_logs_them(self, tmp_path, catalog):
        from detectron2.data.datasets import register_coco_instances

        from tests.evaluation.sets import coco_content, write_coco
        from tests.evaluation.test_coco import evaluate

        path = write_coco(tmp_path / "set", coco_content())
        register_coco_instances("set", {}, str(path), str(path.parent))
        catalog.append("set")
        results = evaluate(tmp_path, "set")["bbox"]
        for name in ("1of3", "2of3", "3of3"):
            assert results[f"APsize-{name}"] == pytest.approx(100)
            assert results[f"ARsize-{name}"] == pytest.approx(100)
        # Of two sets each keeps its detections, which the report reads.
        folder = tmp_path / "out/inference"
        stock = (folder / "coco_instances_results.json").read_text()
        assert len(json.loads(stock)) == 6
        assert (folder / "set_instances_results.json").read_text() == stock
