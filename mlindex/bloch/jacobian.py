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
from mlindex.bloch.symmetry import Tie, untied


class Unknowns(NamedTuple):
    """How the parameters of an inversion fill the structure matrix: arrays of indices, the same for all tilts.

    Parameters are Re U of k orbits of differences in the upper half of `Geometry.dhkl` (see `Tie`), then Im U of the
    same, unless all of them vanish; U_-g is the conjugate and the mean U_000, a phase common to all beams, is zero.
    `place` (n, n) is the orbit of each element of the matrix, `real` and `imaginary` (n, n) the signs with which Re U
    and Im U are there. `rows`, `columns` (n (n - 1) / 2) are the elements whose difference is in the upper half, sorted
    by orbit, `group` their orbits, `with_real` and `with_imaginary` their signs. `imaginary` and `with_imaginary` are
    None for real U. `origin` is the place of the direct beam.
    """

    place: NDArray[np.int64]
    real: NDArray[np.float64]
    imaginary: NDArray[np.float64] | None
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    group: NDArray[np.int64]
    with_real: NDArray[np.float64]
    with_imaginary: NDArray[np.float64] | None
    origin: int


def unknowns(geometry: Geometry, tie: Tie | None = None) -> Unknowns:
    """The unknowns of a pattern: all distinct differences of its beams, or the orbits of a symmetry."""
    chosen = untied(geometry) if tie is None else tie
    middle = len(geometry.dhkl) // 2
    at = geometry.index - middle
    half = np.abs(at) - (at != 0)
    above = np.sign(at).astype(np.float64)
    # A pattern of the direct beam alone has no difference
    orbit, real, imaginary = (np.append(a, 0)[half] for a in (chosen.orbit, chosen.real, chosen.imaginary))
    rows, columns = np.nonzero(at > 0)
    order = np.argsort(orbit[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    is_real = not chosen.imaginary.any()
    return Unknowns(
        orbit,
        real * np.abs(above),
        None if is_real else imaginary * above,
        rows,
        columns,
        orbit[rows, columns],
        real[rows, columns].astype(np.float64),
        None if is_real else imaginary[rows, columns].astype(np.float64),
        geometry.origin,
    )


def u_from_parameters(x: Float[np.ndarray, " p"], tie: Tie) -> Complex[np.ndarray, " d"]:
    """U at `Geometry.dhkl` from Re U and Im U of the orbits."""
    half = tie.real * x[: tie.count][tie.orbit]
    if len(x) > tie.count:
        half = half + 1j * tie.imaginary * x[tie.count :][tie.orbit]
    return np.concatenate([half[::-1].conj(), [0.0], half]).astype(np.complex128)


def parameters_from_u(u: Complex[np.ndarray, " d"], tie: Tie) -> Float[np.ndarray, " p"]:
    """Re U and Im U of the orbits, of U at `Geometry.dhkl` (the means of what should be equal)."""
    half = (u + u[::-1].conj())[len(u) // 2 + 1 :] / 2
    size = np.maximum(np.bincount(tie.orbit, minlength=tie.count), 1)
    parts = [np.bincount(tie.orbit, tie.real * half.real, tie.count) / size]
    if tie.imaginary.any():
        parts.append(np.bincount(tie.orbit, tie.imaginary * half.imag, tie.count) / size)
    return np.concatenate(parts)


def _waves(x: Any, phase: Any, diagonal: Any, how: Unknowns) -> tuple[Any, ...]:
    if how.imaginary is None:  # real symmetric: the eigenvectors are real
        matrix = x[how.place] * how.real
    else:
        real, imaginary = jnp.split(x, 2)
        matrix = real[how.place] * how.real + 1j * imaginary[how.place] * how.imaginary
    w, v = jnp.linalg.eigh(matrix + jnp.diag(diagonal), symmetrize_input=False)
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
    count = x.shape[0] // (1 if how.imaginary is None else 2)
    gap = phase * (w[:, None] - w[None]) / 2
    half = jnp.exp(0.5j * phase * w)
    divided = 1j * phase * (half[:, None] * half) * jnp.sinc(gap / jnp.pi)
    # dpsi = V z, z_a = sum_pq conj(V_pa) dA_pq R_qa: the sum over the elements that an unknown fills comes first
    left, right = v.conj(), v @ (divided * start).T  # p, a; q, a

    def summed(terms: Any) -> Any:
        return jax.ops.segment_sum(terms, how.group, count, indices_are_sorted=True)

    up, down = left[how.rows] * right[how.columns], left[how.columns] * right[how.rows]
    z = summed(how.with_real[:, None] * (up + down))
    if how.with_imaginary is not None:
        z = jnp.concatenate([z, 1j * summed(how.with_imaginary[:, None] * (up - down))])
    z = jnp.concatenate([z, (1j * w * turned * start)[None]])
    return jnp.abs(psi) ** 2, 2 * ((z @ v.T) * psi.conj()).real.T
