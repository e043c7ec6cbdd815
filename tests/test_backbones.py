# SPDX-License-Identifier: Apache-2.0
"""What users bring as a backbone: names, weight formats, tokenizers, files that do not fit.

With the cells of the table in docs/backbones.md that no other file tests: MiniLM's real weights,
and the sizes of the study with random ones (slow).
"""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import sentencepiece
import torch
import transformers
from flax import nnx
from helpers_models import (
    IGNORE_PEFT,
    STUDY,
    check_parity,
    load,
    mean_pooled,
    our_logits,
    reports,
    save_torch_model,
    torch_logits,
    write_bin,
    write_msgpack,
    write_sharded,
)
from helpers_training import LABELS, as_flags, run_script, smoke_config, smoke_settings
from rich.console import Console
from safetensors.numpy import load_file

from jaxdp import assets
from jaxdp import backbone as backbone_module
from jaxdp.backbone import Backbone, resolve_backbone
from jaxdp.cli import USER_ERRORS
from jaxdp.config import ConfigError
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.evaluation.predict import ReleasedClassifier
from jaxdp.models.checkpoints import WeightsError
from jaxdp.models.peft import load_adapter, read_adapter_info
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor, peak_memory
from jaxdp.run.train import train
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import load_inputs
from jaxdp.training.stages import plan_run
from jaxdp.training.warm_start import build_model

pytestmark = IGNORE_PEFT
TEXTS = ["Heart size normal.", "No pleural effusion, lungs clear", "Small opacity in the left lung"]


def write_backbone(name: str, directory: Path) -> Path:
    """A directory with a model.safetensors without a head and with vocab.txt; random weights, but
    for MiniLM."""
    real = assets.fetch(assets.MINILM)
    if name == "minilm-l6":
        return real
    kind, sizes = STUDY[name]
    save_torch_model(directory, kind, noise=0.02, **sizes).base_model.save_pretrained(directory)
    words = (real / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (directory / "vocab.txt").write_text("\n".join(words[: sizes["vocab_size"]]))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return directory


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) for name in ("minilm-l6", *STUDY)],
)
def backbone(request, tmp_path_factory):
    """(name, directory)"""
    return request.param, write_backbone(request.param, tmp_path_factory.mktemp("backbone"))


def pooling(name: str) -> str:
    return "mean" if name == "minilm-l6" else "cls"


def peak_of_linux() -> float:
    """GB"""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


@pytest.mark.parametrize("write", [write_sharded, write_msgpack, write_bin])
def test_every_format_gives_the_same_model(backbone, tmp_path, write):
    name, directory = backbone
    shutil.copy(directory / "config.json", tmp_path)
    write(load_file(directory / "model.safetensors"), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    wanted, found = (load(path, pooling=pooling(name)) for path in (directory, tmp_path))
    assert found.base_fingerprint == wanted.base_fingerprint
    jax.tree.map(np.testing.assert_array_equal, nnx.state(found), nnx.state(wanted))


def torch_classifier(name, directory):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=5, attn_implementation="eager"
    ).eval()
    return mean_pooled(model) if pooling(name) == "mean" else model


@pytest.mark.slow
def test_minilm_with_its_real_weights_matches_transformers(tmp_path):
    directory = assets.fetch(assets.MINILM)
    check_parity(
        tmp_path,
        directory,
        torch_classifier("minilm-l6", directory),
        pooling="mean",
        targets=("query", "value"),
        lengths=(64, 21, 1),
        width=64,
        noise=0.02,
        logits_atol=1e-4,
        gradient_rtol=1e-3,
    )


def test_an_adapter_of_peft_gives_the_same_logits(backbone, tmp_path):
    name, directory = backbone
    torch.manual_seed(0)
    config = peft.LoraConfig(
        task_type="SEQ_CLS" if pooling(name) == "cls" else None,
        modules_to_save=["classifier"],
        target_modules=["query", "value"],
        init_lora_weights=False,  # B is random too
    )
    theirs = peft.get_peft_model(torch_classifier(name, directory), config).eval()
    theirs.save_pretrained(tmp_path)
    if pooling(name) == "mean":
        with pytest.raises(WeightsError, match='does not say how it pools.*"pooling": "cls" or'):
            read_adapter_info(tmp_path)
        description = {"pooling": "mean", "label_names": list("abcde")}
        (tmp_path / "jaxdp.json").write_text(json.dumps(description))
    batch = reports(theirs.config.vocab_size, lengths=(16, 7, 1), width=16)
    expected = torch_logits(theirs, *batch)
    with theirs.disable_adapter():
        assert np.abs(torch_logits(theirs, *batch) - expected).max() > 1e-3
    model = load(directory, pooling=pooling(name))
    load_adapter(tmp_path, model)
    np.testing.assert_allclose(our_logits(model, *batch), expected, atol=1e-4, rtol=0)


