"""Dynamical intensities: psi = exp(2 pi i t A / (2 k0)) e_0 at the exit of a slab, I = |psi|^2, for a batch of tilts.

A = U + diag(excitation), A_pq = U_(g_p - g_q), is the structure matrix in 1/A^2; the tilts share U and differ in the
diagonal. Three ways to the same result:

- `by_eigenvectors`: A = V diag(w) V^+, all thicknesses for one decomposition; A must be Hermitian.
- `by_squaring`: exp by Taylor polynomial, scaling and squaring; A may absorb (not be Hermitian).
- `by_chebyshev`: the exponential applied to e_0 alone, a Chebyshev series in products of U with all tilts at once; all
  thicknesses for one series; A may absorb a little. Without absorption, and with beams in pairs g, -g, the same in
  real numbers and for two tilts at once: `standing.by_standing_waves`.

The kernels are pure and keep the dtype of what they get. `intensities` chooses and compiles.

Sources: Bethe, Ann. Phys. 392 (1928) 55; Sturkey, Proc. Phys. Soc. 80 (1962) 321 (the exponential); Higham, Functions
of Matrices (SIAM 2008), section 10.3; Tal-Ezer & Kosloff, J. Chem. Phys. 81 (1984) 3967 (the series).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact, Int

from mlindex.bloch import standing
from mlindex.bloch.beams import Geometry

Method = Literal["eigenvectors", "squaring", "chebyshev"]
_SQUARED_NORM = 0.5  # of the matrix whose exponential is a Taylor polynomial of _ORDER: remainder 0.5^13 / 13! = 2e-14
_ORDER = 12
_CACHED = 8000  # numbers of a vector of a part of the series on a CPU
_TOLERANCE = 1e-14  # of the rest of a series
_WORTH = 500  # tilts times half of what U can add to the range of eigenvalues, a beam, where closer bounds pay


def structure_matrix(u: Inexact[Any, "*b d"], geometry: Geometry) -> Inexact[Any, "*b n n"]:
    """U_(g_p - g_q) in 1/A^2, from the values at `geometry.dhkl`; the excitation on the diagonal is not added."""
    return u[..., geometry.index]


def phase_from_thickness(thickness: Any, k0: float) -> Any:
    """2 pi t / (2 k0) in A^2, the factor of A in the exponential, for a thickness in A."""
    return np.pi / k0 * thickness


def by_eigenvectors(
    matrix: Inexact[Array, "n n"],
    excitation: Float[Array, "m n"],
    phase: Float[Array, " t"],
    origin: Int[Any, ""] | int,
) -> Complex[Array, "t m n"]:
    """Amplitudes by the eigenvectors of the Hermitian matrix + diag(excitation) of each tilt."""
    w, v = jnp.linalg.eigh(matrix + jax.vmap(jnp.diag)(excitation), symmetrize_input=False)
    start = v[:, origin, :].conj()
    wave = jnp.exp(1j * phase[:, None, None] * w) * start
    return jnp.einsum("mpj,tmj->tmp", v, wave)


def by_squaring(
    matrix: Inexact[Array, "n n"],
    excitation: Float[Array, "m n"],
    phase: Float[Array, " t"],
    origin: Int[Any, ""] | int,
    squarings: Int[Any, ""] | int,
) -> Complex[Array, "t m n"]:
    """Amplitudes by exp(i phase A) = (p(i phase A / 2^s))^(2^s), p the Taylor polynomial of degree 12 in
    Paterson-Stockmeyer form (four products of matrices).

    `squarings` is 1 at least, and 2^squarings at least twice the norm of phase A; `amplitudes` sees to it.
    """

    def one(diagonal: Any, factor: Any) -> Any:
        x = (1j * factor / 2**squarings) * (matrix + jnp.diag(diagonal))
        eye = jnp.eye(len(matrix), dtype=x.dtype)
        x2 = x @ x
        x3 = x2 @ x
        c = [1 / math.factorial(k) for k in range(_ORDER + 1)]
        p = c[12] * x3 + c[11] * x2 + c[10] * x + c[9] * eye
        for k in (6, 3, 0):
            p = x3 @ p + c[k + 2] * x2 + c[k + 1] * x + c[k] * eye
        # The last squaring is of one column alone: exp e_0 = half (half e_0)
        half = jax.lax.fori_loop(1, squarings, lambda _, q: q @ q, p)
        return half @ half[:, origin]

    return jax.vmap(jax.vmap(one, (0, None)), (None, 0))(excitation, phase)


def by_chebyshev(
    matrix: Inexact[Array, "n n"],
    diagonal: Float[Array, "n m"],
    coefficients: Float[Array, "pairs 2 t"],
    pairs: Int[Any, ""] | int,
    origin: Int[Any, ""] | int,
) -> tuple[Inexact[Array, "t n m"], Inexact[Array, "t n m"]]:
    """Amplitudes exp(i R B) e_0 = sum_k (2 - delta_k0) i^k J_k(R) T_k(B) e_0 for B = matrix + diag(diagonal), whose
    eigenvalues must lie within +-1: P and Q of psi = P + i Q, beams by tilts.

    `coefficients` from `series`, of which the first `pairs` are summed. P and Q are real where the matrix is real.
    """

    def product(x: Any) -> Any:
        return matrix @ x + diagonal * x

    def body(k: Any, carry: Any) -> Any:
        low, high, even, odd = carry
        c = coefficients[k]
        low = 2 * product(high) - low
        even = even + c[0][:, None, None] * low
        high = 2 * product(low) - high
        odd = odd + c[1][:, None, None] * high
        return low, high, even, odd

    first = jnp.zeros(diagonal.shape, matrix.dtype).at[origin].set(1)
    second = product(first)
    even, odd = (c[:, None, None] * x for c, x in zip(coefficients[0], (first, second), strict=True))
    _, _, even, odd = jax.lax.fori_loop(1, pairs, body, (first, second, even, odd))
    return even, odd


def series(
    reach: Float[np.ndarray, " t"], tolerance: float = _TOLERANCE, growth: float = 0.0
) -> Float[np.ndarray, "pairs 2 t"]:
    """(2 - delta_k0) J_k(R) with the signs of i^k, without the i of odd k, for each R in `reach`: as many as leave a
    rest below `tolerance` where |T_k| <= exp(k growth).

    They are the coefficients of z^k in exp(i R (z + 1/z) / 2), from its values on the circle |z| = exp(growth), where
    those of all k that matter are of a size (Abramowitz & Stegun 9.1.41).
    """
    top = float(np.max(reach, initial=0.0))
    # J_k(R) falls faster than exponentially beyond k = R, over a width of R^(1/3)
    terms = 2 * math.ceil((top * (1 + growth) + 12 * (top + 1) ** (1 / 3) + 20) * (1 + growth) / 2)
    size = 2 ** math.ceil(math.log2(2 * terms))
    z = np.exp(growth + 2j * np.pi / size * np.arange(size))[:, None]
    values = np.exp(0.5j * np.asarray(reach) * (z + 1 / z))
    grown = np.fft.fft(values, axis=0)[:terms] / size
    grown[1:] *= 2
    floor = np.finfo(float).eps * np.abs(values).max(initial=1.0)  # of the errors of the transform
    pairs = np.flatnonzero(np.abs(grown).max(1, initial=0.0) > max(tolerance, floor))[-1] // 2 + 1
    kept = grown[: 2 * pairs] * np.exp(-growth * np.arange(2 * pairs))[:, None]
    return np.stack([kept[::2].real, kept[1::2].imag], 1)


def choose(
    n: int, terms: float, thicknesses: int = 1, *, real: bool = False, paired: bool = False, device: str = "cpu"
) -> Method:
    """The fastest way for `n` beams, a series of `terms` and so many thicknesses; only for Hermitian matrices.

    `paired`: the beams are in pairs g, -g.

    On a CPU by the times that `benchmarks/speed/bloch.py` found on one core, in microseconds a tilt of a large batch,
    within a factor of 1.5 from 13 to 97 beams: each term is a product of a matrix and a vector. On other devices
    nothing was measured; the series is taken, because it is products of matrices alone.
    """
    if device != "cpu":
        return "chebyshev"
    if paired:  # and as if no tilt had its opposite
        cost = terms * n * ((1e-3 + 1.8e-5 * n) if real else (1.8e-3 + 7e-5 * n) + 4e-4 * (thicknesses - 1))
    else:
        cost = terms * (2e-4 * n**2 + 6e-3 * n + 2e-3 * n * thicknesses) / (4.5 if real else 1)
    other = (1.2e-3 * n**3 + 0.1 * n**2) / (1.7 if real else 1) + 5e-4 * n**2 * thicknesses
    return "chebyshev" if cost < other else "eigenvectors"


def _travelling_parts(every: Any, origin: Any, squared: bool) -> Any:
    """`by_chebyshev` of one part of the tilts after the other: parts, thicknesses, 1, beams, tilts."""

    def one(part: Any) -> Any:
        p, q = by_chebyshev(part[0], part[1], part[2], part[3], origin)
        return _seen(p.real - q.imag, p.imag + q.real, squared)[:, None]

    return jax.lax.map(one, every)


def _standing_parts(every: Any, squared: bool) -> Any:
    """`by_standing_waves` of one part after the other: parts, thicknesses, tilts k and -k, beams, tilts."""
    return jax.lax.map(lambda part: _seen(*standing.by_standing_waves(*part), squared), every)


def _seen(real: Any, imaginary: Any, squared: bool) -> Any:
    return real**2 + imaginary**2 if squared else real + 1j * imaginary


_eigenvectors, _squaring = jax.jit(by_eigenvectors), jax.jit(by_squaring)
_travelling = jax.jit(_travelling_parts, static_argnums=2)
_standing = jax.jit(_standing_parts, static_argnums=1)


def amplitudes(
    u: Inexact[np.ndarray, " d"],
    geometry: Geometry,
    thickness: Any,
    *,
    method: Method | None = None,
    single: bool = False,
) -> Complex[np.ndarray, "*t m n"]:
    """The amplitudes of the beams at the exit face, (m, n) for one thickness (A) and (t, m, n) for several.

    `u` (1/A^2) at `geometry.dhkl`, U + i U' where there is absorption; it is Hermitian when u[d - 1 - i] = conj(u[i]).
    `single`: in complex64. `method` None: the fastest for Hermitian u, `squaring` for others that absorb much.
    Raises `ValueError` for u of another length, thicknesses that are negative or not finite, and `eigenvectors` of a
    matrix that is not Hermitian.
    """
    return _seen_at(u, geometry, thickness, method, single, False)


def intensities(
    u: Inexact[np.ndarray, " d"],
    geometry: Geometry,
    thickness: Any,
    *,
    method: Method | None = None,
    single: bool = False,
) -> Float[np.ndarray, "*t m n"]:
    """|psi|^2 of `amplitudes`, tilts by beams; without absorption the beams of a tilt sum to 1."""
    return _seen_at(u, geometry, thickness, method, single, True)


def _seen_at(
    u: np.ndarray, geometry: Geometry, thickness: Any, method: Method | None, single: bool, squared: bool
) -> np.ndarray:
    """`intensities` where they are wanted `squared`, or `amplitudes`."""
    values, depth = np.asarray(u), np.atleast_1d(np.asarray(thickness, np.float64))
    if values.shape != (len(geometry.dhkl),):
        raise ValueError(f"{len(geometry.dhkl)} structure factors are needed, one a difference of beams, not {u.shape}")
    if depth.ndim > 1 or not np.all(np.isfinite(depth) & (depth >= 0)):
        raise ValueError(f"thicknesses must be finite and not negative (A), not {thickness}")
    with jax.enable_x64(not single):
        found = _propagate(structure_matrix(values, geometry), geometry, depth, method, single, squared)
    return found if np.ndim(thickness) else found[0]


def _propagate(
    matrix: np.ndarray, geometry: Geometry, depth: np.ndarray, method: Method | None, single: bool, squared: bool
) -> np.ndarray:
    phase = phase_from_thickness(depth, geometry.k0)
    hermitian = (matrix + matrix.conj().T) / 2
    absorbing = (matrix - hermitian) / 1j
    loss = (
        float(np.linalg.norm(absorbing, 2)) if np.abs(absorbing).max() > 1e-12 * (1e-12 + np.abs(matrix).max()) else 0.0
    )
    if method == "eigenvectors" and loss:
        raise ValueError("these structure factors absorb (u at -g is not the conjugate of u at g); use another method")
    if not np.abs(hermitian.imag).max() > 1e-15 * np.abs(hermitian.real).max():
        hermitian = hermitian.real  # centrosymmetric about the origin: four times cheaper
    if not loss:
        matrix = hermitian
    beams = None if loss else standing.beam_pairs(geometry)
    # Weyl: the eigenvalues of a sum lie within the sum of the ranges
    low, *_, high = np.linalg.eigvalsh(hermitian)[[0, -1]]
    below, above = geometry.excitation.min(1) + low, geometry.excitation.max(1) + high
    longest = phase.max(initial=0.0)
    if method is None:
        real, terms = not np.iscomplexobj(matrix), float((above - below).max() / 2 * longest) + 30
        best = choose(len(matrix), terms, len(depth), real=real, paired=beams is not None, device=jax.default_backend())
        method = best if not loss else "chebyshev" if loss * longest < 3 else "squaring"
    if method == "chebyshev":
        worth = len(below) * (high - low) * longest > _WORTH * len(matrix)
        if beams and worth and not np.any(np.abs(geometry.g[:, 2]) > 1e-12):
            closer = standing.spectrum_ends(matrix, geometry)
            below, above = np.maximum(below, closer[0]), np.minimum(above, closer[1])
        return _by_series(matrix, geometry, phase, (below, above), beams, loss, single, squared)
    real_type, complex_type = (np.float32, np.complex64) if single else (np.float64, np.complex128)
    given = jnp.asarray(geometry.excitation, real_type), jnp.asarray(phase, real_type), geometry.origin
    if method == "squaring":
        norm = (np.maximum(np.abs(below), np.abs(above)).max() + loss) * longest
        squarings = max(1, math.ceil(math.log2(norm / _SQUARED_NORM))) if norm else 1
        psi = np.asarray(_squaring(jnp.asarray(matrix, complex_type), *given, squarings))
    else:
        kind = complex_type if np.iscomplexobj(matrix) else real_type
        psi = np.asarray(_eigenvectors(jnp.asarray(matrix, kind), *given))
    return psi.real**2 + psi.imag**2 if squared else psi


def _by_series(
    matrix: np.ndarray,
    geometry: Geometry,
    phase: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    beams: tuple[np.ndarray, np.ndarray] | None,
    loss: float,
    single: bool,
    squared: bool,
) -> np.ndarray:
    """The series for tilts with eigenvalues between the `ends`, in parts of like range; standing waves of `beams`."""
    m, n = geometry.shape
    real, complex_type = (np.float32, np.complex64) if single else (np.float64, np.complex128)
    pairs = standing.tilt_pairs(geometry, *beams) if beams else (np.arange(m),)
    columns = len(pairs[0]) * (2 if beams and np.iscomplexobj(matrix) else 1)
    # On a CPU a part stays in the nearest cache; a small range needs fewer terms than a large one
    parts = max(1, math.ceil(columns * n / _CACHED)) if jax.default_backend() == "cpu" else 1
    width, middle = ends[1] - ends[0], (ends[0] + ends[1]) / 2
    order = np.argsort(width[pairs[0]], kind="stable")
    rows = np.pad(order, (0, -len(order) % parts), mode="edge").reshape(parts, -1)
    tilts = pairs[0][rows]
    # An eigenvalue with an imaginary part must not lie at the end of the interval, where T_k grows fastest beside it
    radius = np.maximum(width[tilts].max(1) / 2 * (1.1 if loss else 1.0), 1e-12)
    sums = [series(phase * r, 1e-8 if single else _TOLERANCE, 2.5 * loss / float(r)) for r in radius]
    longest = max(map(len, sums))
    coefficients = np.zeros(
        (parts, max(32, 2 ** math.ceil(math.log2(longest))), 2, len(phase))
    )  # few shapes to compile
    for k, one in enumerate(sums):
        coefficients[k, : len(one)] = one
    terms = jnp.asarray(coefficients, real), np.array([len(one) for one in sums])
    diagonal = (geometry.excitation - middle[:, None])[tilts] / radius[:, None, None]
    if beams:
        matrix = standing.standing_matrix(matrix, *beams, geometry.origin)
        halves = standing.standing_diagonal(diagonal.reshape(-1, n), *beams, geometry.origin)
        halves = halves.reshape(2, parts, -1, halves.shape[-1]).swapaxes(2, 3)
        scaled = jnp.asarray(matrix / radius.reshape(-1, *[1] * matrix.ndim), real)
        found = _standing((scaled, jnp.asarray(halves[0], real), jnp.asarray(halves[1], real), *terms), squared)
        place = np.argsort(np.concatenate([[geometry.origin], *beams]))
    else:
        scaled = jnp.asarray(matrix / radius[:, None, None], complex_type if np.iscomplexobj(matrix) else real)
        diagonal = jnp.asarray(diagonal.swapaxes(1, 2), real)
        found = _travelling((scaled, diagonal, *terms), geometry.origin, squared)
        place = np.arange(n)
    # parts, thicknesses, k and -k, beams, tilts
    ordered = np.asarray(found).take(place, 3).transpose(2, 1, 0, 4, 3).reshape(len(pairs), len(phase), -1, n)
    out = np.empty((len(phase), m, n), ordered.dtype)
    for tilt, one in zip(pairs[::-1], ordered[::-1], strict=True):  # where -k is no tilt, what stands at k is replaced
        out[:, tilt[rows.ravel()]] = one
    return out if squared else out * np.exp(1j * phase[:, None] * middle)[..., None].astype(complex_type)
