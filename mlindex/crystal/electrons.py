"""Fast electrons: wavelength, relativistic factor."""

from __future__ import annotations

import numpy as np

_H = 6.62607015e-34  # J s
_E = 1.602176634e-19  # C
_M0 = 9.1093837015e-31  # kg, CODATA 2018
_C = 299792458.0  # m / s


def wavelength(voltage_kv: float) -> float:
    """The wavelength in angstrom, h / sqrt(2 m0 e E (1 + e E / (2 m0 c^2))), of electrons of `voltage_kv`.

    Raises `ValueError` unless the voltage is finite and positive.
    """
    volts = _volts(voltage_kv)
    return _H / np.sqrt(2 * _M0 * _E * volts * (1 + _E * volts / (2 * _M0 * _C**2))) * 1e10


def gamma(voltage_kv: float) -> float:
    """The relativistic factor m / m0 = 1 + e E / (m0 c^2) of electrons of `voltage_kv`."""
    return 1 + _E * _volts(voltage_kv) / (_M0 * _C**2)


def _volts(voltage_kv: float) -> float:
    if not (np.isfinite(voltage_kv) and voltage_kv > 0):
        raise ValueError(f"the voltage must be positive (kV), not {voltage_kv}")
    return float(voltage_kv) * 1e3