def test_names_of_backbones(workspace, monkeypatch):
    monkeypatch.setattr(backbone_module, "download", lambda hub_id, revision: Path(hub_id))
    clinical = "emilyalsentzer/Bio_ClinicalBERT"
    for name in ("bio-clinical-bert", clinical):
        found = resolve_backbone(name, None, "v1")
        assert found == Backbone(clinical, Path(clinical), "cls", 128, "v1")
    assert resolve_backbone("owner/name", "mean") == Backbone(
        "owner/name", Path("owner/name"), "mean"
    )
    assert resolve_backbone("minilm-l6", None, "v1").pooling == "mean"
    # Of a directory, a release tells its last name alone.
    monkeypatch.chdir(workspace / "backbone")
    for name in (str(workspace / "backbone"), "."):
        assert resolve_backbone(name).name == "backbone"
    message = "'bert-smal' is no directory here.* bert-small.*--base_model"
    with pytest.raises(ConfigError, match=message):
        resolve_backbone("bert-smal")


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "include_prompt": True}, "first"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "mean"}, "mean"),  # from version 5.4 on
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
        ({}, None),
    ],
)
def test_what_sentence_transformers_says_of_pooling_is_read(tmp_path, content, pooling):
    assert resolve_backbone(str(tmp_path)).pooling == "cls"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content))
    assert resolve_backbone(str(tmp_path), "label-attention").pooling == "label-attention"
    if pooling:
        assert resolve_backbone(str(tmp_path)).pooling == pooling
    else:
        with pytest.raises(ConfigError, match="config.json pools in a way .* config.model.pooling"):
            resolve_backbone(str(tmp_path))


def test_reports_beyond_the_usual_length_are_counted(workspace):
    config = smoke_config(workspace)
    inputs, plan = load_inputs(config), plan_run(config)
    lengths = np.concatenate([tokens.lengths for tokens in inputs.tokens.values()])
    for usual, count in ((6, (lengths > 6).sum()), (16, 0), (None, 0)):
        backbone = dataclasses.replace(inputs.backbone, usual_length=usual)
        console = Console(record=True, width=100, file=io.StringIO())
        Monitor(console).loaded(dataclasses.replace(inputs, backbone=backbone), plan)
        said = f"longer than the backbone's usual {usual} tokens: {count}"
        assert (said in console.export_text()) == (count > 0), said


def test_parameters_and_memory_are_said(workspace):
    console = Console(record=True, width=100, file=io.StringIO())
    config = smoke_config(workspace, train__mode="head")
    model, report = build_model(
        config, Backbone("", workspace / "backbone", "cls"), "abc", RunSecret.create(0)
    )
    Monitor(console).built(model, report, "head")
    head = 3 * 16 + 3
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    said = f"{total:,} parameters, {head} trained ({100 * head / total:.2g} %)"
    assert said in console.export_text()
    # Linux's own count of the same, in kB; memory only goes up.
    before, text = peak_of_linux(), peak_memory()
    said = float(re.fullmatch(r"peak memory ([\d.]+) GB", text)[1])
    assert before - 0.01 <= said <= peak_of_linux() + 0.01


