# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights in: a Hugging Face directory -> a classifier, with nothing left over.

Every source tensor is used or dropped by an explicit rule, every model parameter is filled or
initialised by an explicit rule; anything else is an error that names the tensors.
"""

import hashlib
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub.errors import StrictDataclassError

from .albert import AlbertClassifier
from .bert import BertClassifier, DistilBertClassifier, RobertaClassifier
from .checkpoints import WeightsError, first_of, read_json, read_tensors
from .classifier import HEAD, POOLINGS, ReportClassifier, relayout
from .layers import ACTIVATIONS
from .modernbert import ModernBertClassifier
from .mpnet import MPNetClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Where torch is absent, transformers would say so as it is imported, here or in data.tokens.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

MODELS: dict[str, type[ReportClassifier]] = {
    "bert": BertClassifier,
    "albert": AlbertClassifier,
    "roberta": RobertaClassifier,
    "xlm-roberta": RobertaClassifier,
    "distilbert": DistilBertClassifier,
    "modernbert": ModernBertClassifier,
    "mpnet": MPNetClassifier,
}
"""model_type of a config.json -> our class."""

_SIZES = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}

# Tensors of pretraining heads and buffers, which a classifier has no use for.
_SURPLUS = re.compile(
    r"^(cls|predictions|sop_classifier|qa_outputs|lm_head|decoder|vocab_(transform|layer_norm|projector))\."
    r"|(^|\.)(position|token_type)_ids$"
)


class LoadReport(NamedTuple):
    """What happened beside plain copying."""

    initialised: tuple[str, ...]
    """Parameters that the checkpoint lacks and that were drawn at random (head, pooler)."""
    dropped: tuple[str, ...]
    """Source tensors left out by rule."""


def as_config(values: Mapping[str, Any]) -> "PreTrainedConfig":
    """A parsed config.json as transformers' configuration, with its defaults for what is left out.

    Raises:
        ValueError: it is of none of `MODELS`, or has a field that we cannot use, by name.
    """
    from transformers import AutoConfig  # takes a second, or two where torch is installed

    values = dict(values)
    kind = values.pop("model_type", None)
    if kind is None and _SIZES <= values.keys():
        # Older than that field. Other families that look alike, RoBERTa's, name tensors otherwise.
        kind = "albert" if "num_hidden_groups" in values else "bert"
    if kind not in MODELS:
        raise ValueError(f"model_type must be one of {', '.join(MODELS)}, not {kind!r}")
    try:
        config = AutoConfig.for_model(kind, **values)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from None
    for name, wanted in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if getattr(config, name, wanted) != wanted:
            raise ValueError(f"{name} must be {wanted}, not {getattr(config, name)!r}")
    for name in ("hidden_act", "activation", "hidden_activation", "classifier_activation"):
        if getattr(config, name, "gelu") not in ACTIVATIONS:
            raise ValueError(f"{name} must be one of {', '.join(ACTIVATIONS)}")
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise ValueError("hidden_size must be a multiple of num_attention_heads")
    MODELS[kind].check(config)
    return config


def read_config(directory: Path) -> "PreTrainedConfig":
    """config.json of a model directory, read by `as_config`; WeightsError if it cannot be used."""
    path = Path(directory) / "config.json"
    values = read_json(path)
    try:
        return as_config(values)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None


def positions_of(config: "PreTrainedConfig") -> int:
    """The most tokens that a text can have."""
    return MODELS[config.model_type].positions(config)


def shares_layers(config: "PreTrainedConfig") -> bool:
    """Whether a layer is applied at several depths, so that its adapter acts at all of them."""
    depth = config.num_hidden_layers
    return getattr(config, "num_hidden_groups", depth) < depth


def _canonical(name: str, prefix: str, parts: set[str]) -> str:
    """Undoes the naming habits of older checkpoints and, whose names begin with the encoder's
    `parts`, of headless ones."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return f"{prefix}.{name}" if name.partition(".")[0] in parts else name


