# SPDX-License-Identifier: Apache-2.0
"""The query stage: queries turn to what a private head has found, and its training begins again."""

import json
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_models import save_torch_model
from helpers_training import LABELS, smoke_config, write_workspace
from test_readers import readers_of
from test_warm_start import BOOK, built, run, settings

from jaxdp import dp
from jaxdp.backbone import load_finetuned
from jaxdp.config import ConfigError
from jaxdp.data.phrasebook import Phrasebook, Shape
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.models.readers import turned_queries
from jaxdp.run.directory import RunError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.loop import Interrupted, StageLoop
from jaxdp.run.monitor import SilentMonitor
from jaxdp.run.release_check import check_release, failures
from jaxdp.run.train import train
from jaxdp.sweep.members import Member, programs
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.setup import load_inputs
from jaxdp.training.stages import plan_run
from jaxdp.training.warm_start import public_center


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = write_workspace(tmp_path_factory.mktemp("query_stage"))
    (folder / "book.json").write_text(json.dumps(BOOK))
    return folder


def config_of(workspace, name="run", **changes):
    """Every unit at every step, so that without noise nothing is left to chance."""
    quick = {
        "model__pooling": "label-attention",
        "train__mode": "head",
        "train__query_share": 0.3,
        "train__steps": 3,
        "train__expected_batch_size": 96.0,
        "train__temperature": 1.0,
        "head_stage__steps": 0,
        "centering__l2_clip_norm": None,
        "run__name": name,
    }
    return smoke_config(workspace, **settings(str(workspace / "book.json"), 5, **quick | changes))


def released(workspace, config):
    return load_finetuned(config.path / "release" / "adapter", str(workspace / "backbone"))[0]


def head_of(model):
    return [model.classifier.kernel[...], model.classifier.bias[...]]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("along", [False, True])
def test_each_query_turns_to_its_own_part_of_the_head(tmp_path, count, along):
    save_torch_model(tmp_path / "full", "bert")
    _, model = readers_of(tmp_path / "full", count=count)
    queries = np.asarray(model.label_attention.queries[...]).reshape(count, 5, -1)
    width, rng = queries.shape[-1], np.random.default_rng(0)
    kernel = np.asarray(model.classifier.kernel[...], np.float64)
    if along:
        own = rng.standard_normal((5, count * width, 4))
        directions = np.linalg.qr(own)[0]
        kernel = np.stack([directions[n] @ directions[n].T @ kernel[:, n] for n in range(5)], 1)
        center = jnp.zeros((5, count * width))
        model.set_basis(center, jnp.asarray(directions, jnp.float32))
    expected = np.empty(queries.shape)
    for reader in range(count):
        for label in range(5):
            q = queries[reader, label]
            w = kernel[reader * width : (reader + 1) * width, label]
            turned = q / np.linalg.norm(q) + 2 * w / np.linalg.norm(w)
            expected[reader, label] = np.linalg.norm(q) * turned / np.linalg.norm(turned)
    found = np.asarray(turned_queries(model))
    assert found.shape == model.label_attention.queries[...].shape
    np.testing.assert_allclose(found.reshape(queries.shape), expected, atol=1e-5)


def test_a_label_that_nothing_was_found_for_keeps_its_query(tmp_path):
    save_torch_model(tmp_path / "full", "bert")
    _, model = readers_of(tmp_path / "full", count=1)
    model.classifier.kernel[...] = model.classifier.kernel[...].at[:, 2].set(0)
    before, found = model.label_attention.queries[...], turned_queries(model)
    np.testing.assert_allclose(found[2], before[2], rtol=1e-5)
    assert np.abs(found[1] - before[1]).max() > 0.01


