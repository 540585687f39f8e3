"""Serial stills for the tests: spots of a known cell, its lines by gemmi, on one flat detector."""

from __future__ import annotations

import numpy as np

from tests.powder.patterns import CELLS, reflections

WAVELENGTH, DISTANCE, PIXEL, CENTRE = 1.3, 0.15, 75e-6, (1000.0, 1010.0)


def lines_of(name, q_max, seed=0):
    """q of the distinct lines of a known cell up to q_max, and the share of the spots that each has."""
    q2 = reflections(*CELLS[name], q_max**2)[1]
    q, count = np.unique(np.sqrt(q2).round(9), return_counts=True)
    share = count / q * np.random.default_rng(seed).uniform(0.3, 1.0, len(q))
    return q, share / share.sum()


def spots_of(name, count, *, q_max=0.33, noise=0.4, band=3e-4, false=0.2, off=(0.0, 0.0), seed=0, half=False):
    """Places (n, 2) in pixels of spots, the detector's corner at (0, 0), and the lines they were made from.

    `noise` in pixels, `band` of q; `false` more spots anywhere; the beam is `off` pixels from `CENTRE`; `half` leaves
    those left of the beam out.
    """
    rng = np.random.default_rng(seed)
    lines, share = lines_of(name, q_max)
    q = rng.choice(lines, count, p=share) * (1 + rng.normal(0, band, count))
    q = np.concatenate([q, np.sqrt(rng.uniform(0.03**2, q_max**2, int(false * count)))])
    r = DISTANCE * np.tan(2 * np.arcsin(q * WAVELENGTH / 2)) / PIXEL
    phi = rng.uniform(-np.pi / 2, np.pi / 2, len(r)) if half else rng.uniform(0, 2 * np.pi, len(r))
    place = np.stack([r * np.cos(phi), r * np.sin(phi)], 1) + rng.normal(0, noise, (len(r), 2))
    return rng.permutation(place + np.array(CENTRE) + np.array(off)), lines


def metres(place):
    """x, y, z in metres of places in pixels."""
    return np.concatenate([(place - np.array(CENTRE)) * PIXEL, np.full((len(place), 1), DISTANCE)], 1)


def clear(lines, width):
    """The lines that stand apart from all others by three widths."""
    gap = np.diff(lines, prepend=-np.inf, append=np.inf)
    return lines[np.minimum(gap[:-1], gap[1:]) > 3 * width]
