# SPDX-License-Identifier: Apache-2.0
"""Trees of several members of a sweep as one tree, with a leading axis where members differ."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxdp.models.classifier import ReportClassifier

from .mesh import MEMBER


class CannotShare(ValueError):
    """Members whose frozen layers differ: nothing is computed once for all of them."""


def stack(trees: Sequence[Any]) -> Any:
    """One tree of the members' trees: every leaf [members, ...]; a PRNG key is a leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stack_differing(trees: Sequence[Any]) -> tuple[Any, Any]:
    """(tree, axes for `jax.vmap`): a leaf that is one object in all trees stays as it is, axis
    None; others are stacked, axis 0."""
    treedef = jax.tree.structure(trees[0])
    leaves, axes = [], []
    for each in zip(*map(jax.tree.leaves, trees), strict=True):
        same = all(leaf is each[0] for leaf in each)
        leaves.append(each[0] if same else jnp.stack(each))
        axes.append(None if same else 0)
    return jax.tree.unflatten(treedef, leaves), jax.tree.unflatten(treedef, axes)


def unstack(tree: Any, members: int) -> list[Any]:
    """The members' trees of a stacked one."""
    return [jax.tree.map(lambda leaf, m=m: leaf[m], tree) for m in range(members)]


def member_specs(specs: Any, axes: Any) -> Any:
    """How leaves of `stack_differing` lie on a mesh that shares members, given how one's would."""
    return jax.tree.map(lambda one, axis: one if axis is None else P(MEMBER, *one), specs, axes)


def share_frozen(model: ReportClassifier, other: ReportClassifier) -> None:
    """Gives `other` the very arrays of `model` wherever its own are equal to them.

    Raises:
        CannotShare: they differ in more than the head and adapters that do nothing yet, as where
            the checkpoint lacks parameters, and each member has drawn its own.
    """
    ours, others = (dict(nnx.to_flat_state(nnx.state(m, nnx.Param))) for m in (model, other))
    for path, theirs in others.items():
        if np.array_equal(ours[path][...], theirs[...]):
            theirs.set_value(ours[path][...])
            continue
        if isinstance(theirs, nnx.LoRAParam):
            b = (*path[:-1], "lora_b")
            apart = bool(ours[b][...].any() or others[b][...].any())
        else:
            apart = path[0] != "classifier"
        if apart:
            raise CannotShare(".".join(map(str, path)))
