"""COCO's run-length codes (RLE) of masks: checked before pycocotools decodes them.

pycocotools trusts a code. One whose runs do not make up its size is read or written beyond its end.
"""

from __future__ import annotations

__all__ = ["check_rle"]


def check_rle(rle: dict, size: tuple[int, int] | None) -> None:
    """Check that the runs of a code cover its size, and that this is the size of the image.

    Args:
        rle: with ``size`` [height, width] in pixels and ``counts``: the lengths of the runs, as a
            list or compressed as text or bytes.
        size: (height, width) of the image in pixels; None where it is not known.

    Raises:
        ValueError: naming the value that is wrong.
    """
    stated, counts = rle.get("size"), rle.get("counts")
    if (
        not isinstance(stated, (list, tuple))
        or len(stated) != 2
        or any(type(side) is not int or side < 0 for side in stated)
    ):
        raise ValueError(f"size is {str(stated)[:80]}, expected [height, width] in pixels")
    if size is not None and tuple(stated) != tuple(size):
        raise ValueError(f"size is {list(stated)}, but the image's is {list(size)} (height, width)")
    if isinstance(counts, list):
        valid = all(type(run) is int and run >= 0 for run in counts)
        runs = counts if valid else None
    else:
        runs = _decompress(counts) if isinstance(counts, (str, bytes)) else None
    if runs is None or sum(runs) != stated[0] * stated[1]:
        raise ValueError(
            f"counts {str(counts)[:80]!r} are no runs over {stated[0]} x {stated[1]} pixels"
        )


def _decompress(counts: str | bytes) -> list[int] | None:
    """The runs of a compressed code, as pycocotools packs them; None where it is damaged.

    A number is written in digits of 5 bits, the lowest first, each as the character 48 + digit,
    with 32 more where another follows. From the fourth number on it is the difference to the
    number two places before.
    """
    codes = counts.encode("latin1", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value, shift = 0, 0
    for code in codes:
        digit = code - 48
        if not 0 <= digit < 64 or shift > 30:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        value, shift = 0, 0
    return None if shift else runs
