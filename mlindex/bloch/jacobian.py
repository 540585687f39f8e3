"""Intensities of a Bloch-wave pattern and their exact derivatives with respect to structure factors and thickness.

The derivative of exp(i s A) along dA is V [(V^+ dA V) * Phi] V^+ with Phi the divided differences of exp(i s w) at the
eigenvalues w. Written as i s exp(i s (w_a + w_b) / 2) sinc(s (w_a - w_b) / 2) these have no denominator, and are exact
where eigenvalues coincide, as they do on every symmetric tilt, and where differentiating the eigenvectors fails.

Source: Najfeld & Havel, Adv. Appl. Math. 16 (1995) 321 (Daleckii-Krein formula).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float
from numpy.typing import NDArray

from mlindex.bloch.beams import Geometry


class Unknowns(NamedTuple):
    """How the parameters of an inversion fill the structure matrix: arrays of indices, the same for all tilts.

    Parameters are Re U of the differences in the upper half of `Geometry.dhkl`, then Im U of the same; U_-g is
    the conjugate and the mean U_000, a phase common to all beams, is zero. `place` (n, n) is the difference of each
    element of the matrix, `sign` (n, n) is 1, -1 (conjugate) or 0; `rows`, `columns`, `group` (n (n - 1) / 2) are the
    elements with sign 1, sorted by difference. `origin` is the place of the direct beam.
    """

    place: NDArray[np.int64]
    sign: NDArray[np.float64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    group: NDArray[np.int64]
    origin: int


def unknowns(geometry: Geometry) -> Unknowns:
    """The unknowns of a pattern: all distinct differences of its beams."""
    middle = len(geometry.dhkl) // 2
    at = geometry.index - middle
    rows, columns = np.nonzero(at > 0)
    group = at[rows, columns] - 1
    order = np.argsort(group, kind="stable")
    return Unknowns(
        np.abs(at) - (at != 0),
        np.sign(at).astype(np.float64),
        rows[order],
        columns[order],
        group[order],
        geometry.origin,
    )


def u_from_parameters(x: Float[np.ndarray, " p"]) -> Complex[np.ndarray, " d"]:
    """U at `Geometry.dhkl` from Re U and Im U of its upper half."""
    half = x[: len(x) // 2] + 1j * x[len(x) // 2 :]
    return np.concatenate([half[::-1].conj(), [0.0], half])


def parameters_from_u(u: Complex[np.ndarray, " d"]) -> Float[np.ndarray, " p"]:
    """Re U and Im U of the upper half, of U at `Geometry.dhkl` (the Hermitian part of it)."""
    half = (u + u[::-1].conj())[len(u) // 2 + 1 :] / 2
    return np.concatenate([half.real, half.imag])


def _waves(x: Any, phase: Any, diagonal: Any, how: Unknowns) -> tuple[Any, ...]:
    real, imaginary = jnp.split(x, 2)
    value = real[how.place] * jnp.abs(how.sign) + 1j * imaginary[how.place] * how.sign
    w, v = jnp.linalg.eigh(value + jnp.diag(diagonal), symmetrize_input=False)
    turned = jnp.exp(1j * phase * w)
    start = v[how.origin].conj()
    return v @ (turned * start), w, v, turned, start


def intensity(x: Float[Any, " p"], phase: Any, diagonal: Float[Any, " n"], how: Unknowns) -> Float[Array, " n"]:
    """|psi|^2 of the beams at one tilt; `phase` = pi t / k0 (A^2), `diagonal` the excitation of the beams (1/A^2)."""
    psi = _waves(x, phase, diagonal, how)[0]
    return jnp.abs(psi) ** 2


def intensity_and_jacobian(
    x: Float[Any, " p"], phase: Any, diagonal: Float[Any, " n"], how: Unknowns
) -> tuple[Float[Array, " n"], Float[Array, "n p1"]]:
    """|psi|^2 of the beams at one tilt and its derivatives along x and, in the last column, `phase`."""
    psi, w, v, turned, start = _waves(x, phase, diagonal, how)
    count = x.shape[0] // 2
    gap = phase * (w[:, None] - w[None]) / 2
    mean = jnp.exp(0.5j * phase * (w[:, None] + w[None]))
    divided = 1j * phase * mean * jnp.sinc(gap / jnp.pi)
    right = (divided * start) @ v.T  # a, q
    back = psi.conj()
    left = (back[:, None] * v)[:, None] * v.conj()[None]  # m, p, a
    change = left @ right  # conj(psi_m) dpsi_m / dA_pq
    up, down = change[:, how.rows, how.columns].T, change[:, how.columns, how.rows].T
    both = jnp.stack([(up + down).real, -(up - down).imag])
    by_u = jax.vmap(lambda c: jax.ops.segment_sum(c, how.group, count, indices_are_sorted=True))(both)
    by_phase = (back * (v @ (1j * w * turned * start))).real
    jacobian = 2 * jnp.concatenate([by_u.reshape(2 * count, -1).T, by_phase[:, None]], 1)
    return jnp.abs(psi) ** 2, jacobian
