from .hypercolumn_keypoint_head import HypercolumnKeypointHead
from .hypercolumn_mask_head import HypercolumnMaskHead
from .hypercolumn_part_head import HypercolumnPartHead, paste_parts
from .hypercolumn_predictor import HypercolumnPredictor
from .hypernet_box_head import HyperNetBoxHead
from .hypernet_roi_heads import HyperNetROIHeads

__all__ = [
    "HypercolumnKeypointHead",
    "HypercolumnMaskHead",
    "HypercolumnPartHead",
    "HypercolumnPredictor",
    "HyperNetBoxHead",
    "HyperNetROIHeads",
    "paste_parts",
]
