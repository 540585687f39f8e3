"""The Chebyshev series of `propagate` in standing waves: for crystals that do not absorb and beams in pairs g, -g.

The potential of such a crystal is real, U_-g = conj(U_g), and so is its matrix between the waves c = (g + -g) / sqrt 2
and s = i (g - -g) / sqrt 2, cosines and sines in the crystal. A tilt adds e, the half sum of the diagonal at g and at
-g, to both, and the half difference o as an imaginary element: D c = e c - i o s, D s = e s + i o c. Hence

- a product is one of a real matrix with real and imaginary parts side by side; of a real U, which does not mix cosines
  and sines, one of two matrices of half the size with one real part (the sines have the other);
- the tilt -k has the conjugate matrix, so that one series, exp(i R B) e_0 = P + i Q, gives both tilts: at -k the
  amplitudes are conj(P) + i conj(Q).

The largest eigenvalue is a convex function of the tilt and the least a concave one where the diagonal is linear in it,
so what they are at a few corners bounds them between (Kato, Perturbation Theory for Linear Operators, II 6).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from mlindex.bloch.beams import Geometry

_CORNERS = 4  # of half a polygon around the tilts
_UNIT = 1e-7  # of the largest tilt: those that agree so far may be opposite ones


def beam_pairs(geometry: Geometry) -> tuple[Int[np.ndarray, " h1"], Int[np.ndarray, " h1"]] | None:
    """Places of beams g and of -g, the direct beam not among them; None where a beam has no opposite."""
    n = len(geometry.hkl)
    place = geometry.index[:, geometry.origin]
    order = np.argsort(place)
    opposite = order[np.minimum(np.searchsorted(place[order], len(geometry.dhkl) - 1 - place), n - 1)]
    if np.any(geometry.hkl[opposite] != -geometry.hkl):
        return None
    plus = np.flatnonzero(np.arange(n) < opposite)
    return plus, opposite[plus]


def tilt_pairs(
    geometry: Geometry, plus: Int[np.ndarray, " h1"], minus: Int[np.ndarray, " h1"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Places of tilts k and of -k, the same place twice for a tilt without an opposite.

    Beams of higher zones have none: their excitation at -k is not that of the opposite beam at k.
    """
    m, n = geometry.shape
    grid = np.rint(geometry.kt / (_UNIT * max(np.abs(geometry.kt).max(initial=0.0), 1e-300))).astype(np.int64)
    key = grid @ np.array([2**26, 1])
    order = np.argsort(key, kind="stable")
    mate = order[np.minimum(np.searchsorted(key[order], -key), m - 1)]
    turned = np.arange(n)
    turned[plus], turned[minus] = minus, plus
    away = np.abs(geometry.excitation[mate] - geometry.excitation[:, turned]).max(1)
    paired = away <= 4 * np.finfo(float).eps * np.abs(geometry.excitation).max()
    mate = np.where(paired & (mate[mate] == np.arange(m)), mate, np.arange(m))
    first = np.flatnonzero(np.arange(m) <= mate)
    return first, mate[first]


def standing_matrix(
    matrix: Inexact[np.ndarray, "n n"], plus: Int[np.ndarray, " h1"], minus: Int[np.ndarray, " h1"], origin: int
) -> Float[np.ndarray, ...]:
    """U between the direct beam, cosines, nothing (where the sine of 000 would be) and sines: (2h, 2h), and of a real U
    that of the cosines and that of the sines alone, (2, h, h)."""
    h = len(plus) + 1
    same, other = matrix[np.ix_(plus, plus)], matrix[np.ix_(plus, minus)]
    blocks = np.zeros((2, h, 2, h))
    blocks[0, 0, 0, 0] = matrix[origin, origin].real
    blocks[0, 1:, 0, 1:] = (same + other).real
    blocks[1, 1:, 1, 1:] = (same - other).real
    blocks[0, 1:, 0, 0] = blocks[0, 0, 0, 1:] = np.sqrt(2) * matrix[plus, origin].real
    if not np.iscomplexobj(matrix):
        return np.stack([blocks[0, :, 0], blocks[1, :, 1]])
    blocks[0, 1:, 1, 1:] = (other - same).imag
    blocks[1, 1:, 0, 1:] = (other - same).imag.T
    blocks[1, 1:, 0, 0] = blocks[0, 0, 1, 1:] = np.sqrt(2) * matrix[plus, origin].imag
    return blocks.reshape(2 * h, 2 * h)


def standing_diagonal(
    excitation: Float[np.ndarray, "m n"], plus: Int[np.ndarray, " h1"], minus: Int[np.ndarray, " h1"], origin: int
) -> Float[np.ndarray, "2 m h"]:
    """Half sums and half differences at beams and their opposites, the direct beam first."""
    beam, opposite = np.append(origin, plus), np.append(origin, minus)
    one, other = excitation[:, beam], excitation[:, opposite]
    return np.stack([one + other, one - other]) / 2


