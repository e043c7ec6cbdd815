# SPDX-License-Identifier: Apache-2.0
"""Several readers: their logits are the sum of each one's, wherever they are computed."""

import json
import shutil
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from helpers_models import load, our_logits, randomise, reports, save_torch_model, torch_logits
from helpers_training import LABELS, AtTheFirstStep, smoke_config, write_workspace
from jax.flatten_util import ravel_pytree
from test_warm_start import BOOK, adapter_of, built, parameters, run, settings

from jaxdp import dp
from jaxdp.backbone import load_finetuned
from jaxdp.config import Config, ConfigError
from jaxdp.evaluation.predict import ReleasedClassifier
from jaxdp.models import lora
from jaxdp.models.checkpoints import WeightsError
from jaxdp.models.merged import load_checkpoint, save_checkpoint
from jaxdp.models.peft import load_adapter, save_adapter
from jaxdp.models.pretrained import read_config
from jaxdp.models.readers import join, own_of, part
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.loop import Interrupted
from jaxdp.run.monitor import SilentMonitor
from jaxdp.run.release_check import check_release, failures
from jaxdp.run.train import train
from jaxdp.training.setup import load_inputs, token_buckets
from jaxdp.training.trainer import report_loss
from jaxdp.training.warm_start import public_basis

ATOL, ATTENTION = 1e-4, "label-attention"
NAMES = tuple("abcde")


