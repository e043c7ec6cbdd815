# SPDX-License-Identifier: Apache-2.0
"""The families beside BERT and ALBERT against transformers and PEFT: numbers, names, files."""

import importlib.util
import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from flax import nnx
from helpers_models import (
    IGNORE_PEFT,
    SIZES,
    check_random_parity,
    load,
    our_logits,
    randomise,
    reports,
    save_torch_model,
    torch_inputs,
    torch_logits,
    write_bin,
    write_msgpack,
    write_sharded,
)
from helpers_training import LABELS as RUN_LABELS
from helpers_training import VOCABULARY, WORDS, smoke_config
from rich.console import Console
from safetensors.numpy import load_file
from transformers.models.modernbert import modeling_modernbert

from jaxdp.commands.export import write_stablehlo
from jaxdp.evaluation.predict import ReleasedClassifier
from jaxdp.models import lora
from jaxdp.models.checkpoints import WeightsError
from jaxdp.models.merged import load_checkpoint, save_checkpoint
from jaxdp.models.peft import TORCH_CLASS, load_adapter, read_adapter_info, save_adapter
from jaxdp.models.pretrained import MODELS, as_config, load_classifier, positions_of, read_config
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.train import train

pytestmark = IGNORE_PEFT
KINDS = [kind for kind in MODELS if kind not in ("bert", "albert")]
LABELS = tuple("abcde")
ATOL = 2e-6  # float32 noise of these tiny models; the adapters below move logits by about 0.5


@pytest.fixture(
    scope="module",
    # XLM-RoBERTa is RoBERTa with another tokenizer.
    params=[pytest.param(k, marks=[pytest.mark.slow] * (k == "xlm-roberta")) for k in KINDS],
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def saved(kind, tmp_path_factory):
    """(directory, transformers' classifier) with a head of five labels."""
    path = tmp_path_factory.mktemp(kind)
    return path, save_torch_model(path, kind)


@pytest.fixture(scope="module")
def bare(saved, tmp_path_factory):
    """The encoder alone, as it is published: names without prefix, and no head."""
    path = tmp_path_factory.mktemp("bare")
    encoder = saved[1].base_model
    encoder.save_pretrained(path)
    assert not any(n.startswith(encoder.base_model_prefix) for n in load_file(path / FILE))
    return path


FILE = "model.safetensors"


def torch_base(directory):
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=5, attn_implementation="eager"
    ).eval()


def trained(directory, pooling="cls", targets=None, noise=0.1):
    model = load(directory, pooling=pooling)
    targets = targets or model.lora_targets
    lora.add_lora(model, rank=3, alpha=5.0, targets=targets, rngs=nnx.Rngs(1))
    randomise(model, noise=noise)
    return model


def beside(adapter):
    """What lies beside an adapter with label attention, as a module."""
    code = importlib.util.spec_from_file_location("beside", adapter / TORCH_CLASS.name)
    module = importlib.util.module_from_spec(code)
    code.loader.exec_module(module)
    return module


def check(model, expected, atol=ATOL):
    found = our_logits(model, *reports())
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


@pytest.fixture
def rotary_in_float64(monkeypatch):
    """transformers rounds queries and keys to float32 as it turns them, whatever their type."""

    def tables(self, x, position_ids, layer_type):
        theta = self.config.rope_parameters[layer_type]["rope_theta"]
        width = self.config.hidden_size // self.config.num_attention_heads
        turns = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = torch.cat(2 * [position_ids[..., None] * turns], -1)
        return angles.cos(), angles.sin()

    def turned(q, k, cos, sin, unsqueeze_dim):
        half = modeling_modernbert.rotate_half
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return tuple(x * cos + half(x) * sin for x in (q, k))

    monkeypatch.setattr(modeling_modernbert.ModernBertRotaryEmbedding, "forward", tables)
    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", turned)


@pytest.mark.parametrize(
    "pooling", ["cls", *(pytest.param(p, marks=pytest.mark.slow) for p in ("mean", "mean-last2"))]
)
def test_float64_agrees_to_1e_10(tmp_path, kind, pooling, rotary_in_float64):
    with jax.enable_x64(True):
        check_random_parity(
            tmp_path,
            kind,
            {},
            pooling=pooling,
            dtype=torch.float64,
            logits_atol=1e-10,
            gradient_rtol=1e-10,
        )


