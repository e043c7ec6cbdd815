# SPDX-License-Identifier: Apache-2.0
"""A multi-label report classifier, cut into levels so that frozen work can be done once.

Level 0 is token ids, level k (1 <= k <= depth) the hidden states after k layers, level depth + 1
the pooled feature. `advance` carries one report from any level up to any later one, so "train only
the last two layers on cached states" and "train a head on cached features" are the same call with
another starting level.
"""

import jax
import jax.numpy as jnp
from flax import nnx

POOLINGS = ("cls", "mean", "mean-last2")
"""The pretrained pooler on the first token; the mean over tokens of the last hidden states, or of
the average of the last two layers' hidden states."""


class ReportClassifier(nnx.Module):
    """What every backbone provides; see `bert.BertClassifier` and `albert.AlbertClassifier`.

    Subclasses set `depth` (layers applied), `pooling` and `classifier` ([H] -> [num_labels]
    logits), and implement `embed`, `apply_layer` and, for "cls" pooling, `pool_first`.
    """

    depth: int
    pooling: str
    classifier: nnx.Module
    base_fingerprint: str | None = None
    """Of the pretrained weights it was filled with, see `pretrained.load_classifier`."""

    @property
    def feature_level(self) -> int:
        """The level of the pooled feature, the last one before the head."""
        return self.depth + 1

    def first_use(self, number: int) -> int:
        """The depth at which the `number`-th layer (of those that exist) is first applied."""
        return number

    def level_of(self, path: tuple) -> int:
        """The highest level whose value the parameter or layer at `path` cannot influence."""
        if path[0] == "classifier":
            return self.feature_level
        if "pooler" in path:
            return self.depth
        numbers = (part for part in path if isinstance(part, int))
        return self.first_use(next(numbers, 0))

    def start_level(self, adapters: nnx.State) -> int:
        """The highest level that no parameter in `adapters` influences.

        Everything up to it can be computed once per report and kept.
        """
        levels = [self.level_of(path) for path, _ in nnx.to_flat_state(adapters)]
        return min(levels, default=self.feature_level)

    def embed(self, token_ids_L: jax.Array) -> jax.Array:
        """Token ids [L] -> [L, H]."""
        raise NotImplementedError

    def apply_layer(self, index: int, x_LxH: jax.Array, length: jax.Array, rows: int) -> jax.Array:
        """The `index`-th layer applied (0 <= index < depth): [L, H] -> its first rows [rows, H]."""
        raise NotImplementedError

    def pool_first(self, x_H: jax.Array) -> jax.Array:
        """The pretrained pooler on the first token's state: [H] -> [H]."""
        raise NotImplementedError

    def advance(self, x: jax.Array, length: jax.Array, start: int, stop: int) -> jax.Array:
        """Carries one report from level `start` to level `stop`.

        Args:
            x: token ids [L] int for start = 0, hidden states [L, H], or the feature [H].
            length: how many of the L positions are real; the rest never influence the result.
            start, stop: levels, 0 <= start <= stop <= feature_level.
        """
        if not 0 <= start <= stop <= self.feature_level:
            raise ValueError(f"levels must satisfy 0 <= {start=} <= {stop=} <= {self.depth + 1}")
        if start == 0 and stop > 0:
            x = self.embed(x)
        before = None
        for index in range(max(start, 0), min(stop, self.depth)):
            # The last layer's other outputs are not read: 10 of its 12 matrix products shrink.
            only_first = self.pooling == "cls" and index == self.depth - 1 and stop > self.depth
            before, x = x, self.apply_layer(index, x, length, 1 if only_first else x.shape[0])
        if start <= self.depth < stop:
            if self.pooling == "mean-last2":
                if before is None:
                    raise ValueError(f"pooling {self.pooling} starts at level {self.depth - 1}")
                x = (before + x) / 2
            x = self.pool(x, length)
        return x

    def pool(self, x_LxH: jax.Array, length: jax.Array) -> jax.Array:
        """[L, H] -> [H]: the pooled first token, or the mean over the real tokens."""
        if self.pooling == "cls":
            return self.pool_first(x_LxH[0])
        weights = (jnp.arange(x_LxH.shape[0]) < length).astype(x_LxH.dtype)
        return weights @ x_LxH / jnp.maximum(length, 1).astype(x_LxH.dtype)

    def __call__(self, x: jax.Array, length: jax.Array, start: int = 0) -> jax.Array:
        """Logits [num_labels], float32 or wider, of one report given at level `start`."""
        logits = self.classifier(self.advance(x, length, start, self.feature_level))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
