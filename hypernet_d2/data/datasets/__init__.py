"""Data sets: BCCD, the generated digits, and any set in VOC layout."""
