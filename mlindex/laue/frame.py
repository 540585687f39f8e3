"""A Laue frame on its way to the search: its spots, those of its image where it has one, and not too many of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlindex.config import LaueSettings
from mlindex.laue.geometry import Detector
from mlindex.laue.spots import SpotSettings, find_spots


@dataclass(frozen=True, eq=False)
class Spots:
    """A frame that is ready: `x`, `y` (n,) px and `intensity` (n,) of its spots, or its `image` (ny, nx).

    `crowded`: there were more spots than `max_spots`, and these are the brightest.
    """

    source: str
    detector: Detector
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    intensity: NDArray[np.float64]
    image: NDArray[np.float32] | None = None
    saturation: float | None = None
    name: str = ""  # of the frame, where its source has more than one; with its number, by which neighbours are known
    crowded: bool = False


def brightest(frame: Spots, most: int) -> Spots:
    """The frame with `most` of its spots, in the order that they had."""
    if len(frame.x) <= most:
        return frame
    keep = np.sort(np.argsort(-frame.intensity, kind="stable")[:most])
    return replace(frame, x=frame.x[keep], y=frame.y[keep], intensity=frame.intensity[keep], crowded=True)


def with_spots(frame: Spots, settings: LaueSettings) -> Spots:
    """The frame with the spots of its image found; one that has no image as it is."""
    if frame.image is None:
        return frame
    room = max(8192, -(-settings.max_spots // 128) * 128)  # candidates, of which some are no spots
    chosen = SpotSettings(threshold=settings.threshold, max_spots=room)
    found = find_spots(frame.image, chosen, saturation=frame.saturation)
    x, y, bright = (np.asarray(a, np.float64) for a in (found.x, found.y, found.intensity))
    return brightest(replace(frame, x=x, y=y, intensity=bright, image=None, crowded=found.overflow), settings.max_spots)


def crowded(frame: Spots, settings: LaueSettings) -> str:
    """What there is to say of a frame that had more spots than are used; nothing of another."""
    if not frame.crowded:
        return ""
    return f"only the {len(frame.x)} brightest spots were used (max_spots = {settings.max_spots})"