def spectrum_ends(
    matrix: Inexact[np.ndarray, "n n"], geometry: Geometry
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Lower and upper bounds (1/A^2) of the eigenvalues at each tilt, for beams in pairs in the zero-order zone.

    From the eigenvalues at no tilt and at the corners of a regular polygon around all tilts, linear between them.
    """
    size = np.linalg.norm(geometry.kt, axis=1)
    wedge = np.pi / _CORNERS
    radius = max(size.max(initial=0.0), 1e-12) / np.cos(wedge / 2)
    angle = wedge * np.arange(_CORNERS)
    corners = np.vstack([np.zeros((1, 2)), radius * np.column_stack([np.cos(angle), np.sin(angle)])])
    diagonal = -(np.sum(geometry.g**2, 1) + 2 * corners @ geometry.g[:, :2].T)
    ends = np.linalg.eigvalsh(matrix + diagonal[:, :, None] * np.eye(len(matrix)))[:, [0, -1]]
    around = np.vstack([ends[1:], ends[1]])  # the spectrum at -k is that at k
    turn = np.arctan2(geometry.kt[:, 1], geometry.kt[:, 0]) % np.pi
    sector = np.minimum((turn / wedge).astype(int), _CORNERS - 1)
    beyond = turn - sector * wedge
    share = size / (radius * np.sin(wedge)) * np.array([np.sin(wedge - beyond), np.sin(beyond)])
    bounds = share[0, :, None] * around[sector] + share[1, :, None] * around[sector + 1]
    bounds += (1 - share.sum(0))[:, None] * ends[0]
    return bounds[:, 0], bounds[:, 1]


def by_standing_waves(
    matrix: Float[Array, ...],
    half_sum: Float[Array, "h m"],
    half_difference: Float[Array, "h m"],
    coefficients: Float[Array, "terms 2 t"],
    pairs: Int[Any, ""] | int,
) -> tuple[Float[Array, "t 2 n m"], Float[Array, "t 2 n m"]]:
    """Real and imaginary part of the amplitudes at tilts k and -k, of the beams 000, g of the pairs, -g of the pairs.

    The series of `propagate.by_chebyshev`, with its coefficients and its condition that the eigenvalues lie within +-1.
    Sines stand below cosines, and imaginary parts beside real ones.
    """
    h, m = half_sum.shape
    real = matrix.ndim == 3
    columns = 1 if real else 2
    sign = jnp.array([[-1], [-1]] if real else [[-1, 1], [1, -1]], half_sum.dtype)[:, None, :, None]
    e, o = half_sum[None, :, None], half_difference[None, :, None]

    def less(x: Any, other: Any) -> Any:
        y = matrix @ (x[:, :, 0] if real else x.reshape(2 * h, 2 * m))
        return 2 * (y.reshape(x.shape) + (e * x + sign * (o * x[::-1, :, ::-1]))) - other

    def body(k: Any, carry: Any) -> Any:
        low, high, even, odd = carry
        c = coefficients[k][..., None, None, None, None]
        low = less(high, low)
        even = even + c[0] * low
        high = less(low, high)
        odd = odd + c[1] * high
        return low, high, even, odd

    first = jnp.zeros((2, h, columns, m), half_sum.dtype).at[0, 0, 0].set(1)
    second = less(first, 0 * first) / 2
    even, odd = (c[:, None, None, None, None] * x for c, x in zip(coefficients[0], (first, second), strict=True))
    _, _, even, odd = jax.lax.fori_loop(1, pairs, body, (first, second, even, odd))
    p, q = _travelling(even, real), _travelling(odd, real)
    opposite = jnp.concatenate([jnp.zeros(1, int), jnp.arange(h, 2 * h - 1), jnp.arange(1, h)])
    parts = (p[0] - q[1], (p[0] + q[1])[:, opposite]), (p[1] + q[0], (q[0] - p[1])[:, opposite])
    return jnp.stack(parts[0], 1), jnp.stack(parts[1], 1)


def _travelling(x: Any, real: bool) -> tuple[Any, Any]:
    """Real and imaginary part of the beams 000, g and -g, from those of cosines and sines."""
    scale = jnp.full((x.shape[2], 1), np.sqrt(0.5), x.dtype).at[0].set(1)
    cosine, sine = scale * x[:, 0, :, 0], scale * x[:, 1, :, -1]
    one = jnp.concatenate([cosine - sine, (cosine + sine)[:, 1:]], 1)
    if real:
        return one, jnp.zeros_like(one)
    cosine, sine = scale * x[:, 0, :, 1], scale * x[:, 1, :, 0]
    return one, jnp.concatenate([cosine + sine, (cosine - sine)[:, 1:]], 1)
