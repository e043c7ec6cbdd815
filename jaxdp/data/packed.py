# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths without padding, on the host or on a device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows end to end: row i is values[offsets[i] : offsets[i] + lengths[i]].

    Holds token ids ([tokens] int32), cached hidden states ([tokens, H]) and cached features
    ([rows, H], every length 1) alike, so that training and prediction read
    all of them in one way. A pytree: `jax.device_put` moves it, and `gather` works inside jit.
    """

    values: np.ndarray | jax.Array
    offsets: np.ndarray | jax.Array
    lengths: np.ndarray | jax.Array

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> "Packed":
        """[sum of lengths, ...] values and [rows] lengths; offsets follow."""
        lengths = np.asarray(lengths, np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[: len(lengths)]
        return cls(values, offsets.astype(np.int32), lengths)

    def gather(self, rows, width: int, together: int = 1):
        """(values [B, width, ...], lengths [B]) of the given rows [B]; row -1 has length 0.

        Or so many `together` end to end: values [B / together, width, ...], and lengths
        [B / together, together].

        Positions behind them repeat the last value; the model's mask keeps them out.
        NumPy arrays in, NumPy arrays out; jax arrays likewise.
        """
        xp = np if isinstance(self.values, np.ndarray) else jnp
        index = xp.maximum(rows, 0)
        lengths = xp.where(rows >= 0, xp.minimum(self.lengths[index], width), 0)
        each = lengths.reshape(-1, together)
        lengths = lengths if together == 1 else each
        ends = xp.cumsum(each, axis=1)
        position = xp.minimum(xp.arange(width), xp.maximum(ends[:, -1:] - 1, 0))
        owner = (position[:, :, None] >= ends[:, None, :-1]).sum(axis=2)
        begin = self.offsets[index].reshape(each.shape) - (ends - each)
        return self.values[xp.take_along_axis(begin, owner, axis=1) + position], lengths