def load_classifier(
    directory: Path, num_labels: int, pooling: str, *, dtype=None, rngs: nnx.Rngs
) -> tuple[ReportClassifier, LoadReport]:
    """Builds the classifier that `directory`/config.json describes and fills it.

    The model's `base_fingerprint` tells pretrained weights apart, not the files they came in: it is
    of the names, shapes and float32 (or wider) values of all that was read, but the head. It is a
    checksum against mix-ups, not against forgery.

    Args:
        directory: holds config.json and weights in any format of `checkpoints.read_tensors`.
        num_labels: rows of the head. A head in the checkpoint is used if it has as many; one of
            another size is an error, not a silent replacement.
        pooling: one of `classifier.POOLINGS`.
        dtype: the type matrix products run in; None for that of the parameters: float32, or float64
            where the checkpoint has it and JAX allows it. Narrower weights are widened.
        rngs: draws what the checkpoint lacks: the head (N(0, 0.02); bias and queries are 0) and the
            pooler.

    Raises:
        WeightsError: unreadable files; missing, surplus or misshapen tensors, with their names.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"model.pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    directory = Path(directory)
    config = read_config(directory)
    model_class = MODELS[config.model_type]
    like = nnx.eval_shape(lambda: model_class(config, num_labels, pooling, dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(like)
    wanted = nnx.to_flat_state(state)

    prefix = model_class.prefix
    parts = {"pooler", *(str(path[1]) for path, _ in wanted if path[0] == prefix)}
    tensors = {
        _canonical(name, prefix, parts): read for name, read in read_tensors(directory).items()
    }
    unread = tuple(f"{name}." for name in (f"{prefix}.pooler", *model_class.cls_names.values()))
    names = {like.name_of(path) for path, _ in wanted}
    dropped = {
        name
        for name in tensors
        if _SURPLUS.search(name) or (name.startswith(unread) and name not in names)
    }
    unused = set(tensors) - dropped

    digest = hashlib.sha256()
    filled, initialised, missing, misshapen = [], [], [], []
    for path, variable in wanted:
        name, shape = like.name_of(path), variable.shape
        if name in unused:
            unused.remove(name)
            value = relayout(path, tensors[name]())
            value = value.astype(jnp.promote_types(value.dtype, jnp.float32), copy=False)
            if value.shape != shape:
                misshapen.append(f"{name} {value.shape}, expected {shape}")
                continue
            if path[0] not in HEAD:
                # A checksum of each tensor: hashing them whole would take longer than reading them.
                digest.update(f"{name} {shape} {zlib.crc32(value.data)}\n".encode())
        elif path[0] in HEAD or "pooler" in path:
            initialised.append(name)
            value = _initial(path, shape, config.initializer_range, rngs)
        else:
            missing.append(name)
            continue
        filled.append((path, variable.replace(jnp.asarray(value))))
    problems = {"missing": missing, "surplus": sorted(unused), "misshapen": misshapen}
    listed = [f"{kind}: {first_of(names)}" for kind, names in problems.items() if names]
    if listed:
        raise WeightsError(f"{directory}: weights do not fit config.json; {'; '.join(listed)}")
    model = nnx.merge(graphdef, nnx.from_flat_state(filled))
    model.base_fingerprint = digest.hexdigest()[:32]
    return model, LoadReport(tuple(initialised), tuple(sorted(dropped)))


def _initial(path: tuple, shape: tuple, std: float, rngs: nnx.Rngs) -> np.ndarray:
    """What transformers would draw for fresh layers: kernel N(0, std^2), scale 1, the rest 0."""
    if path[-1] != "kernel":
        return np.full(shape, path[-1] == "scale", np.float32)
    # By numpy: JAX would compile a program for it, which takes longer than loading the rest.
    seed = np.asarray(jax.random.key_data(rngs.params()))
    return (std * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
