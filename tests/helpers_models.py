# SPDX-License-Identifier: Apache-2.0
"""Tiny transformers models with random weights, saved as transformers saves them, and inputs."""

from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from jaxdp.models.pretrained import load_classifier

SIZES = {
    "bert": dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    ),
    "albert": dict(
        vocab_size=97,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_hidden_groups=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    ),
}
"""Model type -> a tiny configuration."""


def save_torch_model(
    directory: Path, kind: str, num_labels: int = 5, dtype=torch.float32, seed: int = 0, **changes
) -> torch.nn.Module:
    """A random classifier of transformers, saved to `directory`; eval mode, eager attention.

    Every parameter is random, biases and layer norms too, so that none can be mixed up unseen.
    """
    torch.manual_seed(seed)
    config_class = {"bert": transformers.BertConfig, "albert": transformers.AlbertConfig}[kind]
    config = config_class(**{**SIZES[kind], **changes}, num_labels=num_labels)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForSequenceClassification.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


def load(directory: Path, num_labels: int = 5, pooling: str = "cls", **kwargs):
    """Our classifier for a saved one, without the load report."""
    return load_classifier(directory, num_labels, pooling, rngs=nnx.Rngs(0), **kwargs)[0]


def reports(vocab_size: int = 97, lengths=(9, 4, 1), width: int = 9, seed: int = 0):
    """(token ids [B, width] with zeros after each length, lengths [B])."""
    lengths = np.asarray(lengths)
    ids = np.random.default_rng(seed).integers(1, vocab_size, (len(lengths), width))
    return np.where(np.arange(width) < lengths[:, None], ids, 0), lengths


def torch_inputs(ids: np.ndarray, lengths: np.ndarray) -> dict[str, torch.Tensor]:
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(np.int64))}


def torch_logits(model: torch.nn.Module, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(**torch_inputs(ids, lengths)).logits.numpy()


def our_logits(model: nnx.Module, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(model)(ids, lengths))
