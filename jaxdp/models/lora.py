# SPDX-License-Identifier: Apache-2.0
"""LoRA by tree surgery, and the one rule that says what is trained.

`add_lora` replaces chosen Linear layers by `LoRALinear`; `split` then cuts the model into
(graphdef, adapters, frozen). Gradients, clipping, noise and the optimizer only see `adapters`.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .classifier import ReportClassifier
from .layers import bounded, bounded_back

_HEAD = nnx.PathContains("classifier")
_TRAINED = {
    "lora": nnx.Any(nnx.LoRAParam, _HEAD),
    "lora-ffa": nnx.Any(nnx.PathContains("lora_b"), _HEAD),
    "head": _HEAD,
    "bitfit": nnx.Any(nnx.PathContains("bias"), _HEAD),
    "full": nnx.Param,
}
MODES = tuple(_TRAINED)
"""What `split` trains: adapters + head; B only + head; head; biases + head; everything. With
"+queries" behind it also what label attention asks for, which "full" does anyway."""


class LoRALinear(nnx.Module):
    """base(x) + (alpha / rank) * (x A) B, with A [in, rank] and B [rank, out] (Hu et al., 2021).

    B, or A and B, with a leading axis of reports are each report's own: what their gradients are,
    are the gradients of each report.
    """

    def __init__(self, base: nnx.Linear, a: jax.Array, b: jax.Array, alpha: float):
        self.base = base
        self.alpha = alpha
        self.lora_a = nnx.LoRAParam(a)
        self.lora_b = nnx.LoRAParam(b)

    @property
    def rank(self) -> int:
        return self.lora_a.shape[-1]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def merged_kernel(self) -> jax.Array:
        """The kernel of the one Linear layer that computes the same: [in, out]."""
        update = jnp.matmul(self.lora_a[...], self.lora_b[...], precision="highest")
        return self.base.kernel[...] + update * self.scale

    def __call__(self, x: jax.Array, owner: jax.Array | None = None) -> jax.Array:
        y = self.base(x)
        x = x.astype(y.dtype)
        a, b = self.lora_a[...].astype(y.dtype), self.lora_b[...].astype(y.dtype)
        if b.ndim == 2:
            return y + (x @ a) @ b * self.scale
        x = bounded(x)
        each = (x @ a)[:, None] if a.ndim == 2 else jnp.einsum("li,kir->lkr", x, a)
        mine = jnp.asarray(owner)[:, None] == jnp.arange(len(b))
        update = jnp.einsum("lkr,kro->lo", jnp.where(mine[..., None], each, 0), b)
        return y + bounded_back(update) * self.scale


def linear_layers(model: nnx.Module) -> dict[tuple, nnx.Linear]:
    """Path -> every Linear layer outside the head, in a fixed order."""
    return {
        path: module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear) and path[0] != "classifier"
    }


def adapted_layers(model: nnx.Module) -> dict[tuple, LoRALinear]:
    """Path -> every layer with an adapter."""
    return {p: module for p, module in nnx.iter_modules(model) if isinstance(module, LoRALinear)}


def select_targets(paths: Iterable[tuple], targets: Iterable[str]) -> list[tuple]:
    """The paths that `targets` name, as PEFT matches them: exact end of the dotted path.

    "all-linear" stands for every Linear outside the head and pooler. A target that names no
    layer is a ValueError that lists the valid names.
    """
    names = {path: ".".join(map(str, path)) for path in paths if "pooler" not in path}
    chosen = set()
    for target in targets:
        hits = {
            path
            for path, name in names.items()
            if target == "all-linear" or f".{name}".endswith(f".{target}")
        }
        if not hits:
            ends = {".".join(name.split(".")[-k:]) for name in names.values() for k in (1, 2)}
            raise ValueError(
                f"lora.targets: {target!r} names no linear layer; valid names are all-linear, "
                + ", ".join(sorted(ends))
            )
        chosen |= hits
    return [path for path in names if path in chosen]


def add_lora(
    model: ReportClassifier,
    *,
    rank: int,
    alpha: float,
    targets: Iterable[str],
    first_layer: int = 0,
    rngs: nnx.Rngs,
) -> list[tuple]:
    """Puts a fresh LoRALinear in place of each targeted Linear of layers >= `first_layer`.

    B starts at zero, so it changes nothing, bit for bit. A is drawn as PEFT draws it, uniform in
    +-1/sqrt(in). Returns the paths changed. ValueError for rank < 1 or a target that names nothing.
    """
    if rank < 1:
        raise ValueError(f"lora.rank must be at least 1, not {rank}")
    layers = linear_layers(model)
    targeted = select_targets(layers, targets)
    paths = [path for path in targeted if model.level_of(path) >= first_layer]
    if not paths:
        latest = max(map(model.level_of, targeted))
        raise ValueError(
            f"lora.layers: every targeted layer acts from layer {latest} of {model.depth} or "
            f"earlier, so last:k needs k >= {model.depth - latest}"
        )
    for path in paths:
        in_features, out_features = layers[path].kernel.shape
        dtype, bound = layers[path].kernel.dtype, in_features**-0.5
        a = jax.random.uniform(rngs.params(), (in_features, rank), dtype, -bound, bound)
        adapt(model, path, a, jnp.zeros((rank, out_features), dtype), alpha)
    return paths


def adapt(model: nnx.Module, path: tuple, a: jax.Array, b: jax.Array, alpha: float) -> None:
    """Puts LoRALinear(layer, a, b, alpha) in place of the Linear layer at `path`."""
    parent: Any = model
    for part in path[:-1]:
        parent = parent[part] if isinstance(part, int) else getattr(parent, part)
    setattr(parent, path[-1], LoRALinear(getattr(parent, path[-1]), a, b, alpha))


def trainable(mode: str):
    """The nnx filter of the parameters that `mode` trains; the head is in all of them.

    A basis is public, and never trained.
    """
    mode, _, more = mode.partition("+")
    if mode not in MODES or more not in ("", "queries"):
        raise ValueError(f"train.mode must be one of {', '.join(MODES)}, not {mode!r}")
    chosen = nnx.Any(_TRAINED[mode], nnx.PathContains("queries")) if more else _TRAINED[mode]
    return nnx.All(nnx.Param, nnx.Not(nnx.PathContains("basis")), chosen)


def rounded_once(model: nnx.Module, frozen: nnx.State) -> nnx.State:
    """Frozen weights as their products take them: those of linear layers in the layer's `dtype`,
    to which every step would else round them, to the same bits. Axes in front are left alone."""
    dtypes = {path: layer.dtype for path, layer in linear_layers(model).items() if layer.dtype}
    if not dtypes:
        return frozen

    def held(path, variable):
        dtype = dtypes.get(path[:-1])
        return variable if dtype is None else variable.replace(variable[...].astype(dtype))

    return nnx.map_state(held, frozen)


def split(model: nnx.Module, mode: str) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(graphdef, adapters, frozen): every parameter is in exactly one of the two trees."""
    graphdef, adapters, frozen = nnx.split(model, trainable(mode), nnx.Param)
    return graphdef, adapters, frozen
