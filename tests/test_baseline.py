# SPDX-License-Identifier: Apache-2.0
"""The PyTorch side, and that both sides do the same arithmetic."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers_data import write_table
from helpers_models import IGNORE_PEFT, save_torch_model
from helpers_training import WORDS, smoke_config, write_workspace

from jaxdp.config import ConfigError
from jaxdp.models.tasks import multilabel_loss
from jaxdp.peers import comparison
from jaxdp.peers.comparison import compare_gradients, compare_trajectories
from jaxdp.peers.jax_side import OurTrainer
from jaxdp.peers.job import MAIN, Job
from jaxdp.peers.start import make_job, move_adapter
from jaxdp.peers.torch_side import SCHEDULES, ReportLoss, TorchTrainer
from jaxdp.training.setup import load_inputs

pytestmark = IGNORE_PEFT

SETTINGS = {
    # with all that may come before the main stage, and mean pooling
    "bert": {"model__pooling": "mean", "train__learning_rate": 1e-2},
    "labels": {"model__pooling": "label-attention", "train__learning_rate": 1e-2},
    "classes": {
        "data__source": "table",
        "data__task": "multi-class",
        "data__labels": ("0", "1", "2"),
        "data__label_column": "class",
        "train__learning_rate": 1e-2,
        "privacy__l2_clip_norm": 5.0,
    },
    "albert": {
        "head_stage__steps": 0,
        "centering__l2_clip_norm": None,
        "privacy__l2_clip_norm": 0.5,
    },
}


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("labels", "albert")]


@pytest.fixture(scope="module", params=["bert", "classes", *SLOW])
def job(request, tmp_path_factory) -> Job:
    """A job with LoRA on every layer, whose clip norm is in the midst of the gradients' norms."""
    return tiny_job(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Job:
    return tiny_job(tmp_path_factory.mktemp("bert"), "bert", train__optimizer="sgd")


def tiny_job(folder, kind: str, **changes) -> Job:
    write_workspace(folder)
    if kind == "albert":
        save_torch_model(folder / "albert", "albert", num_labels=3)
        shutil.copy(folder / "backbone" / "vocab.txt", folder / "albert")
        tokenizer = {"tokenizer_class": "BertTokenizer"}
        (folder / "albert" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        changes["model__backbone"] = str(folder / "albert")
    if kind == "classes":
        rng = np.random.default_rng(0)
        rows = [[" ".join(rng.choice(WORDS, 5)), number % 3] for number in range(120)]
        table = write_table(folder / "t.csv", ["text", "class"], rows)
        changes["data__root"] = str(table)
    changes = {
        "lora__layers": "all",
        "train__schedule": "linear",
        "privacy__l2_clip_norm": 2.0,
        **SETTINGS[kind],
        **changes,
    }
    config = smoke_config(folder, **changes)
    return make_job(config, load_inputs(config), folder / "job")


def moved(job: Job, folder) -> Job:
    shutil.copytree(job.adapter, folder / "adapter")
    job = dataclasses.replace(job, adapter=folder / "adapter")
    move_adapter(job, scale=0.1)
    return job


def test_gradients_are_those_of_opacus_and_of_a_loop(job, tmp_path):
    """Every adapter tensor, every norm; Opacus is right about ALBERT's shared layer too."""
    result = compare_gradients(moved(job, tmp_path), reports=24)
    low, median, high = result["norms"]
    assert low < result["l2_clip_norm"] < high, "clipping is not tested"
    assert result["passed"]
    albert = "albert" in job.backbone
    assert set(result["errors"]) == {"PyTorch loop", "Opacus hooks", "Opacus ghost"} - (
        {"Opacus ghost"} if albert else set()
    )
    assert set(result["refused"]) == ({"Opacus ghost"} if albert else set())
    for found in result["errors"].values():
        assert len(found["sums"]) == 10  # A and B of two layers' (or layer groups') q and v, head
        assert max(found["norms"], *found["sums"].values()) < 2e-5  # float32, 24 reports


def test_trajectories_stay_together(job):
    result = compare_trajectories(job, 6, physical_batch=5)
    assert result["steps"] == 6 and sum(result["reports"]) > 50
    assert result["passed"] and max(result["error_by_step"]) < 2e-4
    assert result["moved"] > 1e-3


def test_differences_are_seen(bert, tmp_path, monkeypatch):
    def changed(job, **options):
        fields = job.mechanisms[MAIN] | {
            "l2_clip_norm": 1.001 * job.mechanisms[MAIN]["l2_clip_norm"]
        }
        other = dataclasses.replace(job, mechanisms=job.mechanisms | {MAIN: fields})
        return TorchTrainer(other, **options)

    monkeypatch.setattr(comparison, "TorchTrainer", changed)
    job = moved(bert, tmp_path)
    assert not compare_gradients(job, reports=24)["passed"]
    assert not compare_trajectories(job, 1)["passed"]


@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_a_step_without_reports_is_noise_of_the_right_size(bert, method):
    trainer = TorchTrainer(bert, method=method)
    start = trainer.adapters()
    trainer.step([])
    moved = np.concatenate([(x - start[n]).ravel() for n, x in trainer.adapters().items()])
    mechanism = bert.mechanisms[MAIN]
    stddev = mechanism["noise_multiplier"] * mechanism["l2_clip_norm"] / 16.0
    # The standard error of a standard deviation is 1 / sqrt(2 n), here 0.02.
    assert len(moved) > 1000
    assert moved.std() / bert.stage.learning_rate == pytest.approx(stddev, rel=0.09)
    assert trainer._engine.accountant.history == [(mechanism["noise_multiplier"], 16.0 / 96, 1)]


def test_cutting_and_padding_do_not_change_a_step(bert):
    results = []
    for options in (
        {"physical_batch": 64, "padding": "fixed"},
        {"physical_batch": 7, "padding": "dynamic"},
        {"physical_batch": 7, "padding": "dynamic", "method": "ghost"},
    ):
        trainer = TorchTrainer(bert.without_noise(), **options)
        start = trainer.adapters()
        trainer.step(np.arange(30))
        results.append({n: x - start[n] for n, x in trainer.adapters().items()})
    for other in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_allclose(other[name], value, atol=2e-7)


@pytest.mark.parametrize("method, dtype", [("hooks", "bfloat16"), ("none", "autocast")])
def test_narrower_products_move_the_same_float32_adapters_nearly_alike(bert, method, dtype):
    """As a benchmark on a GPU has them; the way there, not the speed, is the same on a CPU."""
    moved, rows = [], np.arange(30)
    for each in ("float32", dtype):
        trainer = TorchTrainer(bert.without_noise(), method=method, physical_batch=7, dtype=each)
        start = trainer.adapters()
        trainer.step(rows)
        ends = trainer.adapters()
        assert all(value.dtype == np.float32 for value in ends.values())
        moved.append(np.concatenate([(ends[n] - start[n]).ravel() for n in start]))
    wanted, found = moved
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 0.05  # 8 bits
    said = {"bfloat16": "bfloat16", "autocast": "bfloat16, autocast"}[dtype]
    assert trainer.settings()["arithmetic"] == said and trainer.settings()["device"] == "cpu"
    probabilities = trainer.probabilities()
    assert probabilities.dtype == np.float32 and np.isfinite(probabilities).all()


def test_our_type_is_the_jobs_or_the_one_that_is_said(bert):
    moved = []
    for dtype in (None, "bfloat16"):
        trainer = OurTrainer(bert.without_noise(), dtype=dtype)
        start = trainer.adapters()
        trainer.step(trainer.rows(0))
        ends = trainer.adapters()
        moved.append(np.concatenate([(ends[n] - start[n]).ravel() for n in start]))
        assert trainer.settings()["arithmetic"] == (dtype or "float32")
    error = np.linalg.norm(moved[1] - moved[0]) / np.linalg.norm(moved[0])
    assert 1e-5 < error < 0.05


def test_without_privacy_both_sides_take_the_same_step(bert):
    config = bert.config
    privacy = dataclasses.replace(config.privacy, epsilon=None)
    train = dataclasses.replace(config.train, learning_rate=10.0)
    config = dataclasses.replace(config, privacy=privacy, train=train)
    job = dataclasses.replace(bert, config=config, mechanisms={})
    ours, theirs = OurTrainer(job), TorchTrainer(job, method="none", physical_batch=7)
    rows = ours.rows(0)
    ours.step(rows)
    theirs.step(rows)
    for name, value in theirs.adapters().items():
        np.testing.assert_allclose(ours.adapters()[name], value, atol=1e-6)
    assert theirs.epsilon() == {}


def test_both_sides_say_what_they_run_and_it_is_the_same(job):
    ours, theirs = OurTrainer(job).settings(), TorchTrainer(job).settings()
    assert ours.keys() == theirs.keys()
    differing = {name for name in ours if ours[name] != theirs[name]}
    machinery = {"framework", "per-example gradients", "clip factor", "attention", "padding"}
    assert differing <= machinery | {"physical batch", "threads"}
    mechanism = job.mechanisms[MAIN]
    assert theirs["noise multiplier"] == mechanism["noise_multiplier"] > 0
    assert theirs["sampling probability"] == 16 / 96  # not one over a whole number of batches
    assert theirs["divided by"] == 16.0 and theirs["dropout"] == 0
    assert theirs["optimizer eps"] == 1e-8


def test_opacus_sampler_is_poisson_at_the_exact_rate(bert):
    steps = dataclasses.replace(bert.config.train, steps=2000)
    job = dataclasses.replace(bert, config=dataclasses.replace(bert.config, train=steps))
    sizes = np.array([len(rows) for rows in TorchTrainer(job).draws()])
    n, q = len(job.train), 16 / 96
    assert len(sizes) == 2000
    # Four standard errors of a binomial's mean and variance.
    assert sizes.mean() == pytest.approx(n * q, abs=4 * np.sqrt(n * q * (1 - q) / 2000))
    assert sizes.var() == pytest.approx(n * q * (1 - q), rel=4 * np.sqrt(2 / 2000))


def test_loss_and_schedules_are_ours():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    labels = rng.integers(-1, 2, (5, 3)).astype(np.int8)
    ours = [float(multilabel_loss(x, y)) for x, y in zip(logits, jnp.asarray(labels), strict=True)]
    loss = ReportLoss("multi-label")
    assert float(loss(torch.tensor(logits), torch.tensor(labels))) == pytest.approx(np.mean(ours))
    loss.reduction = "none"
    np.testing.assert_allclose(loss(torch.tensor(logits), torch.tensor(labels)), ours, rtol=1e-5)
    schedules = {
        "constant": optax.constant_schedule(1.0),
        "linear": optax.linear_schedule(1.0, 0.0, 7),
        "cosine": optax.cosine_decay_schedule(1.0, 7),
    }
    assert SCHEDULES.keys() == schedules.keys()
    for name, schedule in schedules.items():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        theirs, rate = [], SCHEDULES[name](optimizer, 7)
        for _ in range(7):
            theirs += rate.get_last_lr()
            optimizer.step()
            rate.step()
        np.testing.assert_allclose(theirs, [schedule(step) for step in range(7)], atol=1e-6)


def test_a_job_comes_back_from_disk(job):
    back = Job.read(job.write())
    for field in dataclasses.fields(Job):
        a, b = getattr(job, field.name), getattr(back, field.name)
        if field.name in ("train", "test"):
            for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
                np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_array_equal(a, b)
    few = job.train.take(np.array([5, 2]))
    start = job.train.lengths[:5].sum()
    np.testing.assert_array_equal(
        few.ids[: few.lengths[0]], job.train.ids[start:][: few.lengths[0]]
    )
    np.testing.assert_array_equal(few.labels, job.train.labels[[5, 2]])


def test_what_the_other_side_has_not_is_refused(workspace):
    for changes, field in (
        ({"train__mode": "bitfit"}, "train.mode must be lora or lora-ffa or head"),
        ({"model__dtype": "bfloat16"}, "model.dtype must be float32"),
    ):
        config = smoke_config(workspace, **changes)
        with pytest.raises(ConfigError, match=field):
            make_job(config, load_inputs(config), workspace / "job")


@pytest.mark.slow
def test_the_torch_side_runs_without_jax():
    """So that its memory and its time are its own."""
    program = "import sys, jaxdp.peers.torch_side; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