@pytest.fixture(params=["bert", "albert"], scope="module")
def base(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_torch_model(path / "full", request.param)
    transformers.AutoModel.from_pretrained(path / "full").save_pretrained(path)
    return path


@cache
def reader_of(base, pooling, number):
    reader = load(base, pooling=pooling)
    rngs = nnx.Rngs(number)
    lora.add_lora(reader, rank=2, alpha=4.0, targets=["query", "value"], rngs=rngs)
    randomise(reader, "lora+queries", noise=0.1 * (number + 1))
    return reader


def readers_of(base, pooling="label-attention", count=3):
    """Ordinary classifiers over the same frozen weights, and one model of all of them."""
    each = [nnx.clone(reader_of(base, pooling, number)) for number in range(count)]
    model = nnx.clone(each[0])
    join(model, [own_of(reader) for reader in each])
    return each, model


@pytest.mark.parametrize("pooling", ["label-attention", "mean", "mean-last2", "cls"])
def test_logits_are_the_sum_of_each_reader_s(base, pooling):
    each, model = readers_of(base, pooling)
    ids, lengths = reports()
    alone = [our_logits(reader, ids, lengths) for reader in each]
    assert min(np.abs(a - b).max() for a, b in zip(alone, alone[1:], strict=False)) > 0.05
    expected, whole = sum(alone), our_logits(model, ids, lengths)
    np.testing.assert_allclose(whole, expected, atol=1e-5, rtol=1e-5)
    # What it knows of itself: every reader again, and no padding.
    parts = [our_logits(part(model, number), ids, lengths) for number in range(3)]
    np.testing.assert_allclose(sum(parts), expected, atol=1e-5, rtol=1e-5)
    bias = np.asarray(model.classifier.bias[...]) / 3
    for reader, own, found in zip(each, alone, parts, strict=True):
        own = own - np.asarray(reader.classifier.bias[...])
        np.testing.assert_allclose(found - bias, own, atol=1e-5, rtol=1e-5)
    other = np.where(ids == 0, 1, ids)
    np.testing.assert_array_equal(our_logits(model, other, lengths), whole)


def test_reports_of_a_row_are_read_as_alone(base):
    _, model = readers_of(base)
    ids, lengths = reports()
    row = np.concatenate([ids[i, :n] for i, n in enumerate(lengths)] + [np.zeros(3, ids.dtype)])
    features = model.advance(row, jnp.asarray(lengths), 0, model.feature_level)
    together = [model.logits(feature) for feature in features]
    np.testing.assert_allclose(together, our_logits(model, ids, lengths), atol=1e-5, rtol=1e-5)


def test_levels_and_a_basis_change_nothing(base):
    _, model = readers_of(base)
    ids, lengths = reports()
    expected = our_logits(model, ids, lengths)
    adapted = model.start_level(lora.split(model, "lora")[1])
    assert model.start_level(lora.split(model, "head+queries")[1]) == adapted
    assert model.start_level(lora.split(model, "head")[1]) == model.feature_level
    rng = np.random.default_rng(0)
    features = rng.standard_normal((9, 5, model.classifier.in_features))
    center, directions = public_basis(features.astype(np.float32), model.classifier.kernel[...])
    model.set_basis(center)
    np.testing.assert_allclose(our_logits(model, ids, lengths), expected, atol=1e-4, rtol=1e-4)
    model.fold_basis()
    model.set_basis(center, directions[..., :4])  # its head is the first
    for level in sorted({0, adapted, model.feature_level}):
        states = [model.advance(x, n, 0, level) for x, n in zip(ids, lengths, strict=True)]
        found = [model(x, n, level) for x, n in zip(states, lengths, strict=True)]
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert states[0].shape == (5, 4)


def test_gradients_are_those_of_each_reader(base):
    each, model = readers_of(base)
    ids, lengths = reports()
    weights = np.random.default_rng(1).standard_normal(5)

    @partial(jax.jit, static_argnums=0)
    @partial(jax.grad, argnums=1)
    def of_loss(graphdef, adapters, frozen, shift):
        logits = nnx.merge(graphdef, adapters, frozen)(ids[0], lengths[0]) + shift
        return jnp.sum(weights * jax.nn.softplus(logits))

    def gradient(model, shift):
        return dict(nnx.to_flat_state(of_loss(*lora.split(model, "lora+queries"), shift)))

    whole = our_logits(model, ids, lengths)[0]
    found = gradient(model, 0.0)
    for number, reader in enumerate(each):
        rest = whole - our_logits(reader, ids, lengths)[0]
        width = reader.classifier.in_features
        for path, expected in gradient(reader, rest).items():
            ours = found[path][...]
            if path[-1] == "kernel":
                ours = ours[number * width : (number + 1) * width] * 3**0.5
            elif path[-1] != "bias":
                ours = ours[number]
            np.testing.assert_allclose(ours, expected[...], atol=1e-4, rtol=1e-3, err_msg=path)


def test_in_pytorch_and_back(base, tmp_path):
    _, model = readers_of(base)
    save_adapter(tmp_path, model, "head", base_model=str(base), label_names=NAMES)
    ids, lengths = reports()
    expected = our_logits(model, ids, lengths)
    code = {}
    exec((tmp_path / "label_attention_torch.py").read_text(), code)
    theirs = code["load"](str(tmp_path))
    with torch.no_grad():
        np.testing.assert_allclose(torch_logits(theirs, ids, lengths), expected, atol=ATOL, rtol=0)
    again = load(base, pooling="label-attention")
    load_adapter(tmp_path, again)
    np.testing.assert_allclose(our_logits(again, ids, lengths), expected, atol=1e-5, rtol=1e-5)

    path = tmp_path / "reader_3" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 5}))
    with pytest.raises(WeightsError, match="reader_3: not of the same form as the first reader"):
        load_adapter(tmp_path, load(base, pooling="label-attention"))
    shutil.rmtree(tmp_path / "reader_3")
    with pytest.raises(WeightsError, match="reader_3"):
        load_adapter(tmp_path, load(base, pooling="label-attention"))


def test_merged_each_is_a_checkpoint(base, tmp_path):
    _, model = readers_of(base)
    save_checkpoint(tmp_path, model, read_config(base), NAMES)
    ids, lengths = reports()
    total = 0
    for folder in (tmp_path, tmp_path / "reader_2", tmp_path / "reader_3"):
        total = total + our_logits(load(folder, pooling="label-attention"), ids, lengths)
    np.testing.assert_allclose(total, our_logits(model, ids, lengths), atol=ATOL, rtol=0)
    with pytest.raises(WeightsError, match="one of 3 readers; use their adapter"):
        load_checkpoint(tmp_path)


