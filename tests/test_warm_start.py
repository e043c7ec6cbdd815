# SPDX-License-Identifier: Apache-2.0
"""The public start: it learns, costs nothing, is said, and is the same again when built again."""

import dataclasses
import hashlib
import io
import json
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from helpers_training import LABELS, AtTheFirstStep, smoke_config, write_workspace
from rich.console import Console

from jaxdp import dp
from jaxdp.backbone import Backbone
from jaxdp.config import ConfigError, WarmStartConfig
from jaxdp.data.phrasebook import Shape
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.evaluation.predict import ReleasedClassifier
from jaxdp.models import lora
from jaxdp.models.checkpoints import WeightsError
from jaxdp.models.peft import save_adapter
from jaxdp.run.directory import RunError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.loop import Interrupted
from jaxdp.run.monitor import Monitor, SilentMonitor
from jaxdp.run.release_check import check_release
from jaxdp.run.train import train
from jaxdp.training import warm_start as warm_start_module
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.setup import load_inputs, token_buckets
from jaxdp.training.setup import test_probabilities as probabilities_of_test_reports
from jaxdp.training.stages import plan_run
from jaxdp.training.warm_start import build_model

BOOK = {
    "origin": "words of a test",
    "slots": {"side": ["left", "right"]},
    "normal": "normal",
    "labels": {
        "cardiomegaly": {"present": ["enlarged heart."], "absent": ["heart."]},
        "pleural_effusion": {"present": ["{side} effusion."], "absent": ["no acute."]},
    },
    "other": ["opacity."],
    "close_normal": ["normal."],
    "close_abnormal": ["lungs clear."],
}


@pytest.fixture
def workspace(tmp_path):  # conftest's; the mutants run without it
    return write_workspace(tmp_path)


@pytest.fixture
def book(workspace):
    (workspace / "book.json").write_text(json.dumps(BOOK))
    return str(workspace / "book.json")


def settings(book, steps=50, **changes):
    return {
        "train__widths": 2,  # each is compiled
        "warm_start__phrasebook": book,
        "warm_start__reports": 200,
        "warm_start__batch_size": 32,
        "warm_start__steps": steps,
        "warm_start__learning_rate": 1e-2,
        **changes,
    }


def built(workspace, config, seed=0, pooling="mean"):
    backbone = Backbone("", workspace / "backbone", pooling)
    return build_model(config, backbone, LABELS, SimpleNamespace(init_seed=lambda: seed))[0]


def adapter_of(workspace, config):
    """The folder that a run would release, but for what it learns in private."""
    model, folder = built(workspace, config, pooling="label-attention"), workspace / "adapter"
    model.fold_basis()
    where = str(workspace / "backbone")
    save_adapter(folder, model, "head", base_model=where, label_names=LABELS)
    return folder


def parameters(model):
    return {".".join(map(str, p)): v[...] for p, v in nnx.to_flat_state(nnx.state(model))}


def run(config):
    printed = io.StringIO()
    monitor = Monitor(Console(file=printed, width=100))
    result = train(config, resume=False, interrupt=Interrupt(), monitor=monitor)
    return result, printed.getvalue()


def test_a_run_goes_on_from_the_public_start_that_it_began_with(workspace, book, monkeypatch):
    """Also where another one would be learnt now: with other devices, versions, or by chance."""
    quick = dict(train__mode="head", head_stage__steps=0, centering__l2_clip_norm=None)
    config = smoke_config(workspace, **settings(book, steps=2, **quick))

    def trained(name, interrupt, resume=False):
        own = config.below(config.path.parent, name)
        return train(own, resume=resume, interrupt=interrupt, monitor=SilentMonitor())["privacy"]

    def adapter(name):
        path = config.path.parent / name / "release" / "adapter" / "adapter_model.safetensors"
        return path.read_bytes()

    trained("whole", Interrupt())
    with pytest.raises(Interrupted):
        trained("stopped", AtTheFirstStep())
    shutil.copytree(config.path.parent / "stopped", config.path.parent / "lost")
    monkeypatch.setenv("JAXDP_CACHE", str(workspace / "another"))
    learn = warm_start_module._train
    monkeypatch.setattr(
        warm_start_module, "_train", lambda *a: jax.tree.map(lambda x: x + 1e-6, learn(*a))
    )
    trained("stopped", Interrupt(), resume=True)
    assert adapter("stopped") == adapter("whole")
    shutil.rmtree(config.path.parent / "lost" / "private" / "checkpoints.public_start")
    with pytest.raises(RunError, match="lost was started with other weights or public start"):
        trained("lost", Interrupt(), resume=True)