@pytest.mark.slow
def test_minilm_with_its_real_weights_trains_privately(workspace):
    changes = dict(model__backbone="minilm-l6", head_stage__steps=0, centering__l2_clip_norm=None)
    monitor = Monitor(Console(quiet=True))
    result = train(
        smoke_config(workspace, **changes), resume=False, interrupt=Interrupt(), monitor=monitor
    )
    assert 0.49 < result["privacy"]["epsilon"] <= 0.5
    adapter = workspace / "runs" / "smoke" / "release" / "adapter"
    tensors = load_file(adapter / "adapter_model.safetensors")
    lora_b = [value for name, value in tensors.items() if "lora_B" in name]
    assert len(lora_b) == 2 and all(np.abs(value).max() > 0 for value in lora_b)
    config, _ = read_adapter_info(adapter)
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"vocab_size": 18}, "tokenizer has 19 ids, but vocab_size .* is 18"),
        ("config.json", {"max_position_embeddings": 15}, "data.max_length must be at most 15"),
        ("config.json", {"model_type": "gpt2"}, "model_type must be one of bert, .*, not 'gpt2'"),
        (
            "config.json",
            {"hidden_size": "16"},
            "config.json: .*'hidden_size' expected int, got str",
        ),
        (
            "config.json",
            {"type_vocab_size": 3},
            r"token_type_embeddings.weight \(2, 16\), expected",
        ),
        ("model.safetensors", 1000, "model.safetensors is not a complete safetensors file"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_one_line(workspace, file, change, message):
    path = workspace / "backbone" / file
    if file == "config.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        path.write_bytes(path.read_bytes()[:change])
    config = smoke_config(workspace)
    with pytest.raises(USER_ERRORS, match=message) as info:
        build_model(config, load_inputs(config).backbone, LABELS, RunSecret.create(0))
    assert "\n" not in str(info.value)


NASTY = [
    "", " ", "\n\t\r\x0b", "No acute\ndisease.\r\n\r\n", "___ 3.5 x 2-cm 1,234.5%", "don't ##ing",
    "[CLS] a [SEP] b [MASK] [PAD] [UNK] [cls] <pad> </s>", "!?.,;:-_()[]{}<>|\\/\"'`~@#$%^&*+=",
    "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m cafe\u0301 e\u0301\u0301\u0301",
    "\u0130stanbul \u1e9e \ufb01 \u00bd",
    "\u80f8\u90e8X\u7dda \u6b63\u5e38 \u0442\u0435\u043d\u044c", "heart\u00a0size\u3000normal",
    "\x00a\x00 \ufffd a\u200bb\u00adc\ufeff \u202eabc \ud7ff\ue000",
    "\U0001f600\U0001f9ec\U00020000 \u2695\ufe0f",
    "x" * 101 + " b", "a " * 600,
]  # fmt: skip


def write_spiece(directory: Path) -> sentencepiece.SentencePieceProcessor:
    """spiece.model as ALBERT has it, and nothing else; returns sentencepiece's own reader of it."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, "no caf\u00e9 in the left lung, 1.5 cm"] * 9),
        model_writer=content,
        vocab_size=99,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(content.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt", "cased", "spiece.model"])
def test_tokens_of_nasty_strings_are_those_of_transformers(tmp_path, form):
    if form == "spiece.model":
        write_spiece(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "albert"}')
    else:
        for name in ("config.json", "tokenizer.json" if form == "tokenizer.json" else "vocab.txt"):
            shutil.copy(assets.fetch(assets.MINILM) / name, tmp_path)
        settings = {"do_lower_case": False} if form == "cased" else {}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    packed, _ = tokenize(NASTY, load_tokenizer(tmp_path), 512)
    for text, start, length in zip(NASTY, packed.offsets, packed.lengths, strict=True):
        expected = theirs(text, truncation=True, max_length=512)["input_ids"]
        assert packed.values[start : start + length].tolist() == expected, ascii(text)


def test_an_albert_with_spiece_model_alone_is_trained_and_used(workspace):
    directory = workspace / "albert"
    directory.mkdir()
    reference = write_spiece(directory)
    rows = reference.get_piece_size()
    save_torch_model(directory, "albert", vocab_size=rows).base_model.save_pretrained(directory)
    config = smoke_config(
        workspace,
        model__backbone=str(directory),
        privacy__epsilon=None,
        head_stage__steps=0,
        train__mode="head",
        train__steps=2,
    )
    train(config, resume=False, interrupt=Interrupt(), monitor=Monitor(Console(quiet=True)))
    adapter = workspace / "runs" / "smoke" / "release" / "adapter"
    cls, sep = reference.piece_to_id(["[CLS]", "[SEP]"])
    for reader in (transformers.AutoTokenizer.from_pretrained(adapter), load_tokenizer(adapter)):
        for text in TEXTS:
            ids = getattr(reader.encode(text), "ids", None) or reader.encode(text)
            assert ids == [cls, *reference.encode(text.lower()), sep]
    values = ReleasedClassifier(adapter.parent, base_model=str(directory)).predict_proba(TEXTS)
    assert values.shape == (len(TEXTS), len(LABELS)) and len(np.unique(values)) == values.size


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDY)
def test_full_size_trains_privately_and_says_what_it_takes(name, workspace):
    directory = write_backbone(name, workspace / name)
    settings = smoke_settings(
        workspace,
        model__backbone=str(directory),
        lora__layers="all",
        train__steps=2,
        head_stage__steps=0,
    )
    done = run_script("train.py", *as_flags(settings))
    assert done.returncode == 0, done.stderr
    width, rank = STUDY[name][1]["hidden_size"], settings.lora.rank
    layers = 1 if name.startswith("albert") else STUDY[name][1]["num_hidden_layers"]
    trained = layers * 2 * 2 * width * rank + (width + 1) * len(LABELS)
    backbone = transformers.AutoModel.from_pretrained(directory).num_parameters()
    text = " ".join(done.stdout.split())
    total = backbone + trained
    assert f"{total:,} parameters, {trained:,} trained ({100 * trained / total:.2g} %)" in text
    (*_, peak) = re.findall(r"peak memory ([\d.]+) GB", text)
    assert 4 * total / 1e9 < float(peak) < 24
