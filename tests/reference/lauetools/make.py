"""Collects the reference files of this folder: run with the two folders that hold the sources.

python make.py LAUETOOLS SIM1, where LAUETOOLS is a checkout of https://github.com/BM32ESRF/lauetools and SIM1 the
folder of frames that Lauetools 3.2.19 simulated (BM32's top detector, 5-22 keV, 0.2 px noise, 15 % of the spots
dropped).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
COPIED = (
    "Examples/Ge/Ge0001.cor",
    "Examples/Ge/Ge0001.dat",
    "Examples/Ge/Ge0001.fit",
    "Examples/Ge/Ge0001calib.det",
    "Examples/Ge/img_Ge_sCMOS_0000_181peaks.cor",
    "Examples/CuSi/fitfiles/SiCustrain0.fit",
    "Examples/CuSi/corfiles/SiCustrain5_Cu20spots.fit",
    "LaueImages/Ge_blanc_0000_LT_5.cor",
)
CUT = "notebooks/testZrO2_0_g0.fit"  # 543 spots: the first forty are kept
SIMULATED = ("Cu1", "Si1", "ZrO2_1")


def main(lauetools: Path, sim1: Path) -> None:
    for name in COPIED:
        shutil.copyfile(lauetools / "LaueTools" / name, HERE / Path(name).name)
    lines = (lauetools / "LaueTools" / CUT).read_text().splitlines()
    spots = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    kept = [line for i, line in enumerate(lines) if i not in set(spots[40:])]
    (HERE / "testZrO2_0_g0_first40.fit").write_text("\n".join(kept) + "\n")
    truth = json.loads((sim1 / "truth.json").read_text())
    short = {name: {key: truth[name][key] for key in ("material", "lattice", "U")} for name in SIMULATED}
    (HERE / "sim1_truth.json").write_text(json.dumps(short, indent=1) + "\n")
    for name in SIMULATED:
        shutil.copyfile(sim1 / f"{name}_truth.txt", HERE / f"sim1_{name}_truth.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