PUBLISHED = {
    "roberta": dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "distilbert": {},
    "mpnet": dict(vocab_size=30527, max_position_embeddings=514, layer_norm_eps=1e-5),
    "modernbert": dict(num_hidden_layers=4, global_attn_every_n_layers=3, local_attention=128),
}
"""What config.json of roberta-base and distilbert-base changes of their classes' defaults; of
ModernBERT fewer layers, or it would take minutes."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", PUBLISHED, indirect=True)
def test_published_sizes_match_transformers(tmp_path, kind):
    default = transformers.AutoConfig.for_model(kind).to_dict()
    check_random_parity(
        tmp_path,
        kind,
        {name: default[name] for name in SIZES[kind] if name in default} | PUBLISHED[kind],
        lengths=(128, 57, 1),
        width=128,
        noise=0.02,
        logits_atol=1e-4,
        gradient_rtol=1e-3,
    )


@pytest.mark.slow
def test_a_long_report_is_read_as_by_transformers(tmp_path):
    # Blocks of queries, the published local window, and angles of more than a thousand radians.
    sizes = {"max_position_embeddings": 1400, "local_attention": 128}
    check_random_parity(
        tmp_path,
        "modernbert",
        sizes,
        lengths=(1400, 700),
        width=1400,
        logits_atol=1e-4,
        gradient_rtol=1e-3,
    )


@pytest.mark.parametrize("write", [write_sharded, write_msgpack, write_bin])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_format_gives_the_same_model(saved, tmp_path, write, pooling):
    shutil.copy(saved[0] / "config.json", tmp_path)
    write(load_file(saved[0] / FILE), tmp_path)
    wanted, found = (load(path, pooling=pooling) for path in (saved[0], tmp_path))
    assert found.base_fingerprint == wanted.base_fingerprint
    if pooling == "cls":  # else the head, of another feature, is drawn anew
        jax.tree.map(np.testing.assert_array_equal, nnx.state(found), nnx.state(wanted))


def test_a_bare_encoder_is_completed_and_a_pretraining_head_dropped(saved, bare, kind, tmp_path):
    model = transformers.AutoModelForMaskedLM.from_config(saved[1].config)
    model.save_pretrained(tmp_path)
    added = set(load_file(saved[0] / FILE)) - {
        f"{model.base_model_prefix}.{name}" for name in load_file(bare / FILE)
    }
    for directory in (bare, tmp_path):
        classifier, report = load_classifier(directory, 5, "cls", rngs=nnx.Rngs(0))
        # ModernBERT's head for that is the one that its classifiers have.
        assert set(report.initialised) == added - set(load_file(directory / FILE))
    assert report.dropped and classifier.classifier.out_features == 5


def test_ours_travels_to_peft_and_back_with_a_head_drawn_at_random(bare, tmp_path):
    model, report = load_classifier(bare, 5, "cls", rngs=nnx.Rngs(7))
    lora.add_lora(model, rank=3, alpha=5.0, targets=model.lora_targets, rngs=nnx.Rngs(0))
    randomise(model)
    where = dict(base_model=str(bare), label_names=LABELS, initialised=report.initialised)
    save_adapter(tmp_path, model, "lora", **where)
    expected = our_logits(model, *reports())
    theirs = peft.PeftModel.from_pretrained(torch_base(bare), tmp_path).eval()
    np.testing.assert_allclose(torch_logits(theirs, *reports()), expected, atol=ATOL, rtol=0)
    again = load(bare)
    load_adapter(tmp_path, again)
    np.testing.assert_array_equal(our_logits(again, *reports()), expected)


def test_an_adapter_of_peft_gives_the_same_logits_here_and_after_resaving(saved, kind, tmp_path):
    base = saved[0]
    torch.manual_seed(0)
    settings = dict(r=4, lora_alpha=8, target_modules=list(MODELS[kind].lora_targets))
    config = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **settings)
    theirs = peft.get_peft_model(torch_base(base), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    expected = torch_logits(theirs, *reports())
    assert read_adapter_info(tmp_path / "theirs")[1].label_names[4] == "LABEL_4"
    model = load(base)
    plain = our_logits(model, *reports())
    load_adapter(tmp_path / "theirs", model)
    check(model, expected)
    assert np.abs(plain - expected).max() > 0.01
    save_adapter(tmp_path / "ours", model, "lora", base_model=str(base), label_names=LABELS)
    back = peft.PeftModel.from_pretrained(torch_base(base), tmp_path / "ours").eval()
    np.testing.assert_allclose(torch_logits(back, *reports()), expected, atol=ATOL, rtol=0)


def test_label_attention_runs_in_pytorch_on_what_lies_beside_the_adapter(bare, tmp_path):
    model = trained(bare, "label-attention", targets=["all-linear"])
    randomise(model, "head+queries", noise=0.2)
    save_adapter(tmp_path, model, "lora+queries", base_model=str(bare), label_names=LABELS)
    expected = our_logits(model, *reports())
    found = torch_logits(beside(tmp_path).load(str(tmp_path)), *reports())
    np.testing.assert_allclose(found, expected, atol=ATOL, rtol=0)
    assert np.ptp(expected, axis=0).max() > 0.1


@pytest.mark.parametrize("pooling", ["cls", pytest.param("mean", marks=pytest.mark.slow)])
def test_a_merged_checkpoint_is_a_plain_one(saved, tmp_path, pooling):
    model = trained(saved[0], pooling, targets=["all-linear"])
    save_checkpoint(tmp_path, model, read_config(saved[0]), LABELS)
    expected = our_logits(model, *reports())
    if pooling == "cls":
        theirs = torch_base(tmp_path)
        assert tuple(theirs.config.id2label.values()) == LABELS
        np.testing.assert_allclose(torch_logits(theirs, *reports()), expected, atol=ATOL, rtol=0)
    else:
        (name,) = read_config(tmp_path).architectures
        theirs = getattr(transformers, name).from_pretrained(tmp_path).eval()
        with torch.no_grad():
            states = theirs(**torch_inputs(*reports())).last_hidden_state[1, :4].numpy()
        head = model.classifier
        np.testing.assert_allclose(head(states.mean(axis=0)), expected[1], atol=ATOL, rtol=0)
    again, labels = load_checkpoint(tmp_path)
    assert labels == LABELS
    check(again, expected)


@pytest.mark.parametrize("pooling", ["cls", "label-attention"])
def test_padding_has_no_influence_and_any_level_leads_to_the_same(saved, pooling):
    model = load(saved[0], pooling=pooling)
    randomise(model, "head")
    ids, lengths = reports()
    whole = our_logits(model, ids, lengths)
    other = np.where(ids == 0, 42, ids)
    np.testing.assert_array_equal(our_logits(model, other, lengths), whole)
    wider = np.pad(ids, ((0, 0), (0, 11)))
    np.testing.assert_allclose(our_logits(model, wider, lengths), whole, atol=ATOL, rtol=0)
    for level in sorted({1, model.depth - 1, model.feature_level}):
        states = jax.vmap(lambda x, n, k=level: model.advance(x, n, 0, k))(ids, lengths)
        if level <= model.depth:  # as a cache keeps them: what is beyond a report's end is zero
            states = states * (jnp.arange(ids.shape[1]) < lengths[:, None])[..., None]
        logits = jax.vmap(lambda x, n, k=level: model(x, n, k))(states, lengths)
        np.testing.assert_allclose(logits, whole, atol=ATOL, rtol=0)


def test_a_compiled_program_takes_any_length(saved, kind, tmp_path):
    pytest.importorskip("flatbuffers")
    positions = positions_of(read_config(saved[0]))
    write_stablehlo(tmp_path / "model", load(saved[0]), positions)
    exported = jax.export.deserialize((tmp_path / "model").read_bytes())
    ids, lengths = reports()
    found = exported.call(ids.astype(np.int32), lengths.astype(np.int32))
    expected = 1 / (1 + np.exp(-our_logits(load(saved[0]), ids, lengths)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_only_the_last_layers_are_adapted_and_the_others_frozen(saved):
    model = load(saved[0])
    targets = model.lora_targets
    lora.add_lora(model, rank=2, alpha=2.0, targets=targets, first_layer=1, rngs=nnx.Rngs(0))
    graphdef, adapters, frozen = lora.split(model, "lora")
    assert model.start_level(adapters) == 1
    (ids, *_), (length, *_) = reports()

    def moves(level):
        def total(adapters):
            return nnx.merge(graphdef, adapters, frozen).advance(ids, length, 0, level).sum()

        gradient = jax.jit(jax.grad(total))(adapters)
        return any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))

    assert not moves(1) and moves(2)


def test_as_many_tokens_as_there_are_positions_and_no_more(saved, kind):
    longest = positions_of(read_config(saved[0]))
    batch = reports(lengths=(longest,), width=longest)
    np.testing.assert_allclose(
        our_logits(load(saved[0]), *batch), torch_logits(saved[1], *batch), atol=ATOL, rtol=0
    )
    with pytest.raises(ValueError, match=f"but this backbone has {longest} positions"):
        load(saved[0])(jnp.ones(longest + 1, int), 1)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"], indirect=True)
def test_a_padding_token_inside_a_text_has_no_position_of_its_own(saved):
    ids, lengths = reports()
    ids[0, 3] = ids[0, 5] = 1  # "<pad>" is a token like any other where a text says so
    expected = torch_logits(saved[1], ids, lengths)
    np.testing.assert_allclose(our_logits(load(saved[0]), ids, lengths), expected, atol=ATOL)


def test_fields_that_cannot_be_used_are_named(kind):
    field = {"distilbert": "activation", "modernbert": "hidden_activation"}.get(kind, "hidden_act")
    with pytest.raises(ValueError, match=f"{field} must be one of gelu, "):
        as_config({"model_type": kind} | SIZES[kind] | {field: "silu"})


def test_a_head_of_another_size_is_not_replaced_silently(saved):
    with pytest.raises(WeightsError, match=r"classifier\S* \(32, 5\), expected \(32, 6\)"):
        load(saved[0], num_labels=6)


def write_tokenizer(kind: str, directory: Path) -> None:
    """The files that the family's tokenizer is published as, learnt from the words of the tests."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "xlm-roberta":
        content = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(WORDS)] * 9),
            model_writer=content,
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (directory / "sentencepiece.bpe.model").write_bytes(content.getvalue())
    elif kind == "roberta":
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator(WORDS, vocab_size=300, special_tokens=[*special, "<mask>"])
        bpe.save_model(str(directory))  # vocab.json and merges.txt
    elif kind == "modernbert":
        words = tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(VOCABULARY)})
        words.save(str(directory / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
        (directory / "tokenizer_config.json").write_text(json.dumps(names))
    else:
        (directory / "vocab.txt").write_text("\n".join([*special, *VOCABULARY]))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "label-attention"])
