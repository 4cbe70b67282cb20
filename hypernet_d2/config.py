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

__all__ = ["add_hypernet_config", "default_device", "hypernet_node"]


def default_device() -> str:
    """ "cuda" where PyTorch sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def hypernet_node(cfg: CN) -> CN:
    """Return ``cfg.MODEL.HYPERNET``, with the defaults of the keys that it lacks.

    Keys are missing where a config file was merged into detectron2's own defaults without
    `add_hypernet_config`, as programs do that only know detectron2.

    Raises:
        KeyError: for a key that does not exist.
    """
    complete = CN({"MODEL": CN()})
    add_hypernet_config(complete)
    complete.MODEL.HYPERNET.merge_from_other_cfg(cfg.MODEL.get("HYPERNET", CN()))
    return complete.MODEL.HYPERNET


def add_hypernet_config(cfg: CN) -> None:
    """Add ``MODEL.HYPERNET`` with the paper's settings as defaults. Changes ``cfg`` in place."""
    hyper = cfg.MODEL.HYPERNET = CN()

    # Registered name of the backbone that build_hyper_backbone wraps; it is built from this config.
    # At its default, MODEL.RESNETS.OUT_FEATURES, which ResNets, VGG and AlexNet read, is replaced
    # by the maps that FEATURE.IN_FEATURES and HYPERCOLUMN.IN_FEATURES name, or for an FPN by
    # MODEL.FPN.IN_FEATURES.
    hyper.TRUNK = "build_vgg_backbone"
    # Evaluator of the test sets: "coco", "pascal_voc", or "" for the evaluator_type in the metadata
    # of each set.
    hyper.EVALUATOR = ""
    # Whether MODEL.ROI_HEADS.NUM_CLASSES may be larger than the number of classes of a training
    # set, for instance to add classes later; otherwise the difference is an error.
    hyper.ALLOW_UNUSED_CLASSES = False

    # ---- Own data ------------------------------------------------------------------------------
    hyper.DATA = CN()
    # Folder or file of your data, as --data names it; its sets my_train, my_val and my_test are
    # registered from it, see register_own_data. Set by --data; "" for none. Not for a Python file.
    hyper.DATA.PATH = ""
    # Folder with train.txt and val.txt, the images of a validation split that was made because the
    # data has none. Set by training; "" for OUTPUT_DIR/split if it exists, or else a new split.
    hyper.DATA.SPLIT = ""

    # ---- Trunks of timm ------------------------------------------------------------------------
    # Read by build_timm_backbone and build_timm_fpn_backbone. The feature maps are named by their
    # stride: "s4", "s8", ... MODEL.BACKBONE.FREEZE_AT counts them from the finest.
    hyper.TIMM = CN()
    # Name of the model. MODEL.WEIGHTS "timm://NAME" loads its ImageNet weights.
    hyper.TIMM.NAME = "tf_efficientnet_lite0"
    # Batch normalization of the trunk: "FrozenBN" keeps its statistics, as detectron2's ResNets do;
    # "BN" trains it.
    hyper.TIMM.NORM = "FrozenBN"

    # ---- Tiles: parts of large images -----------------------------------------------------------
    hyper.TILES = CN()
    # Side of a tile in evaluation and demo, in pixels of the image as it is in its file; 0 detects
    # in the whole image at once. Each tile is resized by INPUT.MIN_SIZE_TEST and detected in alone.
    # TEST.DETECTIONS_PER_IMAGE and MODEL.RPN.POST_NMS_TOPK_TEST limit each tile.
    hyper.TILES.SIZE = 0
    # Pixels by which neighboring tiles overlap; at least the side of most objects, less than SIZE
    # and TRAIN_SIZE.
    hyper.TILES.OVERLAP = 128
    # Detect in the whole image as well, for objects that are larger than a tile.
    hyper.TILES.WHOLE_IMAGE = False
    # Side of a tile in training; 0 trains on whole images. Tiles are cut when an image is read, and
    # resized by INPUT.MIN_SIZE_TRAIN.
    hyper.TILES.TRAIN_SIZE = 0
    # Share of the area of an object's box that a tile has to show to be trained on the object, in
    # (0, 1]. Otherwise the object is background in this tile.
    hyper.TILES.TRAIN_MIN_VISIBLE = 0.5
    # Share of the tiles without objects among the training tiles, in [0, 1). Those used are drawn
    # at random once. Images without objects count if DATALOADER.FILTER_EMPTY_ANNOTATIONS is False.
    hyper.TILES.TRAIN_EMPTY_SHARE = 0.1

    # ---- Training: the checkpoint to keep, averaged weights, steps of the optimizer --------------
    hyper.TRAIN = CN()
    # Data sets that are evaluated every TEST.EVAL_PERIOD iterations, and that the best checkpoint
    # is chosen on. DATASETS.TEST is then evaluated once, after the last iteration. Empty:
    # DATASETS.TEST is evaluated in training, as detectron2 does, and has to be a validation set.
    hyper.TRAIN.VAL_DATASETS = ()
    # Save the weights with the best METRIC as OUTPUT_DIR/model_best.pth. Needs TEST.EVAL_PERIOD.
    hyper.TRAIN.BEST_CHECKPOINT = False
    # Metric of the best checkpoint, as metrics.json names it: "bbox/AP", "bbox/AP50", "segm/AP",
    # "bbox/AP-class", "validation_loss", ... Of several sets it is the mean, or that of one set:
    # "set/bbox/AP". Losses are minimized, all others maximized.
    hyper.TRAIN.METRIC = "bbox/AP"
    # Stop the training after this number of evaluations in a row that do not improve METRIC; 0
    # never does. Needs BEST_CHECKPOINT.
    hyper.TRAIN.PATIENCE = 0
    # Also compute the losses on the validation sets every TEST.EVAL_PERIOD iterations, as
    # validation_loss (the sum), validation_loss_cls and so on in metrics.json.
    hyper.TRAIN.VALIDATION_LOSS = False
    # Decay of an exponential moving average of the weights per iteration, in [0, 1); 0 is off. The
    # average is evaluated and saved as the model. After n iterations the decay is at most
    # (1 + n) / (10 + n), so that short trainings forget their first weights, too.
    hyper.TRAIN.EMA_DECAY = 0.0
    # Batches of SOLVER.IMS_PER_BATCH images whose gradients are averaged for one iteration, which
    # is one step of the optimizer.
    hyper.TRAIN.ACCUMULATE = 1
    # Type of the mixed precision that SOLVER.AMP.ENABLED turns on: "float16" (GPUs, detectron2's)
    # or "bfloat16" (GPUs and CPUs).
    hyper.TRAIN.AMP_DTYPE = "float16"

    # ---- Augmentation of training images, besides INPUT.RANDOM_FLIP and INPUT.CROP ---------------
    hyper.AUGMENT = CN()
    # Range of a random factor on the size that INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN give; a
    # larger image is cropped at random to the size without the factor. Empty is off.
    hyper.AUGMENT.SCALE = []
    # Least share of an object's box, in [0, 1], that a crop (SCALE, INPUT.CROP) has to show for the
    # object to be trained on. 0 trains on all that is seen, as detectron2 does.
    hyper.AUGMENT.MIN_VISIBLE = 0.0
    # Probability of a vertical flip; INPUT.RANDOM_FLIP "horizontal" flips horizontally.
    hyper.AUGMENT.VERTICAL_FLIP = 0.0
    # Rotate by 0, 90, 180 or 270 degrees, each with the same probability.
    hyper.AUGMENT.ROTATE_90 = False
    # Range x of a random factor in [1 - x, 1 + x] on the brightness; 0 is off.
    hyper.AUGMENT.BRIGHTNESS = 0.0
    # The same for the contrast.
    hyper.AUGMENT.CONTRAST = 0.0
    # The same for the saturation of colors.
    hyper.AUGMENT.SATURATION = 0.0
    # Random shift of the hue in [-x, x] of the color circle, at most 0.5; 0 is off.
    hyper.AUGMENT.HUE = 0.0

    # ---- The hyper feature (paper 3.1) ---------------------------------------------------------
    hyper.FEATURE = CN()
    # Feature maps of the trunk that are fused, finest first. The paper: first, middle and last.
    hyper.FEATURE.IN_FEATURES = ["conv1", "conv3", "conv5"]
    # Stride of the hyper feature in pixels; a power of 2.
    hyper.FEATURE.STRIDE = 4
    # Channels per fused map; in the paper 42, which gives 126 for three maps.
    hyper.FEATURE.CHANNELS = 42
    # Kernel size of the convolution of each map; odd.
    hyper.FEATURE.KERNEL_SIZE = 5
    # Normalization of each map after its convolution: "LRN" (paper), "BN", "GN" or "none".
    hyper.FEATURE.NORM = "LRN"
    # Upsampling of maps coarser than STRIDE: "deconv" (paper) or "bilinear".
    hyper.FEATURE.UPSAMPLING = "deconv"
    # Convolve maps coarser than STRIDE before upsampling, instead of after it as in the paper; the
    # convolution then costs factor^2 less.
    hyper.FEATURE.CONV_FIRST = False

    # ---- Proposals (paper 3.2) -----------------------------------------------------------------
    hyper.PROPOSALS = CN()
    # Sizes of the candidate windows: the square root of their area, in pixels of the network's
    # input. The paper names no sizes; these, with the keys below, give about 30,000 windows on
    # an image of 600 x 1000 pixels, as many as the paper has.
    hyper.PROPOSALS.SIZES = [8, 16, 32, 64, 128, 256, 512]
    # Aspect ratios (height / width) of the windows.
    hyper.PROPOSALS.ASPECT_RATIOS = [0.5, 1.0, 2.0]
    # Distance between neighboring windows as a fraction of their side, per axis, in (0, 1].
    hyper.PROPOSALS.STEP = 0.333
    # Minimum distance between neighboring windows, in pixels.
    hyper.PROPOSALS.MIN_STRIDE = 16.0
    # RoI pooling of the windows: "ROIPool" (paper) or "ROIAlignV2".
    hyper.PROPOSALS.POOLER_TYPE = "ROIPool"
    # Bins along each side of the pooled window.
    hyper.PROPOSALS.POOLER_RESOLUTION = 13
    # Samples per bin and axis of ROIAlignV2; 0 takes one sample per cell of the bin.
    hyper.PROPOSALS.POOLER_SAMPLING_RATIO = 0
    # Channels of the 3x3 convolution after pooling (HyperNet-SP: before pooling).
    hyper.PROPOSALS.CONV_DIM = 4
    # Width of the fully connected layer.
    hyper.PROPOSALS.FC_DIM = 256
    # Apply a ReLU after that convolution. The paper does not say. With so few channels training
    # often ends with all but one of them zero everywhere, and learns far slower.
    hyper.PROPOSALS.CONV_RELU = False
    # True is HyperNet-SP (paper 3.5): the 3x3 convolution runs on the map, before RoI pooling.
    hyper.PROPOSALS.CONV_BEFORE_POOLING = False
    # Label the best window of each object positive even below the IoU threshold, as the RPN does.
    # The paper uses the threshold alone.
    hyper.PROPOSALS.ALLOW_LOW_QUALITY_MATCHES = False

    # ---- Detection (paper 3.3) -----------------------------------------------------------------
    hyper.BOX_HEAD = CN()
    # Dropout probability after each fully connected layer, in [0, 1).
    hyper.BOX_HEAD.DROPOUT = 0.25
    # Apply the 3x3 convolution of the box head once to the feature map, before RoI pooling, instead
    # of to each region after it as in the paper.
    hyper.BOX_HEAD.CONV_BEFORE_POOLING = False

    # ---- Heads over hypercolumns (Hariharan et al., CVPR 2015) ----------------------------------
    # Keys of HypercolumnMaskHead, HypercolumnPartHead (MODEL.ROI_MASK_HEAD.NAME) and
    # HypercolumnKeypointHead (MODEL.ROI_KEYPOINT_HEAD.NAME). They need POOLER_TYPE "" in their node
    # to get whole feature maps. CLS_AGNOSTIC_MASK and NUM_KEYPOINTS mean the same as in the stock
    # heads.
    hyper.HYPERCOLUMN = CN()
    # Feature maps of the hypercolumn, the one with the most context last; empty means
    # MODEL.ROI_HEADS.IN_FEATURES. With HyperNetROIHeads any map of the backbone is possible, and
    # with build_hyper_backbone also "hyper" and any map of the trunk; with StandardROIHeads only
    # the maps in MODEL.ROI_HEADS.IN_FEATURES.
    hyper.HYPERCOLUMN.IN_FEATURES = []
    # Normalization of each map before its classifiers: "" (none), "LN" (over the channels of a
    # position), or another name of detectron2's get_norm. Maps of a trunk without normalization
    # need one.
    hyper.HYPERCOLUMN.NORM = ""
    # K: classifiers along each side of a box; 5 or 10 in the paper. 1 is one classifier for all
    # locations.
    hyper.HYPERCOLUMN.GRID_SIZE = 5
    # Kernel size of the classifiers' convolutions; odd.
    hyper.HYPERCOLUMN.KERNEL_SIZE = 1
    # Side of a heat map; 50 in the paper.
    hyper.HYPERCOLUMN.HEATMAP_SIZE = 50
    # How far each side of a box is moved outwards, as a fraction of the box's width or height. The
    # paper gives no number.
    hyper.HYPERCOLUMN.BOX_EXPANSION = 0.1
    # Weight of a box in the loss of masks and parts: its area divided by the square of this number
    # of pixels of the network's input, at most 1. 0 gives all boxes the same weight. The rule and
    # the 224 pixels are those of the authors' published code.
    hyper.HYPERCOLUMN.FULL_WEIGHT_SIZE = 224.0
    # Feature of the box, which adds a bias to each classifier (fc7 in the paper): RoIAlign of the
    # last map to this size, a 3x3 convolution, a fully connected layer.
    hyper.HYPERCOLUMN.POOLER_RESOLUTION = 7
    # Channels of that convolution.
    hyper.HYPERCOLUMN.CONV_DIM = 64
    # Width of that fully connected layer; 0 for no box feature.
    hyper.HYPERCOLUMN.FC_DIM = 1024
    # Number of part labels of HypercolumnPartHead.
    hyper.HYPERCOLUMN.NUM_PARTS = 3
