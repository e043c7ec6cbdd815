# SPDX-License-Identifier: Apache-2.0
"""Whole runs on a tiny collection: what they write, what they refuse, and how they survive."""

import io
import json
import multiprocessing
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers_models import save_torch_model
from helpers_training import (
    LABELS,
    as_flags,
    run_script,
    smoke_config,
    smoke_settings,
    write_collection,
    write_workspace,
)
from rich.console import Console

from jaxdp.config import ConfigError
from jaxdp.data.dataset import DataError
from jaxdp.dp import Ledger, LedgerError
from jaxdp.evaluation.predict import ReleasedClassifier
from jaxdp.evaluation.predictions import TestPredictions
from jaxdp.run.checkpoint import Position
from jaxdp.run.directory import RunDirectory, RunError
from jaxdp.run.give_up import give_up
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor, SilentMonitor
from jaxdp.run.train import Interrupted, train
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.setup import load_inputs
from jaxdp.training.stages import plan_run

ONE_STAGE = dict(head_stage__steps=0, centering__l2_clip_norm=None, privacy__noise_multiplier=2.3)
"""Costs epsilon 0.496; to calibrate its noise takes longer than to train."""


def run(config, *, resume=False):
    console = Console(record=True, width=100, file=io.StringIO())
    result = train(config, resume=resume, interrupt=Interrupt(), monitor=Monitor(console))
    return result, console.export_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, result, console) of a run of the smoke settings; only to be read."""
    workspace = tmp_path_factory.mktemp("whole")
    write_workspace(workspace)
    return workspace, *run(smoke_config(workspace))


def adapter(workspace, name="smoke"):
    path = workspace / "runs" / name / "release" / "adapter" / "adapter_model.safetensors"
    return safetensors.numpy.load_file(path)


def stop_after(config, at, *, resume=False) -> Interrupted:
    """Runs until a stop is asked for, as SIGTERM does, once step `at` (of stage, step) was read."""
    interrupt = Interrupt()

    class StopAfter(Monitor):
        def stepped(self, done, *rest):
            super().stepped(done, *rest)
            if done == at:
                interrupt.received = signal.SIGTERM

    monitor = StopAfter(Console(file=io.StringIO()))
    with pytest.raises(Interrupted) as stop:
        train(config, resume=resume, interrupt=interrupt, monitor=monitor)
    return stop.value


def assert_same_adapter(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_run_writes_exactly_the_contract(whole):
    workspace, result, _ = whole
    root = workspace / "runs" / "smoke"
    assert sorted(p.name for p in root.iterdir()) == [
        "config.json", "metrics.json", "private", "release",
    ]  # fmt: skip
    released = sorted(
        str(p.relative_to(root / "release")) for p in (root / "release").rglob("*") if p.is_file()
    )
    assert released == [
        "PRIVACY.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/jaxdp.json",
        "adapter/tokenizer_config.json",
        "adapter/vocab.txt",
        "privacy.json",
    ]
    assert (root / "private").stat().st_mode & 0o077 == 0
    statement = json.loads((root / "release" / "privacy.json").read_text())
    assert statement == result["privacy"]
    assert [m["stage"] for m in statement["mechanisms"]] == [
        "feature mean", "head stage", "main stage",
    ]  # fmt: skip
    assert [m["steps"] for m in statement["mechanisms"]] == [1, 4, 6]
    assert 0.49 < statement["epsilon"] <= 0.5
    metrics = json.loads((root / "metrics.json").read_text())
    assert set(metrics["test"]["per_label"]) == set(LABELS)
    assert "not covered" in metrics["note"]
    tensors = adapter(workspace)
    assert all(np.isfinite(t).all() for t in tensors.values())
    lora_b = [t for name, t in tensors.items() if "lora_B" in name]
    assert lora_b and all(np.abs(t).max() > 0 for t in lora_b), "an adapter that does nothing"


def test_a_run_keeps_what_its_metrics_are_made_of(whole):
    folder = whole[0] / "runs" / "smoke"
    kept = TestPredictions.read(folder / "private" / "test_predictions.npz")
    assert kept.metrics() == json.loads((folder / "metrics.json").read_text())["test"]


def test_random_seed_comes_from_the_operating_system_by_default(workspace):
    results = [
        run(smoke_config(workspace, run__research_seed=None, run__name=name, **ONE_STAGE))[0]
        for name in ("one", "two")
    ]
    assert {r["privacy"]["seed_policy"] for r in results} == {"os-entropy"}
    one, two = adapter(workspace, "one"), adapter(workspace, "two")
    assert all((one[name] != two[name]).any() for name in one)


def test_research_seed_repeats_the_run(workspace, whole):
    one = adapter(whole[0])
    _, text = run(smoke_config(workspace, run__name="two"))
    assert re.search(r"first step compiled in \S+ s; programs that were found spared \S+ s", text)
    assert_same_adapter(one, adapter(workspace, "two"))
    run(smoke_config(workspace, run__name="three", run__research_seed=8))
    other = adapter(workspace, "three")
    assert all((one[name] != other[name]).any() for name in other)


@pytest.mark.slow
def test_nonprivate_training_learns_and_says_so(workspace):
    write_collection(workspace / "NLMCXR_reports.tgz", reports=600)
    settings = dict(
        privacy__epsilon=None,
        train__steps=400,
        train__expected_batch_size=64.0,
        train__learning_rate=0.02,
        head_stage__steps=0,
        lora__layers="all",
        run__eval_every=400,
        run__checkpoint_every=400,
    )
    result, text = run(smoke_config(workspace, **settings))
    assert result["privacy"]["epsilon"] is None
    assert result["privacy"]["mechanisms"] == []
    assert result["metrics"]["test"]["weighted_f1"] > 0.9
    assert "without privacy" in text
    assert "WITHOUT" in (workspace / "runs/smoke/release/privacy.json").read_text()


@pytest.mark.parametrize(
    "mode",
    ["lora-ffa", *(pytest.param(m, marks=pytest.mark.slow) for m in ("head", "bitfit", "full"))],
)
def test_every_mode_releases_what_it_trained(workspace, mode):
    result, _ = run(smoke_config(workspace, train__mode=mode, **ONE_STAGE))
    folder = workspace / "runs" / "smoke" / "release" / "adapter"
    if mode != "full":
        names = set(adapter(workspace))
        assert any("lora" in name for name in names) == (mode == "lora-ffa")
        assert any(name.endswith("query.bias") for name in names) == (mode == "bitfit")
    else:
        assert (folder / "model.safetensors").exists()
    dataset = load_inputs(smoke_config(workspace)).dataset.subset("test")
    base_model = str(workspace / "backbone")
    probabilities = ReleasedClassifier(folder.parent, base_model=base_model)
    probabilities = probabilities.predict_proba(dataset.texts)
    decided = (probabilities >= 0.5).sum(axis=0)
    per_label = result["metrics"]["test"]["per_label"]
    assert [per_label[name]["predicted"] for name in LABELS] == decided.tolist()


@pytest.mark.slow
def test_albert_trains_privately(workspace):
    save_torch_model(workspace / "albert", "albert", num_labels=len(LABELS), num_hidden_groups=1)
    shutil.copy(workspace / "backbone" / "vocab.txt", workspace / "albert" / "vocab.txt")
    tokenizer = {"tokenizer_class": "BertTokenizer"}
    (workspace / "albert" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    changes = dict(model__backbone=str(workspace / "albert"), lora__layers="all")
    result, _ = run(smoke_config(workspace, **changes))
    assert 0.49 < result["privacy"]["epsilon"] <= 0.5
    lora_b = [tensor for name, tensor in adapter(workspace).items() if "lora_B" in name]
    # one adapter for the layer that all depths share: query and value
    assert len(lora_b) == 2 and all(np.abs(tensor).max() > 0 for tensor in lora_b)


def test_lora_settings_that_fit_no_layer_are_named(workspace):
    with pytest.raises(ConfigError, match=r"config\.lora\.targets: 'qurey'.*query"):
        run(smoke_config(workspace, lora__targets=("qurey",)))
    with pytest.raises(ConfigError, match=r"config\.lora\.layers must be at most last:2"):
        run(smoke_config(workspace, lora__layers="last:3"))


def test_interrupt_saves_and_resume_continues_identically(workspace, whole):
    config = smoke_config(workspace)
    release = workspace / "runs" / "smoke" / "release"
    for number, at in enumerate([(0, 1), (0, 4), (1, 3)]):
        stop = stop_after(config, at, resume=number > 0)
        spent = plan_run(config).mechanisms(*stop.position)
        assert sum(m.steps for m in spent.values()) < 11
        assert 0 < stop.epsilon < 0.5
        assert not release.exists()
    run(config, resume=True)
    assert_same_adapter(adapter(whole[0]), adapter(workspace))
    wanted = (whole[0] / "runs" / "smoke" / "release" / "privacy.json").read_text()
    assert (release / "privacy.json").read_text() == wanted


def test_an_evaluation_that_a_kill_kept_from_being_shown_is_made_again(workspace):
    config = smoke_config(workspace, train__mode="head", **ONE_STAGE)
    stages = plan_run(config).stages
    last, shown = Position(len(stages) - 1, stages[-1].steps), []

    class Killed(Exception):
        pass

    class KilledAtTheEnd(Monitor):
        def evaluated(self, done, metrics, epsilon):
            if done == last:
                raise Killed
            super().evaluated(done, metrics, epsilon)

    class Notes(Monitor):
        def evaluated(self, done, metrics, epsilon):
            shown.append(done)
            super().evaluated(done, metrics, epsilon)

    def trained(monitor, resume):
        monitor = monitor(Console(file=io.StringIO()))
        train(config, resume=resume, interrupt=Interrupt(), monitor=monitor)

    with pytest.raises(Killed):
        trained(KilledAtTheEnd, resume=False)
    trained(Notes, resume=True)
    assert shown == [last]


def test_a_signal_before_the_first_step_does_not_wait_for_it(workspace, whole, monkeypatch):
    config = smoke_config(workspace, run__name="stopped")

    def asked(*_):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    with monkeypatch.context() as patch, Interrupt() as interrupt:
        patch.setattr(FrozenLayers, "at", asked)
        with pytest.raises(Interrupted) as stop:
            train(config, resume=False, interrupt=interrupt, monitor=SilentMonitor())
    assert interrupt.received == signal.SIGINT
    assert stop.value.position == Position(0, 0) and stop.value.epsilon is None
    run(config, resume=True)
    assert_same_adapter(adapter(whole[0]), adapter(workspace, "stopped"))


def test_sigterm_exits_with_a_way_to_go_on(workspace):
    steps = dict(train__steps=5000, run__checkpoint_every=100, run__eval_every=5000)
    quick = dict(train__mode="head", head_stage__steps=0, privacy__noise_multiplier=500.0)
    settings = smoke_settings(workspace, **steps, **quick)
    checkpoints = workspace / "runs" / "smoke" / "private" / "checkpoints"
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(run_script, "train.py", *as_flags(settings))
        while not ended.done() and not (checkpoints / "0-100").exists():
            time.sleep(0.005)
        for process in multiprocessing.active_children():
            process.terminate()
        done = ended.result()
    assert done.returncode == 128 + signal.SIGTERM
    assert "--resume" in done.stderr and "epsilon" in done.stderr


def test_run_directory_is_protected(whole):
    workspace = whole[0]
    config = smoke_config(workspace)
    with pytest.raises(RunError, match="--resume"):
        run(config)
    with pytest.raises(RunError, match="finished"):
        run(config, resume=True)
    with pytest.raises(RunError, match=r"config\.privacy\.epsilon = 0\.5"):
        run(smoke_config(workspace, privacy__epsilon=None), resume=True)
    # How often to save changes neither mechanism nor result.
    with pytest.raises(RunError, match="finished"):
        run(smoke_config(workspace, run__checkpoint_every=1), resume=True)


def test_ledger_adds_runs_up_and_refuses_to_overdraw(workspace):
    budget = dict(privacy__ledger=str(workspace / "ledger.jsonl"), privacy__total_budget=0.6)
    quick = dict(run__research_seed=None, train__mode="head", **ONE_STAGE)
    run(smoke_config(workspace, **budget, **quick))
    ledger = Ledger(workspace / "ledger.jsonl")
    (fingerprint,) = ledger.runs()
    assert 0.49 < ledger.epsilon(fingerprint, 1e-3) <= 0.5
    with pytest.raises(LedgerError, match="total budget of 0.6"):
        run(smoke_config(workspace, run__name="second", **budget, **quick))
    assert not list((workspace / "runs/second/private/checkpoints").glob("*"))
    # Refused is not started: the same run may be tried again with other settings.
    without_budget = dict(privacy__ledger=budget["privacy__ledger"])
    run(smoke_config(workspace, run__name="second", **without_budget, **quick))
    # two runs of 0.5 each: more than one, less than their sum
    assert 0.6 < ledger.epsilon(fingerprint, 1e-3) < 1.0


def test_adapter_that_is_not_finite_is_never_saved(workspace):
    with pytest.raises(FloatingPointError, match="learning rate"):
        run(smoke_config(workspace, train__learning_rate=1e38, train__optimizer="sgd", **ONE_STAGE))
    assert not (workspace / "runs" / "smoke" / "release").exists()


def test_head_stage_on_cached_features_equals_training_from_tokens(workspace):
    # Mode "head" starts from features; the same steps from token ids must give the same head.
    from jaxdp.training import trainer as module

    quick = dict(train__mode="head", head_stage__steps=0, privacy__noise_multiplier=60.0)
    run(smoke_config(workspace, **quick))
    cached = adapter(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.ReportClassifier, "start_level", lambda self, adapters: 0)
        run(smoke_config(workspace, **quick, run__name="direct"))
    direct = adapter(workspace, "direct")
    for name in cached:
        # float32 sums in another order, and Adam's division by small second moments
        np.testing.assert_allclose(cached[name], direct[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("units", "told"),
    [(89, False), (97, False), (88, True), (98, True), (222758, True), (None, False)],
)
def test_units_far_from_what_is_there_are_told(workspace, units, told):
    inputs = load_inputs(smoke_config(workspace))
    assert inputs.units.num_units == 93
    private = {"privacy__units": units} if units else {"privacy__epsilon": None}
    noise = {"privacy__noise_multiplier": 60.0, "head_stage__noise_multiplier": 70.0}
    console = Console(record=True, width=200, file=io.StringIO())
    Monitor(console).loaded(inputs, plan_run(smoke_config(workspace, **noise, **private)))
    said = f"privacy.units is {units or 0:,}, but the training split has 93 reports"
    assert (said in console.export_text()) == told


def test_wrong_data_is_said_before_a_backbone_is_looked_for(workspace):
    config = smoke_config(
        workspace, data__root=str(workspace / "nothing"), model__backbone="no backbone"
    )
    with pytest.raises(DataError, match="nothing does not exist"):
        load_inputs(config)


def test_console_and_private_files_never_show_a_report(whole):
    workspace, _, text = whole
    files = [p for p in (workspace / "runs").rglob("*") if p.is_file()]
    for phrase in ("opacity effusion", "lungs clear", "small large"):
        assert phrase not in text
        assert all(phrase.encode() not in p.read_bytes() for p in files)
    assert jax.default_backend() == "cpu"


@pytest.mark.slow
def test_a_run_that_is_given_up_counts_with_the_steps_it_took(workspace):
    ledger = Ledger(workspace / "ledger.jsonl")
    changes = dict(head_stage__steps=0, centering__l2_clip_norm=None, run__research_seed=None)
    config = smoke_config(workspace, privacy__ledger=str(ledger.path), **changes)
    path = workspace / "runs" / "smoke"

    def counted():
        (runs,) = ledger.runs().values()
        (mechanisms,) = runs.values()
        return mechanisms["main stage"].steps

    with pytest.raises(RunError, match="no run was started there"):
        give_up(path, ledger)
    stop_after(config, (0, 2))
    assert counted() == 6
    held = RunDirectory(config, resume=True)
    with pytest.raises(RunError, match="in use"):
        give_up(path, ledger)
    held.close()
    with pytest.raises(LedgerError, match="is not in"):
        give_up(path, Ledger(workspace / "other.jsonl"))

    # One more step than was read when it was asked to stop: that one had begun.
    done = run_script("account.py", f"--ledger={ledger.path}", f"--give_up={path}", "--delta=1e-3")
    assert done.returncode == 0 and "given up after 3 steps of stage 1" in done.stdout, done.stderr
    assert counted() == 3
    # What was set aside as damaged has been seen all the same.
    newest = path / "private" / "checkpoints" / "0-3"
    newest.rename(newest.with_suffix(".damaged"))
    assert give_up(path, ledger) == (0, 3)

    run(config, resume=True)
    assert counted() == 6
    with pytest.raises(RunError, match="not finished"):
        give_up(path, ledger)
