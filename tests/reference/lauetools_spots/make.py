"""Cut the regions of two real frames that tests/laue/test_spots.py reads, with the spots that Lauetools lists there.

    python tests/reference/lauetools_spots/make.py DIR

DIR holds Ge_blanc_0000.mccd.gz, Ge_blanc_0000_LT_5.dat, img_Ge_sCMOS_0000.tif.gz and img_Ge_sCMOS_0000_181peaks.cor, as
Lauetools distributes them (see NOTICE). A region is 288 x 320 pixels, and among those with the most listed spots.
Positions are those of the list, less the corner: from 1, as in Lauetools. Listed spots that Lauetools itself did not
fit are left out: those with a deviation of more than two pixels from the maximum that it started from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run as a script, from anywhere

from mlindex.formats.images import read_image

HERE = Path(__file__).parent
SHAPE = (288, 320)
FRAMES = {
    "Ge_blanc_0000": ("Ge_blanc_0000.mccd.gz", "Ge_blanc_0000_LT_5.dat"),
    "img_Ge_sCMOS_0000": ("img_Ge_sCMOS_0000.tif.gz", "img_Ge_sCMOS_0000_181peaks.cor"),
}


def listed(path: Path) -> np.ndarray:
    """x, y of a list with a line of names."""
    lines = path.read_text().splitlines()
    names = lines[0].split()
    columns = ("peak_X", "peak_Y") if "peak_X" in names else ("X", "Y")
    rows = [line.split() for line in lines[1:] if line.strip() and not line.startswith("#")]
    table = np.array([[float(v) for v in row] for row in rows if len(row) == len(names)])
    off = np.abs(table[:, [names.index("Xdev"), names.index("Ydev")]]).max(1)
    return table[off < 2][:, [names.index(c) for c in columns]]


def main() -> None:
    folder, out = Path(sys.argv[1]), {}
    for name, (image, peaks) in FRAMES.items():
        data, position = read_image(folder / image).data, listed(folder / peaks)
        margin = np.array([8, 8])
        best = None
        for y in range(0, data.shape[0] - SHAPE[0], 16):
            for x in range(0, data.shape[1] - SHAPE[1], 16):
                local = position - [x, y]
                inside = np.all((local > margin) & (local < np.array(SHAPE[::-1]) - margin), 1)
                if best is None or inside.sum() > best[0]:
                    best = inside.sum(), y, x, local[inside]
        _, y, x, local = best
        out[name] = data[y : y + SHAPE[0], x : x + SHAPE[1]].astype(np.uint16)
        out[f"{name}_spots"] = local
        print(name, "from row", y, "column", x, "spots", len(local))
    np.savez_compressed(HERE / "crops.npz", **out)


if __name__ == "__main__":
    main()