def test_the_head_learns_the_phrases_and_finds_them_in_reports(workspace, book):
    learning = settings(book, train__widths=None)  # the more, the more alike are a batch's lengths
    config = smoke_config(workspace, **learning)
    inputs = load_inputs(config)
    known = inputs.labels["test"] == 1

    def separation(**changes):
        model = built(workspace, smoke_config(workspace, **changes), pooling="label-attention")
        (probabilities,) = probabilities_of_test_reports(config, [model], inputs)
        columns = zip(probabilities.T, known.T, strict=True)
        return np.mean([p[y].mean() - p[~y].mean() for p, y in columns])

    # Its first words are among those that decide the labels of the tiny collection.
    assert separation(**learning) > 0.1 > abs(separation())


@pytest.mark.parametrize("pooling", ["mean", "label-attention"])
def test_it_moves_the_head_alone_or_the_adapters_too_and_nothing_else(workspace, book, pooling):
    def learnt(seed=0, **changes):
        config = smoke_config(workspace, **changes)
        return parameters(built(workspace, config, seed, pooling))

    alone = settings(book, steps=5, warm_start__adapters=False)
    plain, head, both = (learnt(**c) for c in ({}, alone, settings(book, steps=5)))
    assert {"basis.center"} == both.keys() - plain.keys() == head.keys() - plain.keys()
    moved = [{n for n in plain if (plain[n] != other[n]).any()} for other in (head, both)]
    queries = {"label_attention.queries"} & plain.keys()
    assert moved[0] == {"classifier.kernel", "classifier.bias"} | queries
    factors = {name for name in plain if "lora" in name}
    assert factors and moved[1] == moved[0] | factors
    # A resumed run builds its model anew, and must start from the same; so do other seeds.
    for name, value in learnt(seed=1, **settings(book, steps=5)).items():
        np.testing.assert_array_equal(both[name], value, err_msg=name)


