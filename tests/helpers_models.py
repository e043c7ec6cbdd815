# SPDX-License-Identifier: Apache-2.0
"""Tiny transformers models with random weights, saved as transformers saves them, and inputs."""

import re
from functools import partial
from pathlib import Path

import flax
import huggingface_hub
import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file
from transformers.modeling_outputs import SequenceClassifierOutput

from jaxdp.models import lora
from jaxdp.models.peft import save_adapter
from jaxdp.models.presets import PUBLISHED_SIZES
from jaxdp.models.pretrained import load_classifier

# Two test processes on two cores: more threads would wait for each other, longer than they compute.
torch.set_num_threads(1)
HEADS_FIRST_LAYER = r"\.(classifier\.dense|pre_classifier)\."
IGNORE_PEFT = pytest.mark.filterwarnings(
    # PEFT asks transformers for a property by its old name.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

SIZES = {
    "bert": dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    ),
    "roberta": dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    ),
    "distilbert": dict(
        vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
    ),
    "modernbert": dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=40,
        global_attn_every_n_layers=2,  # the middle one is local
        local_attention=4,  # two tokens to either side
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 800.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
        pad_token_id=0,
    ),
    "mpnet": dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        layer_norm_eps=1e-5,
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
SIZES["xlm-roberta"] = SIZES["roberta"]
"""Model type -> a tiny configuration."""

STUDY = {
    name: (sizes["model_type"], {k: v for k, v in sizes.items() if k != "model_type"})
    for name, sizes in PUBLISHED_SIZES.items()
}
"""Preset -> (model type, its published configuration)."""


def save_torch_model(
    directory: Path,
    kind: str,
    num_labels: int = 5,
    dtype=torch.float32,
    noise: float = 0.05,
    **changes,
) -> torch.nn.Module:
    """A random classifier of transformers, saved to `directory`; eval mode, eager attention.

    Every parameter is random, biases and layer norms too, so that none can be mixed up unseen.
    """
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, **{**SIZES[kind], **changes}, num_labels=num_labels
    )
    # ModernBERT's eager attention has its softmax in float32, whatever the type.
    config._attn_implementation = "sdpa" if kind == "modernbert" else "eager"
    model = transformers.AutoModelForSequenceClassification.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


def write_sharded(tensors, directory):
    size = sum(value.nbytes for value in tensors.values()) // 3
    huggingface_hub.save_torch_state_dict(
        {name: torch.tensor(value) for name, value in tensors.items()},
        directory,
        max_shard_size=size,
    )
    assert len(list(directory.glob("model-*.safetensors"))) > 1


def write_msgpack(tensors, directory):
    """As the former Flax classes named and laid out their parameters."""
    tree = {}
    for name, value in tensors.items():
        *parents, leaf = name.split(".")
        if leaf == "weight" and parents[-1].endswith("embeddings"):
            leaf = "embedding"
        elif leaf == "weight" and parents[-1].lower().endswith("norm"):
            leaf = "scale"
        elif leaf == "weight":
            leaf, value = "kernel", np.ascontiguousarray(value.T)
        tree[(*parents, leaf)] = value
    tree = flax.traverse_util.unflatten_dict(tree)
    (directory / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))


def write_bin(tensors, directory):
    tensors = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save(tensors, directory / "pytorch_model.bin")


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
    return np.asarray(_logits(*nnx.split(model), ids, lengths))


@partial(jax.jit, static_argnums=0)  # compiled once for all models of one kind
def _logits(graphdef, state, ids, lengths):
    return jax.vmap(nnx.merge(graphdef, state))(ids, lengths)


def randomise(model: nnx.Module, mode: str = "lora", noise: float = 0.1) -> None:
    """Moves what `mode` trains off its starting point (B away from zero), in place."""
    rng = np.random.default_rng(0)
    state = nnx.state(model, lora.trainable(mode))
    nnx.update(model, jax.tree.map(lambda x: x + noise * rng.normal(size=x.shape), state))


def mean_pooled(model: torch.nn.Module, layers: int = 1, first: bool = False) -> torch.nn.Module:
    """The same classifier with the head on the mean over real tokens of the last layers' average,
    as in docs/backbones.md; or on the `first` of them alone."""

    class MeanPooled(type(model)):
        def forward(self, input_ids, attention_mask, **kwargs):
            output = self.base_model(input_ids, attention_mask, output_hidden_states=True)
            *before, hidden = output.hidden_states[-layers:]
            norm = getattr(self.base_model, "final_norm", torch.nn.Identity())  # as the last has
            hidden = (hidden + sum(map(norm, before))) / layers
            weights = attention_mask[..., None].to(hidden.dtype)
            if first:
                weights = torch.nn.functional.pad(weights[:, :1], (0, 0, 0, weights.shape[1] - 1))
            pooled = (hidden * weights).sum(1) / weights.sum(1)
            return SequenceClassifierOutput(logits=self.classifier(pooled))

    model.classifier = getattr(model.classifier, "out_proj", model.classifier)
    model.pre_classifier = None  # DistilBERT's, which PEFT would take for a part of the head
    model.__class__ = MeanPooled
    return model


