# SPDX-License-Identifier: Apache-2.0
"""Every weight format and naming habit; nothing missing, nothing left over, nothing executed."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from helpers_models import (
    SIZES,
    load,
    our_logits,
    reports,
    save_torch_model,
    torch_logits,
)
from safetensors.numpy import load_file, save_file

from jaxdp.models.checkpoints import WeightsError, read_tensors
from jaxdp.models.classifier import POOLINGS
from jaxdp.models.presets import PRESETS, find_preset
from jaxdp.models.pretrained import load_classifier, read_config

FIXTURES = Path(__file__).parent / "fixtures"
KINDS = ("bert", "albert")


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """(directory, logits on the standard reports) of a tiny model of transformers."""
    path = tmp_path_factory.mktemp(request.param)
    model = save_torch_model(path, request.param)
    return path, torch_logits(model, *reports())


def copy(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def rewrite(directory, change):
    """Replaces the tensors of model.safetensors by change(tensors)."""
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file)


def edit_config(directory, **fields):
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def check(directory, expected):
    np.testing.assert_allclose(our_logits(load(directory), *reports()), expected, atol=2e-6)


def test_sharded_safetensors(saved, tmp_path):
    directory, expected = saved
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert not (tmp_path / "model.safetensors").exists()
    check(tmp_path, expected)
    (shard, *_) = sorted(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(WeightsError, match=shard.name):
        load(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"x": "../x.safetensors"}}, "'../x.safetensors', which is not a file"),
        ({"weight_map": {"absent": "model.safetensors"}}, "promises absent, which its shards lack"),
    ],
)
def test_a_shard_index_that_misleads(saved, tmp_path, index, message):
    copy(saved, tmp_path / "whole")
    (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "part")
    directory = tmp_path / "whole"
    (tmp_path / "part").rename(directory / "part.safetensors")
    index = json.loads(json.dumps(index).replace("model.safetensors", "part.safetensors"))
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=message):
        load(directory)


@pytest.mark.parametrize("kind", KINDS)
def test_msgpack_of_the_former_flax_classes(kind, tmp_path):
    source = FIXTURES / f"flax_{kind}"
    check(source, np.loadtxt(source / "logits.txt"))
    shutil.copy(source / "config.json", tmp_path)
    whole = (source / "flax_model.msgpack").read_bytes()
    (tmp_path / "flax_model.msgpack").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="flax_model.msgpack is not a complete Flax") as info:
        load(tmp_path)
    assert "\n" not in str(info.value)


def as_torch_file(saved, directory):
    """The same model with pytorch_model.bin as its only weights."""
    copy(saved, directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({n: torch.tensor(v) for n, v in tensors.items()}, directory / "pytorch_model.bin")


def test_pytorch_model_bin(saved, tmp_path):
    as_torch_file(saved, tmp_path)
    check(tmp_path, saved[1])


def test_pytorch_model_bin_without_torch_says_what_to_do(saved, tmp_path, monkeypatch):
    as_torch_file(saved, tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match="pip install torch, or convert it to model.safetensors"):
        read_tensors(tmp_path)


def test_a_pickle_that_runs_code_is_refused_and_not_run(saved, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    as_torch_file(saved, tmp_path)
    torch.save({"x": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pytorch_model.bin is damaged, or holds more than"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightsError, match="pytorch_model.bin is damaged, or holds more than"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_names_of_old_and_headless_checkpoints(saved, tmp_path):
    directory, expected = saved
    copy(saved, tmp_path)
    prefix = f"{json.loads((directory / 'config.json').read_text())['model_type']}."

    def old(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta").removeprefix(prefix)

    rewrite(tmp_path, lambda tensors: {old(n): v for n, v in tensors.items()})
    check(tmp_path, expected)


def test_configs_older_than_model_type(saved, tmp_path):
    edit_config(copy(saved, tmp_path), model_type=None, architectures=None)
    check(tmp_path, saved[1])
    config = read_config(tmp_path)
    assert config.to_dict() == read_config(saved[0]).to_dict() | {"architectures": None}
    rewrite(tmp_path, lambda tensors: {f"roberta.{n}": v for n, v in tensors.items()})
    with pytest.raises(WeightsError, match="do not fit config.json; missing: .*; surplus: roberta"):
        load(tmp_path)


def test_half_precision_is_widened(saved, tmp_path):
    copy(saved, tmp_path)
    rewrite(tmp_path, lambda tensors: {n: v.astype(jnp.bfloat16) for n, v in tensors.items()})
    model = load(tmp_path)
    dtypes = {v.dtype for _, v in nnx.to_flat_state(nnx.state(model))}
    assert dtypes == {np.dtype(np.float32)}
    # bfloat16 has 8 bits of mantissa.
    np.testing.assert_allclose(our_logits(model, *reports()), saved[1], atol=0.05)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_pretraining_heads_are_dropped_and_said(kind, pooling, tmp_path):
    config = {"bert": transformers.BertConfig, "albert": transformers.AlbertConfig}[kind]
    model = transformers.AutoModelForPreTraining.from_config(config(**SIZES[kind]))
    model.save_pretrained(tmp_path)
    _, report = load_classifier(tmp_path, 5, pooling, rngs=nnx.Rngs(0))
    assert set(report.initialised) == {"classifier.weight", "classifier.bias"}
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name for name in tensors if name.startswith(f"{kind}.")}
    if pooling == "mean":
        kept = {name for name in kept if "pooler" not in name}
    assert report.dropped and set(report.dropped) == set(tensors) - kept


def test_a_missing_pooler_is_initialised_and_said(saved, tmp_path):
    copy(saved, tmp_path)
    rewrite(tmp_path, lambda tensors: {n: v for n, v in tensors.items() if "pooler" not in n})
    model, report = load_classifier(tmp_path, 5, "cls", rngs=nnx.Rngs(0))
    assert len(report.initialised) == 2 and all("pooler" in n for n in report.initialised)
    state = {p: v for p, v in nnx.to_flat_state(nnx.state(model)) if "pooler" in p}
    kernel, bias = (
        next(v[...] for p, v in state.items() if p[-1] == n) for n in ("kernel", "bias")
    )
    assert abs(float(kernel.std()) / 0.02 - 1) < 0.1 and not bias.any()


def test_mean_pooling_has_no_pooler(saved):
    _, report = load_classifier(saved[0], 5, "mean", rngs=nnx.Rngs(0))
    assert not report.initialised
    assert len(report.dropped) == 2 and all("pooler" in name for name in report.dropped)
    with pytest.raises(
        ValueError,
        match="model.pooling must be one of cls, first, mean, mean-last2, label-attention, not",
    ):
        load(saved[0], pooling="max")


def first(tensors, part):
    return next(name for name in tensors if part in name)


def without(part):
    return lambda t: {n: v for n, v in t.items() if n != first(t, part)}


def reshaped(part):
    return lambda t: {n: v[:-1] if n == first(t, part) else v for n, v in t.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("query.weight"), r"missing: \S+query.weight$"),
        (lambda t: t | {"extra.weight": np.zeros(3)}, "surplus: extra.weight$"),
        (reshaped("query.weight"), r"misshapen: \S+query.weight \(32, 31\), expected \(32, 32\)$"),
        (
            lambda t: {f"layer.{i}": np.zeros(1) for i in range(20)},
            r"missing: .* and \d+ more; surplus: .* and 12 more$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, tmp_path, change, message):
    copy(saved, tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(WeightsError, match=message) as info:
        load(tmp_path)
    assert "\n" not in str(info.value)


def test_a_head_of_another_size_is_not_replaced_silently(saved):
    with pytest.raises(WeightsError, match=r"classifier.weight \(32, 5\), expected \(32, 6\)"):
        load(saved[0], num_labels=6)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_safetensors(saved, tmp_path, keep):
    copy(saved, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="model.safetensors is not a complete") as info:
        load(tmp_path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of bert, .*, not 'gpt2'"),
        ({"model_type": None, "hidden_size": None}, "model_type must be one of bert, .*, not None"),
        ({"hidden_size": None}, "weights do not fit config.json; misshapen"),
    ],
)
def test_configs_that_cannot_be_used(saved, tmp_path, fields, message):
    copy(saved, tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(WeightsError, match=message):
        load(tmp_path)


def test_directories_that_hold_no_model(saved, tmp_path):
    with pytest.raises(WeightsError, match="config.json does not exist"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="config.json is not JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="config.json must hold a JSON object"):
        load(tmp_path)
    shutil.copy(saved[0] / "config.json", tmp_path)
    with pytest.raises(WeightsError, match="holds no weights; expected one of model.safetensors, "):
        load(tmp_path)


def test_presets_have_a_hub_id_a_pooling_and_a_length():
    assert {"bert-small", "albert-base-v2", "minilm-l6", "bioclinical-modernbert"} <= set(PRESETS)
    table = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text()
    for name, preset in PRESETS.items():
        pooling, length = preset.pooling, f"{preset.max_length:,}"
        assert f"| `{name}` | {preset.hub_id} | `{pooling}` | {length} |" in table
    for preset in PRESETS.values():
        assert preset.hub_id.count("/") == 1 and preset.pooling in POOLINGS
        assert find_preset(preset.hub_id) is preset
    assert find_preset("minilm-l6") is PRESETS["minilm-l6"] and find_preset("minilm") is None


def test_the_fingerprint_is_of_the_pretrained_values_alone(saved, tmp_path):
    copy(saved, tmp_path)
    original = load(tmp_path).base_fingerprint
    assert load(saved[0]).base_fingerprint == original

    def changed(change):
        rewrite(copy(saved, tmp_path), change)
        return load(tmp_path).base_fingerprint != original

    def one_more_ulp(part):
        def change(tensors):
            value = tensors[first(tensors, part)]
            value.flat[-1] = np.nextafter(value.flat[-1], np.float32(np.inf))
            return tensors

        return change

    def swapped(tensors):
        a, b = (next(n for n in tensors if n.endswith(f"{p}.weight")) for p in ("key", "value"))
        return tensors | {a: tensors[b], b: tensors[a]}

    assert not changed(one_more_ulp("classifier.weight"))
    assert not changed(lambda tensors: dict(reversed(tensors.items())))
    for part in ("word_embeddings", "LayerNorm.bias", "query.bias", "pooler"):
        assert changed(one_more_ulp(part)), part
    assert changed(swapped)
    # The same numbers, whatever the width they are kept in.
    half = tmp_path / "half"
    copy(saved, half)
    rewrite(half, lambda tensors: {n: v.astype(np.float16) for n, v in tensors.items()})
    narrow = load(half).base_fingerprint
    rewrite(half, lambda tensors: {n: v.astype(np.float32) for n, v in tensors.items()})
    assert load(half).base_fingerprint == narrow != original


_MEASURE = r"""
import re, sys, time, transformers.models.bert.configuration_bert
from flax import nnx
from jaxdp.models.pretrained import load_classifier, read_config
import jax; jax.numpy.zeros(1).block_until_ready()
def peak(): return 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
before, start = peak(), time.perf_counter()
model, _ = load_classifier(sys.argv[1], 14, "cls", rngs=nnx.Rngs(0))
jax.block_until_ready(nnx.state(model))
seconds = time.perf_counter() - start
size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
print(seconds, (peak() - before) / size)
"""


@pytest.mark.slow
def test_loading_bert_base_takes_3_s_and_1_3_times_its_memory(tmp_path):
    transformers.BertModel(transformers.BertConfig()).save_pretrained(tmp_path)
    output = subprocess.run(
        [sys.executable, "-c", _MEASURE, tmp_path], check=True, capture_output=True, text=True
    ).stdout
    seconds, ratio = map(float, output.split())
    assert seconds < 3 and ratio <= 1.3, output
