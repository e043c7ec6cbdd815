# SPDX-License-Identifier: Apache-2.0
"""Several readers of one report: adapters and queries several times over the same frozen weights.

What one of them makes of a report depends on the order in which it met the made-up ones; what
several do varies less. Each reader alone is an ordinary classifier, and the model's logits are the
sum of theirs. So it has one head, on their features end to end:

    logit_l = sum_r w_rl . f_rl / sqrt(R) + b_l

The root makes the feature as long as one reader's, so that clip norms and rates stay what they are.
In a model of R readers, adapters are [R, in, rank] and [R, rank, out], queries [R, labels, H], the
feature [R H] or [labels, R H], and the head's kernel [R H, labels].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from .classifier import READS, ReportClassifier
from .label_attention import unit

_TURN = 2.0
"""See `turned_queries`; 1 gives less, and 4 the same (docs/measurements/recipe.md)."""
OWN = nnx.Any(READS, nnx.PathContains("classifier"))
"""What a reader has for itself: adapters, queries, and its part of the head."""


def join(model: ReportClassifier, readers: Sequence[nnx.State]) -> None:
    """Makes `model` one of all of these readers, whose logits are the sum of theirs; in place. Each
    state holds all that is a reader's own."""
    if len(readers) == 1:
        nnx.update(model, readers[0])
        return
    flat = [dict(nnx.to_flat_state(reader)) for reader in readers]

    def joined(path):
        each = [reader[path][...] for reader in flat]
        if path[0] != "classifier":
            return jnp.stack(each)
        return sum(each) if path[-1] == "bias" else jnp.concatenate(each) * len(each) ** 0.5

    state = [(path, old.replace(joined(path))) for path, old in flat[0].items()]
    nnx.update(model, nnx.from_flat_state(state))
    model.readers = len(readers)
    model.classifier.in_features = len(model.classifier.kernel[...])


def part(model: ReportClassifier, number: int) -> ReportClassifier:
    """The ordinary classifier that one reader is; the logits of all add up to the model's, which
    has no basis."""
    if model.readers == 1:
        return model
    reader = nnx.clone(model)
    width = len(model.classifier.kernel[...]) // model.readers

    def of_one(path, variable):
        value = variable[...]
        if path[0] != "classifier":
            return variable.replace(value[number])
        if path[-1] == "bias":
            return variable.replace(value / model.readers)
        own = value[number * width : (number + 1) * width]
        return variable.replace(own * model.readers**-0.5)

    nnx.update(reader, nnx.map_state(of_one, nnx.state(model, OWN)))
    reader.readers, reader.classifier.in_features = 1, width
    return reader


def turned_queries(model: ReportClassifier) -> jax.Array:
    """Each label's query, turned towards what its head has found to speak for it. For a query q and
    the part w of the head that reads the same tokens

        |q| unit(unit(q) + 2 unit(w))

    A function of the model alone, so after a private stage it is post-processing.
    """
    model = nnx.clone(model)
    model.fold_basis()
    queries, weights = model.label_attention.queries[...], model.classifier.kernel[...].T
    q_RxNxH = jnp.reshape(queries, (model.readers, len(weights), -1))
    w_RxNxH = jnp.moveaxis(weights.reshape(len(weights), model.readers, -1), 1, 0)
    turned = unit(unit(q_RxNxH) + _TURN * unit(w_RxNxH))
    length = jnp.linalg.norm(q_RxNxH, axis=-1, keepdims=True)
    return (length * turned).reshape(queries.shape)


def own_of(reader: ReportClassifier) -> nnx.State:
    """What `join` takes, as it is now."""
    return jax.tree.map(jnp.asarray, nnx.state(reader, OWN))
