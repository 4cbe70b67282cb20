"""Every configuration key of our own; all stand in the node ``MODEL.HYPERNET``.

Keys of detectron2 are reused where they mean the same, and HyperNet reads these:

- ``MODEL.RPN``: IOU_THRESHOLDS, IOU_LABELS, BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION, LOSS_WEIGHT,
  BBOX_REG_LOSS_WEIGHT (the paper's lambda), BBOX_REG_WEIGHTS, BBOX_REG_LOSS_TYPE, SMOOTH_L1_BETA,
  NMS_THRESH, PRE_NMS_TOPK_TRAIN/TEST, POST_NMS_TOPK_TRAIN/TEST
- ``MODEL.PROPOSAL_GENERATOR``: NAME, MIN_SIZE
- ``MODEL.ROI_HEADS`` and ``MODEL.ROI_BOX_HEAD``: all that the stock StandardROIHeads reads
"""

from . import _detectron2  # noqa: F401

# isort: split
import torch
from detectron2.config import CfgNode as CN

__all__ = ["add_hypernet_config", "default_device"]


def default_device() -> str:
    """ "cuda" where PyTorch sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def add_hypernet_config(cfg: CN) -> None:
    """Add ``MODEL.HYPERNET`` with the paper's settings as defaults. Changes ``cfg`` in place."""
    hyper = cfg.MODEL.HYPERNET = CN()

    # Registered name of the backbone that build_hyper_backbone wraps. It is built from this same
    # config, with MODEL.RESNETS.OUT_FEATURES set to FEATURE.IN_FEATURES.
    hyper.TRUNK = "build_vgg_backbone"
    # Evaluator of the test sets: "" for each data set's own kind, "coco" or "pascal_voc".
    hyper.EVALUATOR = ""

    # ---- The hyper feature (paper 3.1) ---------------------------------------------------------
    hyper.FEATURE = CN()
    # Maps of the trunk that are fused, finest first. The paper: first, middle and last.
    hyper.FEATURE.IN_FEATURES = ["conv1", "conv3", "conv5"]
    # Stride of the hyper feature in pixels; a power of 2.
    hyper.FEATURE.STRIDE = 4
    # Channels that each map contributes; the paper's 42 give 126 from three maps.
    hyper.FEATURE.CHANNELS = 42
    # Side of each map's convolution in cells; odd.
    hyper.FEATURE.KERNEL_SIZE = 5
    # Normalisation that makes the maps' scales alike: "LRN" (paper), "BN", "GN" or "none".
    hyper.FEATURE.NORM = "LRN"
    # How coarse maps are brought up: "deconv" (paper) or "bilinear".
    hyper.FEATURE.UPSAMPLING = "deconv"
    # Convolve coarse maps at their own stride and upsample the result, instead of the paper's
    # upsampling before the convolution; factor^2 cheaper.
    hyper.FEATURE.CONV_FIRST = False

    # ---- Proposals (paper 3.2) -----------------------------------------------------------------
    hyper.PROPOSALS = CN()
    # Sizes of the candidate windows: the square root of their area, in pixels of the network's
    # input. The paper names no sizes; these, with the keys below, give about 30,000 windows on
    # an image of 600 x 1000 pixels, as many as the paper has.
    hyper.PROPOSALS.SIZES = [8, 16, 32, 64, 128, 256, 512]
    # Aspect ratios (height / width) of the windows.
    hyper.PROPOSALS.ASPECT_RATIOS = [0.5, 1.0, 2.0]
    # Distance of neighbouring windows as a fraction of their side, per axis, in (0, 1].
    hyper.PROPOSALS.STEP = 0.333
    # Lower bound of that distance, in pixels.
    hyper.PROPOSALS.MIN_STRIDE = 16.0
    # RoI pooling of the windows: "ROIPool" (paper) or "ROIAlignV2".
    hyper.PROPOSALS.POOLER_TYPE = "ROIPool"
    # Bins along each side of the pooled window.
    hyper.PROPOSALS.POOLER_RESOLUTION = 13
    # Samples a bin and axis of ROIAlignV2; 0 takes as many as the bin has cells.
    hyper.PROPOSALS.POOLER_SAMPLING_RATIO = 0
    # Channels of the 3x3 convolution after (HyperNet-SP: before) pooling.
    hyper.PROPOSALS.CONV_DIM = 4
    # Width of the fully connected layer.
    hyper.PROPOSALS.FC_DIM = 256
    # Whether a ReLU follows that convolution. The paper does not say; with so few channels it
    # often ends with all but one of them at zero everywhere, and learns far slower.
    hyper.PROPOSALS.CONV_RELU = False
    # True is HyperNet-SP (paper 3.5): the 3x3 convolution runs on the map, before RoI pooling.
    hyper.PROPOSALS.CONV_BEFORE_POOLING = False
    # Whether the best window of an object is positive even below the IoU threshold, as in the
    # RPN. The paper's rule is the threshold alone.
    hyper.PROPOSALS.ALLOW_LOW_QUALITY_MATCHES = False

    # ---- Detection (paper 3.3) -----------------------------------------------------------------
    hyper.BOX_HEAD = CN()
    # Dropout after each fully connected layer; a fraction in [0, 1).
    hyper.BOX_HEAD.DROPOUT = 0.25
    # Run the 3x3 convolution of the box head once on the map, before RoI pooling, instead of the
    # paper's once in each region after it.
    hyper.BOX_HEAD.CONV_BEFORE_POOLING = False

    # ---- Heads over hypercolumns (Hariharan et al., CVPR 2015) ----------------------------------
    # HypercolumnMaskHead, HypercolumnPartHead (MODEL.ROI_MASK_HEAD.NAME) and
    # HypercolumnKeypointHead (MODEL.ROI_KEYPOINT_HEAD.NAME) read these; POOLER_TYPE of their node
    # is "", which hands them whole maps. CLS_AGNOSTIC_MASK and NUM_KEYPOINTS mean what they mean
    # in the stock heads.
    hyper.HYPERCOLUMN = CN()
    # Maps that make up the hypercolumn, the one with the most context last. Empty takes
    # MODEL.ROI_HEADS.IN_FEATURES. With HyperNetROIHeads any map of the backbone can be named, and
    # with build_hyper_backbone also "hyper" and any map of the trunk; StandardROIHeads hands on
    # only those of MODEL.ROI_HEADS.IN_FEATURES.
    hyper.HYPERCOLUMN.IN_FEATURES = []
    # Normalisation of each map before its classifiers, by detectron2's names: "" (none), "LN" (over
    # the channels of a position), "GN", "BN", ... Maps of a trunk without normalisation need one.
    hyper.HYPERCOLUMN.NORM = ""
    # K: classifiers along each side of a box; 5 or 10 in the paper, 1 for one
    # classifier that does not know where it is in the box.
    hyper.HYPERCOLUMN.GRID_SIZE = 5
    # Side of the classifiers' convolutions in cells; odd.
    hyper.HYPERCOLUMN.KERNEL_SIZE = 1
    # Positions along each side of a heat map; 50 in the paper.
    hyper.HYPERCOLUMN.HEATMAP_SIZE = 50
    # How far each side of a box is moved outwards, as a fraction of the box's width or height. "A
    # little" in the paper.
    hyper.HYPERCOLUMN.BOX_EXPANSION = 0.1
    # Square root of the area of a box, in pixels of the network's input, from which on it counts
    # in full in the loss of masks and parts; a smaller one counts in proportion to its area. 0
    # lets all boxes count alike. The rule, and 224 pixels of the image, are those of the code that
    # the authors published.
    hyper.HYPERCOLUMN.FULL_WEIGHT_SIZE = 224.0
    # The box's own feature, which adds a bias to each classifier (fc7 of the paper): the last map,
    # RoIAligned to this size, a 3x3 convolution, a fully connected layer.
    hyper.HYPERCOLUMN.POOLER_RESOLUTION = 7
    # Channels of that convolution.
    hyper.HYPERCOLUMN.CONV_DIM = 64
    # Width of that fully connected layer; 0 leaves the whole box feature out.
    hyper.HYPERCOLUMN.FC_DIM = 1024
    # Number of part labels of HypercolumnPartHead.
    hyper.HYPERCOLUMN.NUM_PARTS = 3
