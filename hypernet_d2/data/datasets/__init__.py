"""Data sets: BCCD, the generated digits, and sets in the layouts of VOC, YOLO and COCO."""
