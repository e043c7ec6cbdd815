# SPDX-License-Identifier: Apache-2.0
"""Reports in overlapping windows: what a window holds, what is read of all, one gradient each."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from flax import nnx
from helpers_models import IGNORE_PEFT, load, randomise, save_torch_model
from helpers_training import VOCABULARY, smoke_config
from rich.console import Console
from test_families import beside

from jaxdp import dp
from jaxdp.config import ConfigError
from jaxdp.data.tokens import most_tokens, tokenize
from jaxdp.evaluation.predict import ReleasedClassifier
from jaxdp.models import lora
from jaxdp.models.tasks import multilabel_loss
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.train import train
from jaxdp.training.setup import load_inputs

pytestmark = IGNORE_PEFT
SIZE, COUNT = 8, 3


def tokenizer():
    made = tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(VOCABULARY)})
    return made._tokenizer


def test_windows_overlap_and_each_has_special_tokens():
    words = "heart lungs clear normal enlarged opacity effusion small large left right no".split()
    texts = [" ".join(words[:n]) for n in (3, 6, 7, 12)]
    packed, cut = tokenize(texts, tokenizer(), SIZE, COUNT)
    cls, sep, ids = 2, 3, [VOCABULARY.index(word) for word in words]
    windows = [ids[0:6], ids[5:11], ids[10:12]]  # an eighth of 8 tokens stands in both
    expected = [
        [cls, *ids[:3], sep],
        [cls, *ids[:6], sep],
        [cls, *ids[:6], sep, cls, *ids[5:7], sep],
        [token for window in windows for token in (cls, *window, sep)],
    ]
    for row, start, length in zip(expected, packed.offsets, packed.lengths, strict=True):
        assert packed.values[start : start + length].tolist() == row
    assert cut == 0
    packed, cut = tokenize(texts, tokenizer(), SIZE, 2)
    assert cut == 1 and packed.lengths[-1] == 2 * SIZE
    plain, cut = tokenize(texts, tokenizer(), SIZE)
    assert cut == 2 and plain.lengths.max() == SIZE
    for count in (1, 2, COUNT):
        _, cut = tokenize(texts, tokenizer(), SIZE, count)
        most = most_tokens(tokenizer(), SIZE, count)
        assert cut == sum(len(text.split()) + 2 > most for text in texts)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_torch_model(path, request.param, max_position_embeddings=SIZE + 2)
    model = load(path, pooling="label-attention")
    model.window = (SIZE, COUNT)
    randomise(model, "head+queries", noise=0.3)
    return model


@nnx.jit(static_argnames="level")
def logits(model, x, length, level=0):
    return model(x, length, level)


IDS = jnp.asarray(np.random.default_rng(0).integers(2, 97, SIZE * COUNT))


@pytest.mark.parametrize("length", [3, SIZE, SIZE + 1, 2 * SIZE + 5, SIZE * COUNT])
def test_every_window_is_read_alone_and_labels_read_all_of_them(model, length):
    other = nnx.clone(model)
    other.window = None
    states = []
    for start in range(0, length, SIZE):
        end = min(start + SIZE, length)
        states.append(other.last_states(IDS[start:end], end - start, 0))
    states = jnp.concatenate(states)
    whole = other.classifier(other.label_attention(states, jnp.ones(length, bool)))
    found = logits(model, IDS, length)
    np.testing.assert_allclose(found, whole, atol=2e-6, rtol=1e-5)
    cut = logits(model, IDS[: length + 1], length)  # a width that is no multiple of the window's
    np.testing.assert_allclose(cut, whole, atol=2e-6, rtol=1e-5)
    for level in (1, model.depth - 1):
        states = model.advance(IDS, length, 0, level)
        again = logits(model, states, length, level=level)
        np.testing.assert_allclose(again, whole, atol=2e-6, rtol=1e-5)
    noise = IDS.at[length:].set(5)
    np.testing.assert_array_equal(logits(model, noise, length), found)


def test_a_report_of_many_windows_has_one_gradient_and_one_clip(model):
    ours = nnx.clone(model)
    lora.add_lora(ours, rank=2, alpha=2.0, targets=ours.lora_targets, rngs=nnx.Rngs(0))
    randomise(ours)
    graphdef, adapters, frozen = lora.split(ours, "lora")

    def loss(adapters, ids, length, labels):
        return multilabel_loss(nnx.merge(graphdef, adapters, frozen)(ids, length), labels)

    labels = jnp.asarray([1, 0, 1, 0, 1])
    gradient = jax.jit(jax.grad(loss))(adapters, IDS, SIZE * COUNT, labels)
    norm = float(dp.clipping.per_report_norms(jax.tree.map(lambda x: x[None], gradient))[0])
    batch = (jnp.stack([IDS, IDS]), jnp.asarray([SIZE * COUNT, 5]), jnp.stack([labels, labels]))
    clipped = jax.jit(dp.clipped_gradient_sum(loss, norm / 10))
    total, _ = clipped(adapters, *batch, is_padding=jnp.asarray([False, True]))
    for found, own in zip(jax.tree.leaves(total), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(found, own / 10, rtol=1e-3, atol=1e-6)


def test_a_first_token_cannot_be_pooled(workspace):
    with pytest.raises(ConfigError, match="model.pooling must be mean, .* with data.windows"):
        load_inputs(smoke_config(workspace, data__windows=2))
    with pytest.raises(ConfigError, match="data.windows must be at least 1"):
        smoke_config(workspace, data__windows=0)


@pytest.mark.slow
def test_a_run_with_windows_gives_the_same_probabilities_in_pytorch(workspace):
    settings = dict(data__max_length=SIZE, data__windows=COUNT, model__pooling="label-attention")
    config = smoke_config(workspace, **settings, train__steps=3)
    train(config, resume=False, interrupt=Interrupt(), monitor=Monitor(Console(quiet=True)))
    release, base = workspace / "runs" / "smoke" / "release", workspace / "backbone"
    assert json.loads((release / "adapter" / "jaxdp.json").read_text())["window"] == [SIZE, COUNT]
    texts = [
        "heart enlarged",
        "no acute effusion . small opacity left . lungs clear . normal heart",
    ]
    ours = ReleasedClassifier(release, base_model=str(base))
    found = ours.predict_proba(texts)
    theirs = beside(release / "adapter").load(str(release / "adapter"), str(base))
    split = transformers.AutoTokenizer.from_pretrained(release / "adapter")
    for text, own in zip(texts, found, strict=True):
        windows = split(
            text,
            truncation=True,
            max_length=SIZE,
            stride=SIZE // 8,
            return_overflowing_tokens=True,
        )["input_ids"][:COUNT]
        ids = torch.tensor([sum(windows, [])])
        with torch.no_grad():
            logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        np.testing.assert_allclose(own, logits.sigmoid()[0].numpy(), atol=1e-5)
    assert ours.evidence(["heart normal . " + "no acute effusion . " * 4])[0][2]