def test_a_private_run_gives_the_same_probabilities_in_pytorch(kind, pooling, workspace):
    directory = workspace / kind
    directory.mkdir()
    write_tokenizer(kind, directory)
    config = SIZES[kind] | {"vocab_size": 320}
    (directory / "config.json").write_text(json.dumps({"model_type": kind} | config))
    save_torch_model(directory, kind, vocab_size=320).base_model.save_pretrained(directory)
    settings = {"model__backbone": str(directory), "model__pooling": pooling}
    train(
        smoke_config(workspace, **settings, lora__layers="last:1", train__steps=3),
        resume=False,
        interrupt=Interrupt(),
        monitor=Monitor(Console(quiet=True)),
    )
    release = workspace / "runs" / "smoke" / "release"
    texts = ["heart enlarged", "no acute effusion, small opacity left", "lungs clear"]
    found = ReleasedClassifier(release, base_model=str(directory)).predict_proba(texts)
    if pooling == "cls":
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            directory, num_labels=len(RUN_LABELS)
        )
        theirs = peft.PeftModel.from_pretrained(base, release / "adapter").eval()
    else:
        theirs = beside(release / "adapter").load(str(release / "adapter"), str(directory))
    tokenizer = transformers.AutoTokenizer.from_pretrained(release / "adapter")
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**batch).logits.sigmoid().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.ptp(expected, axis=0).max() > 1e-3
