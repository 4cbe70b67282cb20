"""The heads over hypercolumns: in both kinds of ROI heads, and where their predictions lie."""

import pytest
import torch

from tests.helpers import batched_inputs, tiny_cfg

pytestmark = pytest.mark.detectron2

SMALL = [
    "MODEL.HYPERNET.HYPERCOLUMN.FC_DIM", 8,
    "MODEL.HYPERNET.HYPERCOLUMN.CONV_DIM", 4,
    "MODEL.HYPERNET.HYPERCOLUMN.HEATMAP_SIZE", 20,
]  # fmt: skip
HEADS = {
    "mask": "Digits-InstanceSegmentation/hypercolumn_R_18.yaml",
    "keypoint": "Digits-Keypoints/hypercolumn_R_18.yaml",
    "part": "Digits-Parts/hypercolumn_R_18.yaml",
}
FPN = "Digits-Detection/faster_rcnn_R_18_FPN.yaml"
ON_FPN = {
    "mask": ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "HypercolumnMaskHead"],
    "keypoint": [
        "MODEL.KEYPOINT_ON", True,
        "MODEL.ROI_KEYPOINT_HEAD.NAME", "HypercolumnKeypointHead",
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 5,
    ],
    "part": ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "HypercolumnPartHead"],
}  # fmt: skip
WHOLE_MAPS = ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "", "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", ""]


def build(head: str, *opts, fpn: bool = False):
    from detectron2.modeling import build_model

    extra = [*ON_FPN[head], *WHOLE_MAPS] if fpn else []
    return build_model(tiny_cfg(*SMALL, *extra, *opts, config=FPN if fpn else HEADS[head]))


def inputs_with_truth(*sizes, objects: int = 2) -> list[dict]:
    """As batched_inputs; a mask fills its box, its parts are thirds, and keypoints lie in it."""
    from detectron2.structures import BitMasks, Keypoints

    inputs = batched_inputs(*sizes, objects=objects, classes=10)
    for one in inputs:
        instances = one["instances"]
        masks = torch.zeros(objects, *instances.image_size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, instances.gt_boxes.tensor.int(), strict=True):
            for part, rows in enumerate(mask[y1:y2, x1:x2].tensor_split(3)):
                rows.fill_(part + 1)
        boxes = instances.gt_boxes.tensor
        places = (
            boxes[:, None, :2] + torch.rand(objects, 5, 2) * (boxes[:, 2:] - boxes[:, :2])[:, None]
        )
        instances.gt_masks = BitMasks(masks > 0)
        instances.gt_parts = masks
        instances.gt_keypoints = Keypoints(torch.cat([places, torch.full((objects, 5, 1), 2)], -1))
    return inputs


def train_step(model, inputs) -> dict[str, torch.Tensor]:
    from detectron2.utils.events import EventStorage

    with EventStorage():
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    return losses


def with_boxes(boxes: list, size: tuple[int, int] = (64, 96)):
    """Detections of class 1."""
    from detectron2.structures import Boxes, Instances

    instances = Instances(size, pred_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)))
    instances.pred_classes = torch.ones(len(boxes), dtype=torch.int64)
    instances.scores = torch.ones(len(boxes))
    return instances


