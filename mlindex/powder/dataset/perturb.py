"""Cells near a known one, of the same lattice in the same standard setting.

A metric is described by numbers without bounds: the logarithms of the diagonal elements of g and the inverse
hyperbolic tangents of the cosines of the reciprocal angles. Standardised and turned to their singular directions over
the training entries of a Bravais lattice, each is moved by a normal of some share (0.2) of its spread: the SVD
perturbation of the write-up of ML-Index (section 2.1.5). Of `DRAWS` trials the first is taken that is a cell in the
standard setting, so that its indices and absences stay those of the entry; the cell itself where none is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import inverted_metric

DRAWS = 16
_CROSS = {4: ((0, 2),), 6: ((1, 2), (0, 2), (0, 1))}  # the axes of each free parameter after the third


def _net_bases() -> NDArray[np.int64]:
    """Other bases (k, 4) of the net perpendicular to b, a' = m a + n c, c' = p a + q c, that keep the C centring."""
    values = np.arange(-2, 3)
    m, n, p, q = (x.ravel() for x in np.meshgrid(values, values, values, values, indexing="ij"))
    keep = (m * q - n * p == 1) & (m % 2 == 1) & (n % 2 == 0)
    return np.stack([m, n, p, q], 1)[keep]


_NET_BASES = _net_bases()


def unbounded_from_free(x: Float[Any, "... p"]) -> Float[Any, "... p"]:
    """(log g11, ...; artanh of the reciprocal cosines) of free parameters; NumPy or JAX arrays."""
    xp = x.__array_namespace__()
    n = min(x.shape[-1], 3)
    parts = [xp.log(x[..., :n])]
    for k, (i, j) in enumerate(_CROSS.get(x.shape[-1], ())):
        cosine = x[..., 3 + k] / (2 * xp.sqrt(x[..., i] * x[..., j]))
        parts.append(xp.arctanh(xp.clip(cosine, -0.999, 0.999))[..., None])
    return xp.concatenate(parts, -1)


def free_from_unbounded(y: Float[Any, "... p"]) -> Float[Any, "... p"]:
    """The inverse of `unbounded_from_free`."""
    xp = y.__array_namespace__()
    n = min(y.shape[-1], 3)
    diagonal = xp.exp(y[..., :n])
    parts = [diagonal]
    for k, (i, j) in enumerate(_CROSS.get(y.shape[-1], ())):
        cross = 2 * xp.sqrt(diagonal[..., i] * diagonal[..., j]) * xp.tanh(y[..., 3 + k])
        parts.append(cross[..., None])
    return xp.concatenate(parts, -1)


def spread(x: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "p p"]:
    """The matrix S (p, p): S @ standard normals is a step of one standard deviation along each singular direction."""
    y = unbounded_from_free(np.asarray(x, np.float64))
    if len(y) < 2:
        return np.eye(x.shape[1]) * 0.3
    scale = np.maximum(y.std(0), 1e-3)
    scaled = (y - y.mean(0)) / scale
    _, _, directions = np.linalg.svd(scaled, full_matrices=False)
    deviation = (scaled @ directions.T).std(0)
    steps = directions.T * deviation
    full = np.zeros((x.shape[1], x.shape[1]))
    full[:, : steps.shape[1]] = steps
    return full * scale[:, None]


def is_standard(x: Float[Array, "... p"], bravais: str) -> Bool[Array, " ..."]:
    """True where free parameters are those of a cell in the standard setting of the lattice.

    Axes in order, the monoclinic angle obtuse and the least oblique, the triclinic cell Niggli's (its inequalities; the
    rules for equalities do not matter for cells at random). Positive definite in every case.
    """
    lattice = BRAVAIS[bravais]
    slack = 1 + 1e-5
    positive = jnp.all(x[..., : min(x.shape[-1], 3)] > 0, -1)
    if lattice.n_free < 3:
        return positive
    d = inverted_metric(x @ jnp.asarray(SYSTEMS[lattice.system].embed.T, x.dtype))
    aa, bb, cc = d[..., 0], d[..., 1], d[..., 2]
    positive &= (aa > 0) & (bb > 0) & (cc > 0)
    if lattice.system == "orthorhombic":
        return positive & (aa <= bb * slack) & ((bb <= cc * slack) | (bravais == "oS"))
    if lattice.system == "monoclinic":
        ac = d[..., 4] / 2
        positive &= (aa * cc > ac * ac) & (ac <= 1e-6 * aa)
        if bravais == "mP":
            return positive & (aa <= cc * slack) & (-2 * ac <= aa * slack)
        bases = jnp.asarray(_NET_BASES, x.dtype).reshape(*(1,) * aa.ndim, -1, 4)
        m, n, p, q = (bases[..., i] for i in range(4))
        a1, c1, x1 = aa[..., None], cc[..., None], ac[..., None]
        other = jnp.abs(m * p * a1 + n * q * c1 + (m * q + n * p) * x1) / jnp.sqrt(
            (m * m * a1 + 2 * m * n * x1 + n * n * c1) * (p * p * a1 + 2 * p * q * x1 + q * q * c1)
        )
        return positive & (jnp.abs(ac) / jnp.sqrt(aa * cc) <= other.min(-1) + 1e-5)
    xi, eta, zeta = d[..., 3], d[..., 4], d[..., 5]
    determinant = aa * bb * cc + xi * eta * zeta / 4 - (aa * xi**2 + bb * eta**2 + cc * zeta**2) / 4
    bounds = (aa <= bb * slack) & (bb <= cc * slack)
    bounds &= (jnp.abs(xi) <= bb * slack) & (jnp.abs(eta) <= aa * slack) & (jnp.abs(zeta) <= aa * slack)
    tiny = 1e-5 * aa
    acute = (xi > -tiny) & (eta > -tiny) & (zeta > -tiny)
    obtuse = (xi <= tiny) & (eta <= tiny) & (zeta <= tiny) & (xi + eta + zeta + aa + bb >= -tiny)
    return positive & (determinant > 1e-6 * aa * bb * cc) & bounds & (acute | obtuse)


def perturbed(
    key: PRNGKeyArray, x: Float[Array, "b p"], steps: Float[Array, "p p"], share: Any, bravais: str
) -> Float[Array, "b p"]:
    """Free parameters near `x`: `steps` is what `spread` gives, `share` how many standard deviations (0: none)."""
    draws = jax.random.normal(key, (DRAWS, *x.shape), x.dtype)
    trial = free_from_unbounded(unbounded_from_free(x)[None] + share * draws @ steps.T.astype(x.dtype))
    good = is_standard(trial, bravais)
    first = jnp.argmax(good, axis=0)
    chosen = jnp.take_along_axis(trial, first[None, :, None], axis=0)[0]
    return jnp.where((jnp.any(good, axis=0) & (share > 0))[:, None], chosen, x)
