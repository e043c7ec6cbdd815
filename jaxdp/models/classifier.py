# SPDX-License-Identifier: Apache-2.0
"""A report classifier, cut into levels so that frozen work can be done once.

Level 0 is token ids, level k (1 <= k <= depth) the hidden states after k layers, level depth + 1
the feature: [H], or with label attention [labels, H]. `advance` carries one report from any level
up to any later one, so "train only the last two layers on cached states" and "train a head on
cached features" are the same call with another starting level.
"""

import contextlib
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .label_attention import Basis, LabelAttention, LabelHead, bias_of
from .layers import apply_once_traced, asked_of, owners, several

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

POOLINGS = ("cls", "first", "mean", "mean-last2", "label-attention")
"""As transformers' classifier of the family pools: the first token, through a pooler; the first
token as it is; the mean over tokens of the last hidden states, or of the average of the last two
layers' hidden states; or what each label attends to in that average."""
HEAD = ("classifier", "label_attention")
"""What a checkpoint need not hold: the modules that a classifier adds to its backbone."""
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
LEAVES |= {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
"""Names of parameters -> what checkpoints and PEFT call them, where that differs."""
READS = nnx.Any(nnx.LoRAParam, nnx.PathContains("label_attention"))
"""The parameters by which readers differ below the head, see `readers`."""


def relayout(path: tuple, value: np.ndarray) -> np.ndarray:
    """The parameter at `path` as checkpoints lay it out, or back: matrices are [out, in] there."""
    # safetensors writes the memory as it lies, whatever the strides.
    return np.ascontiguousarray(value.T if path[-1] in ("kernel", "lora_a", "lora_b") else value)


class ReportClassifier(nnx.Module):
    """What every backbone provides; see `bert.BertClassifier` and the files beside it.

    Subclasses set `prefix`, and implement `add_encoder` and, for "cls" pooling, `add_pooler` and
    `pool_first`. Arguments are those of `pretrained.load_classifier`.
    """

    prefix: ClassVar[str]
    """The attribute that holds the encoder, which is what checkpoints call it."""
    layers_path: ClassVar[str] = "encoder.layer"
    """In the backbone."""
    cls_names: ClassVar[Mapping[str, str]] = {}
    """With "cls" pooling, where they differ: module of ours -> its name in checkpoints."""
    lora_targets: ClassVar[tuple[str, ...]] = ("query", "value")
    """Names of the projections that are adapted where nobody names others."""
    cls_is_mean: bool = False
    """"cls" pooling reads the mean over the tokens, not the first of them."""
    task: str = "multi-label"
    """What its logits mean, see `tasks.TASKS`."""
    basis: Basis | None = None
    """Coordinates of the feature, see `set_basis`."""
    precision: str = "float32"
    """Of products of float32, by JAX's name. Left open, a GPU rounds their operands to
    TensorFloat-32, and a TPU to bfloat16."""
    readers: int = 1
    """How many adapters and queries there are, see `readers`."""
    window: tuple[int, int] | None = None
    """Tokens of a window, and how many a report has at most, where reports are longer than the
    encoder reads: it reads each window by itself, and what pools reads all of their tokens."""
    base_fingerprint: str | None = None
    """Of the pretrained weights it was filled with, see `pretrained.load_classifier`."""

    def __init__(
        self, cfg: "PreTrainedConfig", num_labels: int, pooling: str, dtype=None, *, rngs: nnx.Rngs
    ):
        self.depth: int = cfg.num_hidden_layers  # layers applied
        self.dtype = dtype
        self.pooling = pooling
        self.add_encoder(cfg, dtype, rngs=rngs)
        if pooling == "cls":
            self.add_pooler(cfg, dtype, rngs=rngs)
        by_label = pooling == "label-attention"
        if by_label:
            self.label_attention = LabelAttention(num_labels, cfg.hidden_size)
        head = LabelHead if by_label else nnx.Linear
        self.classifier = head(cfg.hidden_size, num_labels, rngs=rngs)

    def add_encoder(self, cfg, dtype, *, rngs: nnx.Rngs) -> None:
        """Embeddings and layers, at the paths that the family's checkpoints have."""
        raise NotImplementedError

    def add_pooler(self, cfg, dtype, *, rngs: nnx.Rngs) -> None:
        raise NotImplementedError

    @property
    def backbone(self) -> Any:
        """All but the head and, in some families, the pooler."""
        return getattr(self, self.prefix)

    @classmethod
    def positions(cls, cfg: "PreTrainedConfig") -> int:
        """The most tokens that a text can have."""
        return cfg.max_position_embeddings

    @classmethod
    def check(cls, cfg: "PreTrainedConfig") -> None:
        """ValueError for a field that has a value this class does not compute with."""

    def name_of(self, path: tuple) -> str:
        """What checkpoints and PEFT call the module or parameter at `path`, adapted or not.

        ("bert", "encoder", "layer", 0, ..., "kernel") -> "bert.encoder.layer.0. ... .weight".
        """
        first, *rest = (str(part) for part in path if part != "base")
        if self.pooling == "cls":
            first = self.cls_names.get(first, first)
        if rest:
            rest[-1] = LEAVES.get(rest[-1], rest[-1])
        return ".".join([first, *rest])

    def tensors(self, chosen: Any = nnx.Param) -> dict[str, np.ndarray]:
        """The chosen parameters, named and laid out as in checkpoints."""
        state = nnx.to_flat_state(nnx.state(self, chosen))
        return {self.name_of(path): relayout(path, np.asarray(x[...])) for path, x in state}

    def set_basis(self, center: jax.Array, directions: jax.Array | None = None) -> None:
        """From now on features, and the head, are in the coordinates of a `Basis`.

        Logits stay the same, but for what the head read outside the directions.
        """
        kernel, bias = self.classifier.kernel[...], self.logits(center)
        if directions is not None:
            kernel = jnp.einsum("nhk,hn->kn", directions, kernel, precision="highest")
        self._set_head(kernel, bias)
        self.basis = Basis(center, directions)

    def fold_basis(self) -> None:
        """The ordinary classifier that computes the same: the basis goes into the head."""
        if self.basis is None:
            return
        kernel, bias = self.classifier.kernel[...], bias_of(self.classifier)
        center = self.basis.center[...]
        if self.basis.directions is not None:
            directions = self.basis.directions[...]
            kernel = jnp.einsum("nhk,kn->hn", directions, kernel, precision="highest")
        self._set_head(kernel, bias - jnp.sum(center * kernel.T, axis=-1))
        self.basis = None

    def divide_logits(self, temperature: float) -> None:
        """All logits, hence the head, by a positive number; 1 changes no bit."""
        kernel, bias = self.classifier.kernel[...], bias_of(self.classifier)
        self._set_head(kernel / temperature, bias / temperature)

    def _set_head(self, kernel: jax.Array, bias: jax.Array) -> None:
        head = self.classifier
        head.kernel, head.bias = nnx.Param(kernel), nnx.Param(bias)
        head.in_features = kernel.shape[0]

    def precise(self) -> contextlib.AbstractContextManager:
        """What is traced within multiplies in `precision`, its gradients too."""
        return jax.default_matmul_precision(self.precision)

    @property
    def feature_level(self) -> int:
        return self.depth + 1

    def first_use(self, number: int) -> int:
        """The depth at which the `number`-th layer (of those that exist) is first applied."""
        return number

    def level_of(self, path: tuple) -> int:
        """The highest level whose value the parameter or layer at `path` cannot influence."""
        if path[0] == "classifier":
            return self.feature_level
        if path[0] == "label_attention":
            # It reads the last two layers' states, which each reader may have made.
            return self.depth - 1 if self.readers == 1 else min(self.depth - 1, self._shared)
        if "pooler" in path:
            return self.depth
        numbers = (part for part in path if isinstance(part, int))
        return self.first_use(next(numbers, 0))

    @property
    def _shared(self) -> int:
        """The highest level that all readers have in common."""
        return self.start_level(nnx.state(self, nnx.LoRAParam))

    def start_level(self, adapters: nnx.State) -> int:
        """The highest level that no parameter in `adapters` influences: what can be kept."""
        levels = [self.level_of(path) for path, _ in nnx.to_flat_state(adapters)]
        return min(levels, default=self.feature_level)

    def embed(self, token_ids_L: jax.Array, length: jax.Array) -> jax.Array:
        """Token ids [L] -> [L, H]."""
        return self.backbone.embeddings(token_ids_L, length)

    def apply_layer(
        self, index: int, x_LxH: jax.Array, length: jax.Array, first: bool
    ) -> jax.Array:
        """The `index`-th layer applied (0 <= index < depth): [L, H], or `first` the outputs for the
        first token of each report alone."""
        layer = attrgetter(self.layers_path)(self.backbone)[index]
        return apply_once_traced(layer, x_LxH, length, first)

    def output(self, x_LxH: jax.Array) -> jax.Array:
        """A layer's hidden states as they are pooled: where layers normalise what they read and
        not what they give, through the last norm."""
        return x_LxH

    def pool_first(self, x_H: jax.Array) -> jax.Array:
        """The pooler on the first token's state, or on the mean: [H] -> [H]."""
        raise NotImplementedError

    def advance(self, x: jax.Array, length: jax.Array, start: int, stop: int) -> jax.Array:
        """Carries one report from level `start` to level `stop`.

        Args:
            x: token ids [L] int or their embeddings [L, H] for start = 0, hidden states [L, H], or
                the feature.
            length: how many of the L positions are real; the rest never influence the result. Or
                [K] those of K reports that lie end to end, which become K features.
            start, stop: levels, 0 <= start <= stop <= feature_level.
        """
        if not 0 <= start <= stop <= self.feature_level:
            raise ValueError(f"levels must satisfy 0 <= {start=} <= {stop=} <= {self.depth + 1}")
        with self.precise():
            if stop <= self.depth:
                if self.readers > 1 and stop > self._shared:
                    raise ValueError(f"level {stop} is another for each reader")
                return self._layers(x, length, start, stop)[0]
            if start <= self.depth and self.readers > 1:
                each = self.by_reader(lambda reader: reader.advance(x, length, start, stop))
                x = jnp.concatenate(list(each), axis=-1) * self.readers**-0.5
                return x if self.basis is None else self.basis(x)
            if start <= self.depth:
                states = self.last_states(x, length, start)
                if several(length):
                    return self.by_report(self.feature, states, length)
                x = self.feature(states, jnp.arange(states.shape[0]) < length)
            return x

    def by_reader(self, fn: Callable[["ReportClassifier"], jax.Array]) -> jax.Array:
        """fn(reader) for each of the readers, which has no basis: [readers, ...]."""
        graphdef, own, shared = nnx.split(self, READS, ...)

        def one(own):
            reader = nnx.merge(graphdef, own, shared)
            reader.readers, reader.basis = 1, None
            return fn(reader)

        return jax.vmap(one)(own) if self.readers > 1 else one(own)[None]

    def by_report(self, fn: Callable, states: jax.Array, length: jax.Array, *more) -> jax.Array:
        """fn(states, real, *more), as `feature` takes them, for each report of a row.

        Args:
            states: `last_states` of the row.
            more: trees with a leading axis of reports.
        """
        first = self._reads_first
        states = states[:, None] if first else states
        real = owners(length, states.shape[-2]) == jnp.arange(len(length))[:, None]

        def one(states, real, *more):
            # Another report's states need not be finite.
            return fn(states if first else jnp.where(real[:, None], states, 0), real, *more)

        return jax.vmap(one, (0 if first else None, 0) + (0,) * len(more))(states, real, *more)

    def feature(self, states_LxH: jax.Array, real_L: jax.Array) -> jax.Array:
        """Of one report, whose states are the real ones: [H], or with label attention [labels,
        H], or [labels, K] in the directions of a basis."""
        x = self.pool(states_LxH, real_L)
        return x if self.basis is None else self.basis(x)

    def _layers(
        self, x: jax.Array, length: jax.Array, start: int, stop: int, only_first: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """(states at level `stop`, those before if a layer was applied); only_first: of the last
        layer the first token alone. They are `dtype` between layers, and float32 or wider here."""
        if start == stop:
            return x, None
        if start == 0 and x.ndim == 1:
            x = self.embedded(x, length)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        before = x = x.astype(self.dtype or wide)
        for index in range(start, stop):
            first = only_first and index == stop - 1

            def layer(x, n, index=index, first=first):
                return self.apply_layer(index, x, n, first)

            before, x = x, self._by_window(layer, x, length)
        return x.astype(wide), before.astype(wide)

    def embedded(self, token_ids_L: jax.Array, length: jax.Array) -> jax.Array:
        """`embed` of all windows."""
        return self._by_window(self.embed, token_ids_L, length)

    def _by_window(self, fn, x: jax.Array, length: jax.Array) -> jax.Array:
        """fn(x, length) of each window by itself, end to end again."""
        size = x.shape[0] if self.window is None or several(length) else self.window[0]
        if x.shape[0] <= size:
            return fn(x, length)
        count = -(-x.shape[0] // size)
        padded = jnp.pad(x, ((0, count * size - x.shape[0]), *[(0, 0)] * (x.ndim - 1)))
        lengths = jnp.clip(length - size * jnp.arange(count), 0, size)
        out = jax.vmap(fn)(padded.reshape(count, size, *x.shape[1:]), lengths)
        return out.reshape(count * size, *out.shape[2:])[: x.shape[0]]

    def last_states(self, x: jax.Array, length: jax.Array, start: int) -> jax.Array:
        """What is pooled, from level `start` <= depth: token states [L, H], or the first one's of
        each report.

        ValueError for poolings of the last two layers from a level above the first of them.
        """
        # The last layer's other outputs are not read: 10 of its 12 matrix products shrink.
        x, before = self._layers(x, length, start, self.depth, only_first=self._reads_first)
        if start == self.depth:
            x, _ = asked_of(x, length, self._reads_first)
        x = self.output(x)
        if self.pooling in ("mean-last2", "label-attention"):
            if before is None:
                raise ValueError(f"pooling {self.pooling} starts at level {self.depth - 1}")
            x = (self.output(before) + x) / 2
        return x

    def pool(self, x_LxH: jax.Array, real_L: jax.Array) -> jax.Array:
        """One report's `last_states` -> [H], of the first token or the mean over the real tokens,
        or with label attention [labels, H]."""
        if self.pooling == "label-attention":
            return self.label_attention(x_LxH, real_L)
        if self._reads_first:
            x_H = x_LxH[0]
        else:
            real = real_L.astype(x_LxH.dtype)
            x_H = real @ x_LxH / jnp.maximum(real.sum(), 1)
        return self.pool_first(x_H) if self.pooling == "cls" else x_H

    @property
    def _reads_first(self) -> bool:
        return self.pooling == "first" or (self.pooling == "cls" and not self.cls_is_mean)

    def logits(self, feature: jax.Array) -> jax.Array:
        """The head on a feature: [num_labels], float32 or wider."""
        with self.precise():
            logits = self.classifier(feature)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def __call__(self, x: jax.Array, length: jax.Array, start: int = 0) -> jax.Array:
        """Logits [num_labels], float32 or wider, of one report given at level `start`."""
        return self.logits(self.advance(x, length, start, self.feature_level))