def logits_and_gradients(model: nnx.Module, directory: Path):
    """(ids, lengths, weights) -> logits, and d(sum of weights * logits) by PEFT's tensor names:
    saved as if an adapter. One program for all batches of a shape."""
    graphdef, adapters, frozen = lora.split(model, "lora")

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(adapters, frozen, ids, lengths, weights):
        logits = jax.vmap(nnx.merge(graphdef, adapters, frozen))(ids, lengths)
        return (weights * logits).sum(), logits

    def of(*batch):
        gradients, logits = gradient(adapters, frozen, *batch)
        as_adapter = nnx.merge(graphdef, gradients, frozen)
        names = [str(i) for i in range(as_adapter.classifier.out_features)]
        save_adapter(directory, as_adapter, "lora", base_model="none", label_names=names)
        return np.asarray(logits), load_file(directory / "adapter_model.safetensors")

    return of


def torch_logits_and_gradients(model: torch.nn.Module, ids, lengths, weights):
    """The same of a trainable PeftModel."""
    model.zero_grad()
    logits = model(**torch_inputs(ids, lengths)).logits
    (torch.tensor(weights) * logits).sum().backward()
    return logits.detach().numpy(), {
        name.replace(".modules_to_save.default", "").replace(".default", ""): p.grad.numpy()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def check_random_parity(
    directory: Path, kind: str, changes, *, dtype=torch.float32, noise: float = 0.1, **kwargs
) -> None:
    """`check_parity` on a random model of transformers, made with `changes` to `SIZES`.

    `noise` moves all parameters off their initial values; large models want less, or all tokens
    grow alike and the gradients of queries and keys are differences of equal numbers.
    """
    theirs = save_torch_model(directory / "base", kind, dtype=dtype, noise=noise / 2, **changes)
    check_parity(directory, directory / "base", theirs, noise=noise, **kwargs)


def check_parity(
    directory: Path,
    base: Path,
    theirs: torch.nn.Module,
    *,
    logits_atol: float,
    gradient_rtol: float,
    noise: float,
    pooling: str = "cls",
    targets=("all-linear",),
    lengths=(9, 4, 1),
    width: int = 9,
) -> None:
    """Compares `theirs`, with our adapter in PEFT, with our model of `base`: logits, and every LoRA
    and head gradient, on reports padded to `width` and on one alone, `width` long, without padding.

    `gradient_rtol` is relative to the largest entry of each tensor's gradient.
    """
    dtype = theirs.dtype
    if pooling != "cls":
        theirs = mean_pooled(theirs, 2 if pooling == "mean-last2" else 1, pooling == "first")
    ours = load(base, pooling=pooling)
    lora.add_lora(ours, rank=4, alpha=8.0, targets=targets, rngs=nnx.Rngs(1))
    randomise(ours, noise=noise)
    save_adapter(directory / "adapter", ours, "lora", base_model=str(base), label_names="abcde")
    theirs = peft.PeftModel.from_pretrained(theirs, directory / "adapter", is_trainable=True)
    # PEFT rounds adapters to float32 as it creates them; load them again at full width.
    theirs = theirs.to(dtype).eval()
    tensors = load_file(directory / "adapter" / "adapter_model.safetensors")
    peft.set_peft_model_state_dict(theirs, {n: torch.tensor(v) for n, v in tensors.items()})

    ids, lengths = reports(theirs.config.vocab_size, lengths, width)
    weights = np.random.default_rng(1).normal(size=(len(lengths), 5))
    weights = weights.astype(torch.zeros(0, dtype=dtype).numpy().dtype)
    assert lengths[0] == width
    # Alone for PyTorch; ours reads it beside others of weight 0, by the program that there is.
    alone = [np.repeat(x[:1], len(x), axis=0) for x in (ids, lengths, weights)]
    alone[2][1:] = 0
    found = logits_and_gradients(ours, directory / "gradient")
    for batch, rows in (((ids, lengths, weights), slice(None)), (alone, slice(1))):
        logits, got = found(*batch)
        logits = logits[rows]
        expected, wanted = torch_logits_and_gradients(theirs, *(x[rows] for x in batch))
        assert logits.dtype == expected.dtype
        np.testing.assert_allclose(logits, expected, atol=logits_atol, rtol=0)
        assert got.keys() == wanted.keys()
        # PEFT trains both layers of RoBERTa's and DistilBERT's heads; we the last one.
        wanted = {name: g for name, g in wanted.items() if not re.search(HEADS_FIRST_LAYER, name)}
        errors = {n: np.abs(got[n] - g).max() / np.abs(g).max() for n, g in wanted.items()}
        assert max(errors.values()) <= gradient_rtol, errors