@pytest.fixture
def workspace(tmp_path):
    write_workspace(tmp_path)
    (tmp_path / "book.json").write_text(json.dumps(BOOK))
    return tmp_path


QUICK = {
    "model__pooling": "label-attention",
    "train__mode": "head",
    "head_stage__steps": 0,
    "centering__l2_clip_norm": None,
}


def test_each_learns_in_an_order_of_its_own_and_the_first_as_one_alone(workspace):
    def start(readers):
        changes = QUICK | {"warm_start__readers": readers}
        config = smoke_config(workspace, **settings(str(workspace / "book.json"), 20, **changes))
        model = built(workspace, config, pooling="label-attention")
        model.fold_basis()
        return parameters(model)

    alone, found = start(1), start(2)
    for name, value in alone.items():
        if "lora_" in name or "queries" in name:
            np.testing.assert_array_equal(found[name][0], value, err_msg=name)
            assert "lora_a" not in name or (found[name][1] != value).any()
    assert (found["label_attention.queries"][0] != found["label_attention.queries"][1]).any()
    # The mean of both: what stands in the first half is half of one alone.
    half = alone["classifier.kernel"] / 2 * 2**0.5
    np.testing.assert_allclose(found["classifier.kernel"][: len(half)], half, atol=1e-5)
    again = start(2)  # from the cache
    for name, value in found.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.parametrize("mode", ["head", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_with_two_readers_is_released_whole(workspace, mode):
    changes = QUICK | {"warm_start__readers": 2, "train__mode": mode}
    if mode == "head":
        changes |= {"model__label_dimensions": 3, "run__checkpoint_every": 2}
    config = smoke_config(workspace, **settings(str(workspace / "book.json"), 5, **changes))
    run(config)
    release = config.path / "release"
    assert failures(check_release(release, workspace / "backbone")) == ""
    classifier = ReleasedClassifier(release, base_model=str(workspace / "backbone"))
    kept = np.load(config.path / "private" / "test_predictions.npz")
    texts = list(load_inputs(config).dataset.subset("test").texts)
    found = np.asarray(classifier.predict_proba(texts))
    np.testing.assert_allclose(found, kept["probabilities"], atol=1e-4)

    stopped = config.below(config.path.parent, "stopped")
    with pytest.raises(Interrupted):
        train(stopped, resume=False, interrupt=AtTheFirstStep(), monitor=SilentMonitor())
    train(stopped, resume=True, interrupt=Interrupt(), monitor=SilentMonitor())
    for reader in ("", "reader_2"):
        name = Path("release", "adapter", reader, "adapter_model.safetensors")
        assert (config.path / name).read_bytes() == (stopped.path / name).read_bytes()

    def broken(change):
        copy = workspace / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(release, copy)
        change(copy / "adapter")
        return failures(check_release(copy))

    def relabel(adapter):
        path = adapter / "reader_2" / "jaxdp.json"
        path.write_text(path.read_text().replace(LABELS[0], "other"))

    assert "missing: adapter/reader_2" in broken(lambda a: shutil.rmtree(a / "reader_2"))
    assert "does not belong" in broken(lambda a: (a / "reader_2" / "notes.txt").write_text("x"))
    assert "does not belong" in broken(lambda a: shutil.copytree(a / "reader_2", a / "reader_3"))
    assert "reader_2: other settings than the first reader's" in broken(relabel)
    weights = "adapter_model.safetensors"
    assert "tensors" in broken(lambda a: (a / "reader_2" / weights).write_bytes(b"no"))

    def elsewhere(adapter):
        shutil.move(adapter / "reader_2", adapter.parent.parent / "elsewhere")
        (adapter / "reader_2").symlink_to(adapter.parent.parent / "elsewhere")

    assert "missing: adapter/reader_2" in broken(elsewhere)  # a link is not followed


def test_a_start_from_several_readers_goes_on_with_each(workspace):
    book = str(workspace / "book.json")
    changes = QUICK | {"warm_start__readers": 2}
    folder = adapter_of(workspace, smoke_config(workspace, **settings(book, 5, **changes)))
    changes |= {"warm_start__from_adapter": str(folder)}
    again = smoke_config(workspace, **settings(book, 0, **changes))
    found = built(workspace, again, pooling="label-attention")
    found.fold_basis()
    released = load_finetuned(folder, str(workspace / "backbone"))[0]
    ids, lengths = reports(vocab_size=20)
    expected = our_logits(released, ids, lengths)
    np.testing.assert_allclose(our_logits(found, ids, lengths), expected, atol=1e-4, rtol=1e-4)

    for readers, steps in ((1, 5), (3, 5), (1, 0)):
        own = changes | {"warm_start__readers": readers}
        with pytest.raises(ConfigError, match="readers must be 2, as many as from_adapter has"):
            again = smoke_config(workspace, **settings(book, steps, **own))
            built(workspace, again, pooling="label-attention")


def test_a_run_of_one_reader_begins_two_but_not_without_a_step(workspace):
    book = str(workspace / "book.json")
    folder = adapter_of(workspace, smoke_config(workspace, **settings(book, 5, **QUICK)))
    changes = QUICK | {"warm_start__from_adapter": str(folder), "warm_start__readers": 2}
    found = parameters(
        built(workspace, smoke_config(workspace, **settings(book, 3, **changes)), pooling=ATTENTION)
    )
    queries = found["label_attention.queries"]
    assert (queries[0] != queries[1]).any()
    np.testing.assert_allclose(queries[0], queries[1], atol=0.5)
    with pytest.raises(ConfigError, match="readers must be 1, as many as from_adapter has"):
        built(workspace, smoke_config(workspace, **settings(book, 0, **changes)), pooling=ATTENTION)


def test_a_stored_run_without_the_setting_has_one(workspace):
    values = smoke_config(workspace, train__recipe="auto").to_dict()
    assert values["warm_start"].pop("readers") == 2
    assert Config.of_run(values).warm_start.readers == 1
    assert Config.from_dict(values).warm_start.readers == 2
    with pytest.raises(ConfigError, match="config.warm_start"):
        Config.of_run(smoke_config(workspace).to_dict() | {"warm_start": None})


@pytest.mark.parametrize("trained", ["lora+queries", "head+queries"])
def test_reports_are_clipped_over_all_readers_together(base, trained):
    _, model = readers_of(base, count=2)
    graphdef, adapters, frozen = lora.split(model, trained)
    ids, lengths = reports()
    labels = np.arange(15).reshape(3, 5) % 2
    clip = 0.3

    def loss(adapters, *report):
        return report_loss(graphdef, 0)(adapters, (frozen, 0.0), *report)

    summed, gradient = jax.jit(dp.clipped_gradient_sum(loss, clip)), jax.jit(jax.grad(loss))
    total, diagnostics = summed(adapters, ids, lengths, labels, is_padding=np.zeros(3, bool))
    expected, norms = 0.0, []
    for report in zip(ids, lengths, labels, strict=True):
        flat = np.asarray(ravel_pytree(gradient(adapters, *report))[0], np.float64)
        norms.append(np.linalg.norm(flat))
        expected = expected + flat * min(1, clip / norms[-1])
    assert max(norms) > clip
    np.testing.assert_allclose(ravel_pytree(total)[0], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(diagnostics.norm, norms, rtol=1e-4)


def test_rows_are_shared_where_no_reader_is_trained(workspace):
    changes = {"warm_start__readers": 2, "model__pooling": ATTENTION, "train__widths": None}
    book = str(workspace / "book.json")
    for mode, shared in (("head", True), ("lora", False)):
        config = smoke_config(workspace, **settings(book, **changes | {"train__mode": mode}))
        buckets = token_buckets(config, np.arange(3, 60))
        assert (buckets.reports is not None) == shared


def test_readers_need_adapters_of_their_own(workspace):
    book = str(workspace / "book.json")
    changes = QUICK | {"warm_start__readers": 2, "warm_start__adapters": False}
    with pytest.raises(ConfigError, match="warm_start.readers must be 1 where warm_start.adapters"):
        smoke_config(workspace, **settings(book, **changes))
