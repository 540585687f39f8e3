"""Which line is which reflection: a table look-up that screens millions of cells, and the nearest reference line.

Screening turns the usual loop round. Instead of comparing every line with every reflection, the q axis is cut into
bins that know, as bits, which lines lie within tolerance; each reflection of a candidate costs one look-up, and the
bits of all its reflections together say which lines it explains.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from mlindex.crystal.metric import metric_determinant

BINS = 8192
TILE = 4096  # candidates screened together: bounds the memory at TILE x reflections
MOST_LINES = 32  # bits of a word

# Mean number of reciprocal nodes that share a line, as a fraction of a half sphere of nodes
NODES_PER_REFLECTION = {
    "cubic": 20.0,
    "tetragonal": 8.0,
    "hexagonal": 9.5,
    "rhombohedral": 5.7,
    "orthorhombic": 3.4,
    "monoclinic": 1.75,
    "triclinic": 1.0,
}


def line_table(
    q: Float[np.ndarray, " n"], tolerance: Float[np.ndarray, " n"]
) -> tuple[UInt32[np.ndarray, " bins"], np.float32]:
    """Bit i is set in every bin within `tolerance` of line i (at most 32 lines); and the bins per unit of q.

    The last bin, where everything beyond the last line falls, is empty.
    """
    if len(q) > MOST_LINES:
        raise ValueError(f"a table holds {MOST_LINES} lines, got {len(q)}")
    scale = (BINS - 2) / (q[-1] + 2 * tolerance[-1])
    centre = (np.arange(BINS) + 0.5) / scale
    table = np.zeros(BINS, np.uint32)
    for bit, (position, width) in enumerate(zip(q, tolerance, strict=True)):
        table[np.abs(centre - position) <= max(width, 0.5 / scale)] |= np.uint32(1 << bit)
    table[-1] = 0
    return table, np.float32(scale)


def explained(
    g: Float[Array, "t 6"], products: Float[Array, "m 6"], table: UInt32[Array, " bins"], scale: Float[Array, ""]
) -> UInt32[Array, " t"]:
    """The lines, as bits, that each candidate explains."""
    q2 = sum(g[:, i, None] * products[None, :, i] for i in range(6))
    bins = jnp.clip((jnp.sqrt(jnp.maximum(q2, 0)) * scale).astype(jnp.int32), 0, BINS - 1)
    return jax.lax.reduce(table[bins], np.uint32(0), jax.lax.bitwise_or, (1,))


@jax.jit
def screen(
    g: Float[Array, "k 6"],
    products: Float[Array, "m 6"],
    table: UInt32[Array, " bins"],
    scale: Float[Array, ""],
    expected: Float[Array, " n"],
) -> Float[Array, " k"]:
    """How unlikely it is that a random cell of its volume explains what each candidate explains, in nats.

    `expected` * V is the mean number of reflections that fall within the tolerance of each line by chance, so a line
    that is explained counts -ln(1 - exp(-expected V)): little in the dense part of the pattern or for a large cell.
    """

    def tile(g: Float[Array, "t 6"]) -> Float[Array, " t"]:
        bits = explained(g, products, table, scale)
        volume = jax.lax.rsqrt(metric_determinant(g))
        weight = -jnp.log(-jnp.expm1(-volume[:, None] * expected))
        seen = (bits[:, None] >> jnp.arange(expected.shape[0], dtype=jnp.uint32)) & 1
        return jnp.sum(seen * weight, 1)

    return jax.lax.map(tile, g.reshape(-1, TILE, 6)).reshape(-1)


def nearest(q2: Float[Array, " n"], q2_ref: Float[Array, " m"]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """For each line the index of the nearest reference line and the signed difference q2 - q2_ref.

    The index rides in the low bits of the distance, so that the minimum is one reduction over integers, which
    vectorises; the distance is compared to 1 part in 2^(23 - bits of the index), far below any error of a line.
    """
    count = q2_ref.shape[0]
    low = (1 << (count - 1).bit_length()) - 1
    distance = jnp.abs(q2[:, None] - q2_ref[None, :])
    key = (jax.lax.bitcast_convert_type(distance, jnp.int32) & ~low) | jnp.arange(count, dtype=jnp.int32)
    index = jnp.min(key, 1) & low
    return index, q2 - q2_ref[index]