@pytest.mark.parametrize("learnt", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kept_one_is_the_same_and_is_made_anew_for_anything_else(
    workspace, book, monkeypatch, learnt
):
    monkeypatch.setenv("JAXDP_CACHE", str(workspace / "cache"))

    def kept(pooling="label-attention", **changes):
        own = {"steps": 2, "model__pooling": pooling} | changes
        config = smoke_config(workspace, **settings(book, **own))
        return parameters(built(workspace, config, pooling=pooling))

    wanted = kept(model__label_dimensions=4)

    def same(found):
        return all(np.array_equal(found[name], wanted[name]) for name in wanted)

    trained = []
    original = warm_start_module._train

    def learn(*args):
        trained.append(1)
        if learnt or len(trained) == 1:  # at another rate, which is seen in nothing else
            return original(*args)
        return jax.tree.map(lambda x: x + 1e-3 * len(trained), args[1])

    monkeypatch.setattr(warm_start_module, "_train", learn)
    assert same(kept(model__label_dimensions=4)) and not trained
    for changes in (
        {"warm_start__learning_rate": 2e-2},
        {"warm_start__reports": 199},
        {"warm_start__denied": 0.1},
        {"lora__alpha": 3.0},
        {"warm_start__readers": 2},
        {"pooling": "mean", "model__label_dimensions": None},
    ):
        other = kept(**{"model__label_dimensions": 4} | changes)
        assert other.keys() != wanted.keys() or not same(other)
    assert len(trained) == 6
    # How many of its directions a head uses is no matter of what was learnt.
    assert kept(model__label_dimensions=2)["basis.directions"].shape[-1] == 2
    assert "basis.directions" not in kept(model__label_dimensions=None)
    assert len(trained) == 6


def test_it_costs_no_epsilon_and_the_statement_says_where_it_is_from(workspace, book):
    # The head alone learns in private, on adapters that have learnt in public.
    changes = settings(book, steps=3, train__mode="head", head_stage__steps=0)
    changes |= {"model__pooling": "label-attention", "model__label_dimensions": 4}
    config = smoke_config(workspace, **changes)
    result, printed = run(config)
    warm = result["privacy"]
    model = dataclasses.replace(config.model, label_dimensions=None)
    plan = plan_run(dataclasses.replace(config, warm_start=WarmStartConfig(), model=model))
    plain = dp.privacy_statement(
        plan.mechanisms(),
        delta=config.privacy.delta,
        privacy_unit=config.privacy.unit,
        seed_policy=warm["seed_policy"],
        noise_generator=warm["noise_generator"],
        label_origin=warm["labels"],
    )
    # What takes long is said before it begins.
    start, frozen = map(printed.index, ("public start: 200 reports", "frozen layers"))
    assert start < printed.index("BertClassifier") < frozen
    # A log is told how far each is, from the first step to the last.
    for so_far in ("200 of 200 reports", "1 of 3 steps", "3 of 3 steps"):
        assert f"public start: {so_far}" in printed
    for what in ("frozen layers", "test split"):
        assert re.search(rf"{what}: (\d+) of \1 reports", printed)
    assert re.search(r"main stage: (\d+) of \1 steps, \d+ reports/s", printed)
    assert plain["public_start"] is None
    assert {field for field in plain if plain[field] != warm[field]} == {"public_start"}
    assert warm["public_start"].startswith("head and adapters learnt first from 200 made-up")
    assert warm["public_start"].endswith("their sentences: words of a test")
    release = workspace / "runs" / "smoke" / "release"
    assert "Public start: head and adapters" in (release / "PRIVACY.md").read_text()
    assert all(finding.passed for finding in check_release(release, workspace / "backbone"))
    released = safetensors.numpy.load_file(release / "adapter" / "adapter_model.safetensors")
    # An ordinary head is released, which says what the one in training coordinates did.
    found = ReleasedClassifier(release, base_model=str(workspace / "backbone"))
    own = np.load(workspace / "runs" / "smoke" / "private" / "test_predictions.npz")
    texts = load_inputs(config).dataset.subset("test").texts
    np.testing.assert_allclose(found.predict_proba(texts), own["probabilities"], atol=1e-5)
    b = [value for name, value in released.items() if "lora_B" in name]
    assert len(b) == 2 and all(np.any(value) for value in b)


def test_adapters_need_a_mode_that_releases_them(workspace, book):
    with pytest.raises(ConfigError, match="train.mode must be lora, lora-ffa, head where warm"):
        smoke_config(workspace, **settings(book, steps=1, train__mode="bitfit"))
    alone = settings(book, train__mode="bitfit", warm_start__adapters=False)
    model = built(workspace, smoke_config(workspace, **alone))
    assert not jax.tree.leaves(nnx.state(model, nnx.LoRAParam))
    assert lora.split(model, "bitfit")


def test_the_basis_is_the_made_up_mean_and_holds_the_head_and_the_widest_directions():
    rng = np.random.default_rng(0)
    labels, width = 3, 6
    scales = np.array([5.0, 0.1, 3.0, 0.2, 4.0, 0.3])
    features = (2 + scales * rng.standard_normal((400, labels, width))).astype(np.float32)
    kernel = rng.standard_normal((width, labels)).astype(np.float32)
    center, directions = warm_start_module.public_basis(features, kernel)
    np.testing.assert_allclose(center, features.mean(axis=0), rtol=1e-5)
    for label in range(labels):
        d = np.asarray(directions[label])
        np.testing.assert_allclose(d.T @ d, np.eye(width), atol=1e-5)
        # The head is the first, and so, up to it, the next three are those that vary most.
        own = kernel[:, label] / np.linalg.norm(kernel[:, label])
        np.testing.assert_allclose(np.abs(d[:, 0]), np.abs(own), atol=1e-5)
        assert (np.linalg.norm(d[[0, 2, 4], :4], axis=1) > 0.9).all()
    center, directions = warm_start_module.public_basis(features[:, 0], kernel)
    assert directions is None and center.shape == (width,)


def test_its_microbatches_are_as_full_as_one_another(workspace, book, monkeypatch):
    seen, made = [], warm_start_module.make_train_step
    monkeypatch.setattr(
        warm_start_module, "make_train_step", lambda *a: seen.append(a[3].rows) or made(*a)
    )
    config = smoke_config(
        workspace,
        **settings(book, steps=1, train__widths=1),
        train__microbatch_tokens=16 * 24,  # 24 reports, of a batch of 32
    )
    built(workspace, config)
    assert seen == [(16,)]


def test_its_center_is_that_of_so_many_made_up_reports(workspace, book, monkeypatch):
    monkeypatch.setattr(warm_start_module, "_SHOWN", 50)
    config = smoke_config(workspace, **settings(book, steps=1))
    model = built(workspace, config)
    sentences = warm_start_module.phrasebook_of(config.warm_start, LABELS)
    shape = Shape(*(getattr(config.warm_start, field) for field in Shape._fields))
    texts, _ = sentences.write_reports(200, LABELS, shape)
    tokenizer = load_tokenizer(workspace / "backbone")
    tokens, _ = tokenize(texts[:50], tokenizer, config.data.max_length)
    center, model.basis = model.basis.center[...], None
    features = FrozenLayers(model, {"train": tokens}, token_buckets(config, tokens.lengths))
    features = features.at(model.feature_level)["train"].values
    np.testing.assert_allclose(center, features.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_queries_of_names_read_their_own_tokens(workspace):
    model = built(workspace, smoke_config(workspace), pooling="label-attention")
    tokenizer = load_tokenizer(workspace / "backbone")
    names, _ = tokenize(["normal", "enlarged heart", "effusion"], tokenizer, 16)
    queries = np.asarray(warm_start_module.name_queries(model, names))
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-5)
    states = []
    for row in range(3):
        ids, length = names.gather(np.array([row]), int(names.lengths[row]))
        states.append(np.asarray(model.last_states(ids[0], length[0], 0))[1:-1].mean(axis=0))
    apart = np.stack(states) - np.mean(states, axis=0)
    expected = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    np.testing.assert_allclose(queries, expected, rtol=1e-4, atol=1e-5)


def test_a_book_of_names_begins_at_them(workspace, book):
    config = smoke_config(workspace, **settings("labels", steps=1))
    fresh = built(workspace, smoke_config(workspace), pooling="label-attention")
    said = [label.replace("_", " ") for label in LABELS]
    names, _ = tokenize(said, load_tokenizer(workspace / "backbone"), 16)
    begun = np.asarray(warm_start_module.name_queries(fresh, names))

    def alike(config):  # after one step of 0.1 for each number
        found = parameters(built(workspace, config, pooling="label-attention"))
        queries = np.asarray(found["label_attention.queries"])
        return (queries * begun).sum(axis=1) / np.linalg.norm(queries, axis=1)

    assert (alike(config) > 0.8).all()
    assert (alike(smoke_config(workspace, **settings(book, steps=1))) < 0.8).any()


def test_it_begins_at_an_adapter_for_the_labels_that_both_know(workspace, book):
    tiny = {"model__pooling": "label-attention", "train__mode": "head", "head_stage__steps": 0}
    folder = adapter_of(workspace, smoke_config(workspace, **settings(book, steps=20, **tiny)))
    released = safetensors.numpy.load_file(folder / "adapter_model.safetensors")

    def begun(names, **changes):
        changes = tiny | {"warm_start__from_adapter": str(folder)} | changes
        config = smoke_config(workspace, **settings("labels", steps=0, **changes))
        backbone = Backbone("", workspace / "backbone", "label-attention")
        return parameters(build_model(config, backbone, names, None)[0])

    found = begun(("oedema", *reversed(LABELS)))
    columns = dict(zip(LABELS, released["base_model.model.classifier.weight"], strict=True))
    queries = released["base_model.model.label_attention.queries"]
    for row, label in enumerate(reversed(LABELS), start=1):
        np.testing.assert_array_equal(found["classifier.kernel"][:, row], columns[label])
        own = found["label_attention.queries"][row]
        np.testing.assert_array_equal(own, queries[LABELS.index(label)])
    assert found["label_attention.queries"][0].any()  # begins at its name, as without an adapter
    biases = dict(zip(LABELS, released["base_model.model.classifier.bias"], strict=True))
    shift = (found["basis.center"] * found["classifier.kernel"].T).sum(axis=1)  # of `set_basis`
    expected = [0, *(biases[label] for label in reversed(LABELS))]
    np.testing.assert_allclose(found["classifier.bias"] - shift, expected, atol=1e-6)
    pairs = [(n, v) for n, v in released.items() if "lora_B" in n]
    assert len(pairs) == 2 and all(value.any() for _, value in pairs)
    for name, value in pairs:
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
        np.testing.assert_array_equal(found[f"{layer}.lora_b"], value.T)
    # It goes on from there, and says from where.
    changes = settings(book, steps=1, **tiny, warm_start__from_adapter=str(folder))
    again = smoke_config(workspace, **changes)
    assert built(workspace, again, pooling="label-attention").basis is not None
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    said = f"begun at an adapter, sha256 {digest}, that is said to owe nothing to them; head and"
    assert warm_start_module.public_start(again.warm_start).startswith(said)
    for changes, message in (
        (
            {"lora__rank": 3},
            "must be as in warm_start.from_adapter: rank .* in 2 layers, not rank 3",
        ),
        ({"model__pooling": "mean"}, "its pooling is label-attention, the model's mean"),
    ):
        with pytest.raises((ConfigError, WeightsError), match=message):
            config = smoke_config(
                workspace,
                **settings("labels", steps=0, **tiny | changes)
                | {"warm_start__from_adapter": str(folder)},
            )
            built(workspace, config, pooling=config.model.pooling)
    with pytest.raises(ConfigError, match="knows none of these labels, but normal, card"):
        begun(("oedema",))


def test_nothing_is_learnt_in_no_steps_without_an_adapter(workspace, book):
    with pytest.raises(ConfigError, match="warm_start.steps must be at least 1, not 0"):
        smoke_config(workspace, **settings(book, steps=0))
    with pytest.raises(
        ConfigError, match="warm_start.phrasebook must be set where warm_start.from"
    ):
        smoke_config(workspace, warm_start__from_adapter="adapter")


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_noise_is_as_strong_as_the_real_states(scale):
    length, width = 900, 16
    states = np.random.default_rng(0).normal(3, 2, (1200, width)).astype(np.float32)
    states[length:] = 1e3  # padding, which says nothing of a report
    noisy = warm_start_module.add_state_noise(jax.random.key(0), states, length, scale)
    found = np.asarray(noisy - states)[:length]
    expected = scale * np.sqrt(np.mean(np.square(states[:length])))
    # Within 4.5 standard deviations of a sample's own: wrong once in 150,000.
    assert abs(found.std() / expected - 1) < 4.5 / np.sqrt(2 * found.size)
    assert abs(found.mean()) < 4.5 * expected / np.sqrt(found.size)


@pytest.mark.parametrize("layers", ["last:1", "all"])
def test_noise_reaches_what_learns_and_is_the_same_again(workspace, book, layers, monkeypatch):
    def learnt(noise):
        changes = settings(book, steps=3, warm_start__noise=noise, lora__layers=layers)
        return parameters(built(workspace, smoke_config(workspace, **changes)))

    plain, noisy = learnt(0.0), learnt(1.0)
    factors = [name for name in plain if "lora_b" in name]
    assert factors and all((plain[name] != noisy[name]).any() for name in factors)
    if layers == "last:1":
        monkeypatch.setenv("JAXDP_CACHE", str(workspace / "another"))  # or it would be read back
        for name, value in learnt(1.0).items():
            np.testing.assert_array_equal(value, noisy[name], err_msg=name)
