# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights in: a Hugging Face directory -> a classifier, with nothing left over.

Every source tensor is used or dropped by an explicit rule, every model parameter is filled or
initialised by an explicit rule; anything else is an error that names the tensors.
"""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from .bert import BertClassifier, BertConfig
from .checkpoints import Tensors, WeightsError, read_json, read_safetensors
from .classifier import POOLINGS, ReportClassifier

# Tensors of pretraining heads and buffers, which a classifier has no use for.
_SURPLUS = re.compile(r"^(cls|predictions|sop_classifier|qa_outputs)\.|(^|\.)position_ids$")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What happened beside plain copying, for the user to be told."""

    initialised: tuple[str, ...]
    """Parameters that the checkpoint lacks and that were drawn at random (head, pooler)."""
    dropped: tuple[str, ...]
    """Source tensors left out by rule."""


def read_config(directory: Path) -> dict:
    """The parsed config.json of a model directory; WeightsError if it cannot be had."""
    path = Path(directory) / "config.json"
    config = read_json(path)
    if config.get("model_type") != "bert":
        raise WeightsError(
            f"{path}: model_type must be bert, not {config.get('model_type')!r}; other types are "
            "not supported"
        )
    return config


def read_tensors(directory: Path) -> Tensors:
    """Name -> reader of model.safetensors; WeightsError for a missing or damaged file."""
    path = Path(directory) / "model.safetensors"
    if not path.exists():
        raise WeightsError(f"{path} does not exist; weights are read from model.safetensors")
    return read_safetensors(path)


def source_name(path: tuple) -> str:
    """The checkpoint's name of the parameter at `path`.

    ("bert", "encoder", "layer", 0, ..., "kernel") -> "bert.encoder.layer.0. ... .weight".
    """
    *parents, leaf = (str(part) for part in path)
    leaf = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(leaf, leaf)
    return ".".join([*parents, leaf])


def _canonical(name: str, prefix: str) -> str:
    """Undoes the naming habits of older and of headless checkpoints."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"{prefix}.{name}"
    return name


def load_classifier(
    directory: Path, num_labels: int, pooling: str, *, dtype=None, rngs: nnx.Rngs
) -> tuple[ReportClassifier, LoadReport]:
    """Builds the classifier that `directory`/config.json describes and fills it.

    Args:
        directory: holds config.json and model.safetensors, as transformers writes them, with or
            without the `bert.` prefix, with LayerNorm named weight/bias or gamma/beta.
        num_labels: rows of the head. A head in the checkpoint is used if it has as many; one of
            another size is an error, not a silent replacement.
        pooling: "cls" (pooler on the first token) or "mean".
        dtype: the type matrix products run in; None for that of the weights.
        rngs: draws what the checkpoint lacks: the head (N(0, 0.02), bias 0) and the pooler.

    Raises:
        WeightsError: unreadable files; missing, surplus or misshapen tensors, with their names.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"model.pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    directory = Path(directory)
    config = read_config(directory)
    try:
        cfg = BertConfig.from_json(config)
    except ValueError as error:
        raise WeightsError(f"{directory}: {error}") from None
    model = nnx.eval_shape(
        lambda: BertClassifier(cfg, num_labels, pooling, dtype, rngs=nnx.Rngs(0))
    )
    prefix = config["model_type"]

    tensors = {_canonical(k, prefix): v for k, v in read_tensors(directory).items()}
    dropped = {name for name in tensors if _SURPLUS.search(name)}
    if pooling == "mean":
        dropped |= {name for name in tensors if name.startswith(f"{prefix}.pooler.")}

    graphdef, state = nnx.split(model)
    filled, missing, misshapen, initialised = [], [], [], []
    used = set(dropped)
    for path, variable in nnx.to_flat_state(state):
        name, shape = source_name(path), variable.shape
        if name in tensors:
            used.add(name)
            value = tensors[name]()
            value = value.T if path[-1] == "kernel" else value
            if value.shape != shape:
                misshapen.append(f"{name} {value.shape}, expected {shape}")
                continue
        elif path[0] == "classifier" or "pooler" in path:
            initialised.append(name)
            std = config.get("initializer_range", 0.02) if path[-1] == "kernel" else 0.0
            value = std * np.asarray(nnx.initializers.normal(1.0)(rngs.params(), shape))
        else:
            missing.append(name)
            continue
        filled.append((path, variable.replace(jnp.asarray(value))))
    surplus = sorted(set(tensors) - used)
    problems = [
        f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise WeightsError(f"{directory}: weights do not fit config.json; " + "; ".join(problems))
    model = nnx.merge(graphdef, nnx.from_flat_state(filled))
    return model, LoadReport(tuple(initialised), tuple(sorted(dropped)))