@pytest.mark.parametrize("fpn", [False, True], ids=["HyperNetROIHeads", "StandardROIHeads"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("agnostic", [False, True])
def test_it_trains_and_detects_in_both_kinds_of_roi_heads(head, fpn, agnostic):
    model = build(head, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic, fpn=fpn)
    losses = train_step(model, inputs_with_truth((64, 64), (48, 80)))
    name = "loss_keypoint" if head == "keypoint" else "loss_mask"
    assert torch.isfinite(losses[name]) and losses[name] > 0
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        (output,) = model.eval()(
            [{"image": torch.rand(3, 64, 96) * 255, "height": 128, "width": 192}]
        )
    found = output["instances"]
    n = len(found)
    if head == "keypoint":
        assert found.pred_keypoints.shape == (n, 5, 3)
    else:
        assert found.pred_masks.shape == (n, 128, 192)
    if head == "part":
        assert found.pred_part_masks.shape == (n, 3, 20, 20)


@pytest.mark.parametrize("head", HEADS)
def test_images_without_objects_leave_every_parameter_in_the_graph(head):
    model = build(head)
    losses = train_step(model, inputs_with_truth((64, 64), objects=0))
    assert losses["loss_keypoint" if head == "keypoint" else "loss_mask"] == 0
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("head", HEADS)
def test_boxes_of_any_kind_get_a_prediction(head):
    model = build(head).eval()
    images = [{"image": torch.rand(3, 64, 96) * 255}, {"image": torch.rand(3, 40, 50) * 255}]
    beyond = [[-50, -20, 200, 90], [10, 10, 11, 11], [95, 63, 96, 64], [300, 300, 310, 320]]
    given = [with_boxes(beyond), with_boxes([], (40, 50))]
    with torch.no_grad():
        found = model.inference(images, given, do_postprocess=False)
    for one in found:
        values = one.pred_keypoints if head == "keypoint" else one.pred_masks
        assert len(values) == len(one) and torch.isfinite(values).all()


@pytest.mark.parametrize("head", HEADS)
def test_an_image_of_a_batch_has_the_predictions_it_has_alone(head):
    model = build(head).eval()
    for p in model.roi_heads.parameters():
        torch.nn.init.normal_(p, std=0.02)  # the initial weights hardly tell positions apart
    images = [{"image": torch.rand(3, *size) * 255} for size in ((64, 96), (64, 96), (40, 64))]
    boxes = [[[5, 5, 40, 50], [20, 8, 90, 60]], [[5, 5, 40, 50]], [[5, 5, 38, 35]]]

    def predict(indices):
        given = [with_boxes(boxes[i], images[i]["image"].shape[1:]) for i in indices]
        with torch.no_grad():
            found = model.inference([images[i] for i in indices], given, do_postprocess=False)
        return [x.pred_keypoint_heatmaps if head == "keypoint" else x.pred_masks for x in found]

    together = predict([0, 1, 2])
    for i in (0, 1):
        assert torch.allclose(together[i], predict([i])[0], atol=1e-3)
    assert (together[0][:1] - together[1]).abs().max() > 0.01
    assert len(together[2]) == 1


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the size of the image is fixed
def test_a_traced_model_follows_the_image(head):
    from detectron2.export import TracingAdapter

    agnostic = ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False]
    thresholds = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.09, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.2]
    model = build(head, *thresholds, *agnostic).eval()
    for p in model.roi_heads.parameters():
        torch.nn.init.normal_(p, std=0.03)

    def detect(model, inputs):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    first, *others = torch.rand(8, 3, 64, 96) * 255
    with torch.no_grad():
        adapter = TracingAdapter(model, [{"image": first}], detect)
        traced = torch.jit.trace(adapter, (first,), check_trace=False)
        second = next(x for x in others if len(adapter(x)[0]) != len(adapter(first)[0]))
        for ours, theirs in zip(traced(second), adapter(second), strict=True):
            assert torch.allclose(ours.float(), theirs.float(), atol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_it_trains_in_reduced_precision(head):
    from detectron2.utils.events import EventStorage

    model = build(head)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs_with_truth((64, 64)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def planes(h: int, w: int) -> dict[str, torch.Tensor]:
    """A map of stride 4 whose two channels are x and y of the cells' centres, in pixels."""
    y, x = torch.meshgrid(torch.arange(h // 4), torch.arange(w // 4), indexing="ij")
    return {"xy": (torch.stack([x, y])[None] + 0.5) * 4}


def predictor_of(weights: list[list[float]], biases: list[float], **kwargs):
    """A predictor on :func:`planes`: label i scores ``weights[i]`` times (x, y), plus a bias."""
    from detectron2.layers import ShapeSpec

    from hypernet_d2.modeling import HypercolumnPredictor

    predictor = HypercolumnPredictor(
        {"xy": ShapeSpec(channels=2, stride=4)},
        num_classes=1,
        num_labels=len(weights),
        in_features=["xy"],
        fc_dim=0,
        **kwargs,
    )
    classifiers = predictor.classifiers
    repeats = classifiers.grid_size**2
    with torch.no_grad():
        classifiers.convs["xy"].weight.copy_(
            torch.tensor(weights).repeat(repeats, 1)[:, :, None, None]
        )
        classifiers.bias.copy_(torch.tensor(biases).repeat(repeats))
    return predictor


BOXES = [[20, 12, 52, 44], [8.3, 4.2, 61.7, 33.1], [60, 40, 80, 56]]


def test_stock_pasting_puts_the_mask_at_the_right_pixels():
    from detectron2.modeling.postprocessing import detector_postprocess

    from hypernet_d2.modeling import HypercolumnMaskHead

    # The mask is where x + 2 y > 80.
    head = HypercolumnMaskHead(predictor=predictor_of([[1.0, 2.0]], [-80.0], box_expansion=0.2))
    (found,) = head.eval()(planes(64, 96), [with_boxes(BOXES)])
    masks = detector_postprocess(found, 128, 192).pred_masks
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(192) + 0.5, indexing="ij")
    for mask, (x1, y1, x2, y2) in zip(masks, BOXES, strict=True):
        inside = (x > 2 * x1 + 1) & (x < 2 * x2 - 1) & (y > 2 * y1 + 1) & (y < 2 * y2 - 1)
        near = (x + 2 * y - 160).abs() < 3  # where a half position may decide
        assert torch.equal(mask & inside & ~near, (x + 2 * y > 160) & inside & ~near)
        outside = (x < 2 * x1 - 1) | (x > 2 * x2 + 1) | (y < 2 * y1 - 1) | (y > 2 * y2 + 1)
        assert not (mask & outside).any()


def test_inference_reads_the_middle_of_what_training_reads():
    # With a fifth at each side, 10 positions on the box are the inner ones of 14 on the expanded.
    from detectron2.structures import Boxes

    boxes = [Boxes(torch.tensor(BOXES[:2]).float())]
    whole, box = (
        predictor_of([[1.0, 1.0]], [0.0], box_expansion=0.2, heatmap_size=m) for m in (14, 10)
    )
    torch.nn.init.normal_(whole.classifiers.convs["xy"].weight)  # 25 different classifiers
    box.load_state_dict(whole.state_dict())
    trained = whole(planes(64, 96), boxes, expanded=True)[..., 2:12, 2:12]
    assert torch.allclose(box(planes(64, 96), boxes, expanded=False), trained, atol=1e-3)


def foreground(boxes: list, masks: torch.Tensor, **fields):
    from detectron2.structures import BitMasks, Boxes, Instances

    boxes = Boxes(torch.tensor(boxes).float())
    return Instances(
        tuple(masks.shape[1:]),
        proposal_boxes=boxes,
        gt_boxes=boxes,
        gt_classes=torch.zeros(len(boxes), dtype=torch.int64),
        gt_masks=BitMasks(masks),
        **fields,
    )


def test_targets_lie_where_the_heat_maps_do():
    from detectron2.utils.events import EventStorage

    from hypernet_d2.modeling import HypercolumnMaskHead

    head = HypercolumnMaskHead(
        predictor=predictor_of([[10.0, 20.0]], [-800.0], box_expansion=0.2, heatmap_size=40)
    )
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    masks = (x + 2 * y > 80).expand(2, -1, -1)
    inside = BOXES[:2]  # boxes whose expansion stays in the image
    with EventStorage() as storage:
        loss = head(planes(64, 96), [foreground(inside, masks)])["loss_mask"]
    assert loss < 0.1  # a shift by one pixel gives 0.4
    assert storage.latest()["hypercolumn/accuracy"][0] > 0.98


def test_small_boxes_count_in_proportion_to_their_area():
    from detectron2.structures import Boxes

    from hypernet_d2.modeling.roi_heads.hypercolumn_mask_head import box_weights, heat_map_loss

    boxes = Boxes(torch.tensor([[0, 0, 5, 10], [0, 0, 10, 10], [0, 0, 90, 90], [3, 3, 3, 9.0]]))
    weights = box_weights(boxes, 10)
    assert weights.tolist() == [0.5, 1, 1, 0]
    assert box_weights(boxes, 0).tolist() == [1, 1, 1, 1]
    logits = torch.tensor([5.0, 0, 0, 0])[:, None, None, None].expand(-1, 1, 3, 3)
    targets = torch.zeros(4, 1, 3, 3, dtype=torch.bool)
    losses = torch.nn.functional.softplus(logits[:, 0, 0, 0])
    assert torch.isclose(heat_map_loss(logits, targets, weights), (losses * weights).sum() / 2.5)
    assert heat_map_loss(logits, targets, torch.zeros(4)) == 0


def test_keypoints_are_decoded_and_learned_in_the_expanded_box():
    from detectron2.structures import Keypoints
    from detectron2.utils.events import EventStorage

    from hypernet_d2.modeling import HypercolumnKeypointHead

    # One keypoint at the bottom right of the heat map, one at its top left.
    weights = [[3.0, 3.0], [-3.0, -3.0]]
    head = HypercolumnKeypointHead(
        predictor=predictor_of(weights, [0.0, 0.0], box_expansion=0.25, heatmap_size=20),
        num_keypoints=2,
    )
    (found,) = head.eval()(planes(64, 96), [with_boxes([[20, 12, 52, 44]])])
    keypoints = found.pred_keypoints[0, :, :2]
    assert torch.allclose(keypoints, torch.tensor([[60.0, 52], [12, 4]]), atol=1.0)
    assert torch.equal(found.pred_boxes.tensor, torch.tensor([[20.0, 12, 52, 44]]))

    truth = Keypoints(torch.tensor([[[59.5, 51.5, 2], [12.5, 4.5, 2]]]))
    proposals = foreground([[20, 12, 52, 44]], torch.ones(1, 64, 96).bool(), gt_keypoints=truth)
    with EventStorage():
        losses = head.train()(planes(64, 96), [proposals])
        assert 0 < losses["loss_keypoint"] < 0.02
        proposals.gt_keypoints = Keypoints(truth.tensor.flip(1))
        assert head(planes(64, 96), [proposals])["loss_keypoint"] > 1


class TestParts:
    """Targets and pasting of part labels: part 0 where x < 40, else part 1; no part below 30."""

    WEIGHTS, BIASES = [[-10.0, -10.0], [10.0, -10.0]], [400 + 300.0, -400 + 300.0]

    def head(self, **kwargs):
        from hypernet_d2.modeling import HypercolumnPartHead

        return HypercolumnPartHead(predictor=predictor_of(self.WEIGHTS, self.BIASES, **kwargs))

    def test_parts_are_pasted_at_the_right_pixels(self):
        from detectron2.modeling.postprocessing import detector_postprocess

        from hypernet_d2.modeling import paste_parts

        (found,) = self.head().eval()(planes(64, 96), [with_boxes([[20, 12, 60, 44]])])
        assert torch.equal(found.pred_masks[:, 0], found.pred_part_masks.amax(1))
        found = detector_postprocess(found, 128, 192)
        (labels,) = paste_parts(found)
        assert labels.shape == (128, 192) and labels.dtype == torch.uint8
        # (x, y) in the doubled image: both parts, none of them, beyond the box.
        assert [int(labels[y, x]) for x, y in ((60, 40), (100, 40), (60, 84), (10, 40))] == [
            1,
            2,
            0,
            0,
        ]
        # What the parts cover together; where two meet, the mask was the largest before pasting.
        assert not ((labels > 0) & ~found.pred_masks[0]).any()
        assert (found.pred_masks[0] & (labels == 0)).sum() < 0.02 * (labels > 0).sum()

    def test_no_detection_has_no_labels(self):
        from hypernet_d2.modeling import paste_parts

        (found,) = self.head().eval()(planes(64, 96), [with_boxes([])])
        assert paste_parts(found).shape == (0, 64, 96)

    def test_targets_are_the_labels_under_the_positions(self):
        from hypernet_d2.modeling.roi_heads.hypercolumn_part_head import sample_labels

        labels = torch.arange(64 * 96).view(1, 64, 96) % 251
        boxes = torch.tensor([[8.0, 4, 18, 14], [-5, 60, 5, 70]])
        found = sample_labels(labels.expand(2, -1, -1), boxes, 10)
        assert torch.equal(found[0], labels[0, 4:14, 8:18])
        assert torch.equal(found[1, :4, 5:], labels[0, 60:, :5])
        assert not found[1, 4:].any() and not found[1, :, :5].any()

    def test_each_part_is_a_target_of_its_own(self):
        head = self.head(box_expansion=0.0, heatmap_size=20)
        labels = torch.zeros(1, 64, 96, dtype=torch.uint8)
        labels[0, 12:22], labels[0, 22:27] = 1, 2
        proposals = foreground([[20, 12, 40, 32]], labels > 0, gt_parts=labels)
        targets = head.targets(proposals, 20)
        assert targets.shape == (1, 2, 20, 20)
        assert targets.sum((0, 2, 3)).tolist() == [200, 100]
        assert targets[0, 0, :10].all() and targets[0, 1, 10:15].all()


def test_test_time_augmentation_is_refused_when_a_model_for_parts_is_built():
    from detectron2.modeling import build_model

    opts = ["TEST.AUG.ENABLED", True]
    build_model(tiny_cfg(*opts, config="Digits-InstanceSegmentation/hypercolumn_R_18.yaml"))
    with pytest.raises(ValueError, match="TEST.AUG.ENABLED is True.*HypercolumnPartHead"):
        build_model(tiny_cfg(*opts, config="Digits-Parts/hypercolumn_R_18.yaml"))


@pytest.mark.parametrize(
    "head, node", [("mask", "ROI_MASK_HEAD"), ("keypoint", "ROI_KEYPOINT_HEAD")]
)
def test_pooled_regions_are_refused(head, node):
    with pytest.raises(ValueError, match='set POOLER_TYPE of its node .* to ""'):
        build(head, f"MODEL.{node}.POOLER_TYPE", "ROIAlignV2")


def test_a_map_that_is_not_there_is_named():
    key = "MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES"
    with pytest.raises(ValueError, match="HYPERCOLUMN.IN_FEATURES .*only .*'res4'"):
        build("mask", key, ["res2", "res9"])
    with pytest.raises(ValueError, match=r"\['res2'\], but the ROI heads have only .*'p2'"):
        build("mask", key, ["res2"], fpn=True)
    roi_heads = ["MODEL.ROI_HEADS.NAME", "HyperNetROIHeads"]
    with pytest.raises(ValueError, match=r"\['p9'\], but the backbone has no map .*'p6'"):
        build("mask", *roi_heads, key, ["p9"], fpn=True)


@pytest.mark.parametrize("key", ["BOX_EXPANSION", "FULL_WEIGHT_SIZE"])
def test_negative_settings_are_named(key):
    with pytest.raises(ValueError, match=f"HYPERCOLUMN.{key} is -0.1; expected 0 or more"):
        build("mask", f"MODEL.HYPERNET.HYPERCOLUMN.{key}", -0.1)


def test_hypernet_roi_heads_hand_on_maps_that_the_box_head_does_not_read():
    key = "MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES"
    model = build("mask", "MODEL.ROI_HEADS.NAME", "HyperNetROIHeads", key, ["p2", "p6"], fpn=True)
    assert list(model.roi_heads.mask_head.predictor.classifiers.convs) == ["p2", "p6"]
    assert model.roi_heads.box_in_features == ["p2", "p3", "p4", "p5"]
    hyper = build("mask", key, ["res2", "hyper"])
    assert list(hyper.backbone.output_shape()) == ["hyper", "res2"]
    with torch.no_grad():
        assert list(hyper.backbone(torch.zeros(1, 3, 32, 32))) == ["hyper", "res2"]


def test_maps_are_normalized_where_a_trunk_is_not():
    model = build("mask", "MODEL.HYPERNET.HYPERCOLUMN.NORM", "LN").eval()
    image = [{"image": torch.rand(3, 64, 96) * 255}]
    head, seen = model.roi_heads.mask_head.predictor, []
    head.classifiers.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.inference(image, [with_boxes([[5, 5, 40, 50]])], do_postprocess=False)
    for x in seen[0].values():
        assert torch.allclose(x.mean(1), torch.zeros(()), atol=1e-4)
        assert torch.allclose(x.var(1, unbiased=False), torch.ones(()), atol=0.05)


@pytest.mark.coco_sample
def test_photographs_train_masks_and_keypoints():
    from detectron2.data import DatasetCatalog
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from hypernet_d2.data import NamedErrorDatasetMapper

    cfg = tiny_cfg(config="COCO-Keypoints/hypercolumn_R_18_sample.yaml")
    records = DatasetCatalog.get("coco_sample")
    assert len(records) > 0 and all(record["annotations"] for record in records)
    mapper = NamedErrorDatasetMapper(cfg, True)
    inputs = [mapper(record) for record in records]
    for one in inputs:
        assert one["instances"].has("gt_masks") and one["instances"].has("gt_keypoints")
    with EventStorage():
        losses = build_model(cfg)(inputs)
    for name in ("loss_mask", "loss_keypoint"):
        assert torch.isfinite(losses[name]) and losses[name] > 0