def test_the_plan_spends_the_share_and_meets_the_target(workspace):
    plan = plan_run(config_of(workspace))
    assert [stage.name for stage in plan.stages] == ["query stage", "main stage"]
    first, second = plan.mechanisms().values()
    assert 0.99 * 0.3 * 0.5 < dp.epsilon_pld([first], 1e-3) <= 0.3 * 0.5
    assert 0.49 < dp.epsilon_pld([first, second], 1e-3) <= 0.5
    assert (first.steps, first.l2_clip_norm) == (second.steps, second.l2_clip_norm)
    fixed = plan_run(config_of(workspace, privacy__noise_multiplier=70.0)).mechanisms()
    assert fixed == {"query stage": first, "main stage": second.replace(noise_multiplier=70.0)}


def test_queries_turn_to_the_head_that_one_stage_finds(workspace):
    """Without noise: the oracle is a run without a query stage."""
    alone = config_of(workspace, "alone", train__query_share=0.0, privacy__epsilon=None)
    both = config_of(workspace, "both", privacy__epsilon=None)
    run(alone), run(both)
    found = released(workspace, both).label_attention.queries[...]
    expected = turned_queries(released(workspace, alone))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - released(workspace, alone).label_attention.queries[...]).max() > 0.1


@pytest.mark.parametrize("room", [2**33, 0])
def test_the_main_stage_begins_with_the_public_head_on_features_of_turned_queries(
    workspace, monkeypatch, room
):
    """What queries read is made once, where there is room for it."""
    config, seen = config_of(workspace, f"public_head_{room}", privacy__epsilon=None), []
    train_stage, advanced, ways = StageLoop.run, FrozenLayers._advanced, []
    monkeypatch.setattr("jaxdp.run.train._STATES", room)

    def noted(layers, start, level):
        if "validation" in layers._levels[start]:  # made-up reports have no such split
            ways.append((start, level))
        return advanced(layers, start, level)

    monkeypatch.setattr(FrozenLayers, "_advanced", noted)

    def only_the_first(loop, position, state):
        seen.append(np.asarray(loop.trainer._data.reports.values, np.float32))
        return train_stage(loop, position, state) if position.stage == 0 else state

    monkeypatch.setattr(StageLoop, "run", only_the_first)
    run(config)
    assert ways == ([(0, 1), (1, 3), (1, 3)] if room else [(0, 3), (0, 3)])
    public = built(workspace, config, pooling="label-attention")
    public.fold_basis()
    model = released(workspace, config)
    for ours, theirs in zip(head_of(model), head_of(public), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    before, after = seen
    assert np.abs(before - after).max() > 0.01
    # The first report's, from its tokens; kept in half precision, and below 8.
    center = public_center(config, model, workspace / "backbone", LABELS)
    tokens = load_inputs(config).tokens["train"]
    ids, length = tokens.values[: tokens.lengths[0]], tokens.lengths[0]
    own = np.asarray(model.advance(ids, length, 0, model.feature_level) - center)
    np.testing.assert_allclose(after[0], own, atol=8 * 2.0**-11)


@pytest.mark.parametrize("along", [False, True])
def test_the_centre_is_the_mean_of_made_up_reports(workspace, along):
    config = config_of(workspace, model__label_dimensions=3 if along else None)
    model = built(workspace, config, pooling="label-attention")
    found = public_center(config, model, workspace / "backbone", LABELS)
    shape = Shape(*(getattr(config.warm_start, field) for field in Shape._fields))
    texts, _ = Phrasebook.read(config.warm_start.phrasebook).write_reports(1000, LABELS, shape)
    tokens, _ = tokenize(texts, load_tokenizer(workspace / "backbone"), config.data.max_length)
    model.fold_basis()
    ids, lengths = tokens.gather(np.arange(1000), int(tokens.lengths.max()))
    features = jax.vmap(lambda x, n: model.advance(x, n, 0, model.feature_level))(ids, lengths)
    # Half precision, whose errors, of either sign, the mean makes smaller.
    np.testing.assert_allclose(found, features.mean(axis=0), atol=1e-4)


class DuringPreparation(Interrupt):
    """Asked to stop as the `number`-th long preparation begins, or when all is ready for a step."""

    def __init__(self, number, ready):
        super().__init__()
        self._left, self._ready = number, ready

    @contextmanager
    def raising(self, error):
        self._left -= 1
        if not self._left and not self._ready:
            self.received = signal.SIGINT
        with super().raising(error):
            yield
        if not self._left:
            self.received = signal.SIGINT


@pytest.fixture(scope="module")
def whole(workspace):
    """A run that nobody stopped. Features that are kept are of the public start's queries alone."""
    config = config_of(workspace, "whole", data__cache=str(workspace / "cache"))
    run(config)
    assert failures(check_release(config.path / "release", workspace / "backbone")) == ""
    statement = json.loads((config.path / "release" / "privacy.json").read_text())
    assert [m["stage"] for m in statement["mechanisms"]] == ["query stage", "main stage"]
    # Tokens of three splits, states and features of two.
    assert len(list((workspace / "cache").iterdir())) == 7
    return config


@pytest.mark.parametrize(
    ("stop", "lost", "goes_on"),
    [
        (DuringPreparation(1, ready=True), False, [(0, 1), (1, 0)]),
        (DuringPreparation(2, ready=False), False, [(0, 3), (1, 0)]),
        (DuringPreparation(2, ready=True), False, [(1, 1)]),
        (DuringPreparation(2, ready=True), True, [(1, 1)]),
    ],
    ids=["in the query stage", "between", "in the main stage", "one copy damaged"],
)
def test_a_stopped_run_ends_with_the_same_adapter(
    workspace, whole, monkeypatch, stop, lost, goes_on
):
    kept = sorted((workspace / "cache").iterdir())
    stopped = whole.below(whole.path.parent, f"stopped_{len(list(whole.path.parent.iterdir()))}")
    with pytest.raises(Interrupted):
        train(stopped, resume=False, interrupt=stop, monitor=SilentMonitor())
    if lost:
        folder = stopped.path / "private" / "checkpoints.queries"
        assert {copy.name for copy in folder.iterdir()} == {"1-0", "1-1"}
        (folder / "1-1" / "blake2b").write_text("another")
    positions, loop = [], StageLoop.run

    def noted(self, position, state):
        positions.append(tuple(position))
        return loop(self, position, state)

    monkeypatch.setattr(StageLoop, "run", noted)
    train(stopped, resume=True, interrupt=Interrupt(), monitor=SilentMonitor())
    assert positions == goes_on and sorted((workspace / "cache").iterdir()) == kept
    name = Path("release", "adapter", "adapter_model.safetensors")
    assert (whole.path / name).read_bytes() == (stopped.path / name).read_bytes()


def test_a_run_without_its_queries_is_refused(workspace):
    config, stop = config_of(workspace, "lost"), DuringPreparation(2, ready=True)
    with pytest.raises(Interrupted):
        train(config, resume=False, interrupt=stop, monitor=SilentMonitor())
    shutil.rmtree(config.path / "private" / "checkpoints.queries")
    with pytest.raises(RunError, match=r"checkpoints.queries is damaged"):
        train(config, resume=True, interrupt=Interrupt(), monitor=SilentMonitor())


def test_members_of_a_sweep_are_trained_one_by_one(workspace):
    members = [Member(config_of(workspace, name), 0) for name in ("a", "b")]
    assert programs(members) == [[member] for member in members]
    assert members[0].steps == (3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__query_share": 1.0}, "train.query_share must be at least 0 and below 1"),
        ({"train__query_share": -0.1}, "train.query_share must be at least 0 and below 1"),
        ({"model__pooling": "mean"}, "train.query_share must be 0 unless a head alone"),
        ({"train__mode": "lora"}, "train.query_share must be 0 unless a head alone"),
        ({"train__queries": True}, "train.query_share must be 0 unless a head alone"),
        ({"warm_start__phrasebook": None}, "train.query_share must be 0 unless a head alone"),
        ({"centering__l2_clip_norm": 1.0}, "train.query_share must be 0 unless a head alone"),
        ({"head_stage__steps": 4}, "train.query_share must be 0 unless a head alone"),
    ],
)
def test_what_has_no_queries_of_a_public_start_is_refused(workspace, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(workspace, **changes)
