# SPDX-License-Identifier: Apache-2.0
"""What happens between steps, and in which order; the steps themselves only count."""

import contextlib
import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers_data import make_dataset
from helpers_training import smoke_config, write_backbone

from jaxdp import dp
from jaxdp.data.units import PrivacyUnits
from jaxdp.run import train as whole
from jaxdp.run.begin import Run, begin, shared_secret
from jaxdp.run.checkpoint import Checkpoints, Position
from jaxdp.run.directory import RunDirectory, RunError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import SilentMonitor
from jaxdp.run.processes import SharedInterrupt
from jaxdp.run.train import Interrupted, train_stages
from jaxdp.training import setup
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret
from jaxdp.training.stages import plan_run
from jaxdp.training.step import TrainState

FIXED = dict(head_stage__noise_multiplier=70.0, privacy__noise_multiplier=60.0)
RESTRICTED = dict(
    privacy__unit="patient", privacy__max_reports_per_patient=3, privacy__secure_noise=True
)
FEATURES, MEAN, UNITS = object(), np.float32([1.0, 2.0]), object()
ALL = [Position(0, step) for step in range(1, 5)] + [Position(1, step) for step in range(1, 7)]


class Lab:
    """A run of two stages, of 4 and 6 steps, that notes what is done in `log`."""

    def __init__(self, tmp_path, monkeypatch, **changes):
        changes = FIXED | RESTRICTED | {"train__temperature": 2.0} | changes
        self.config = smoke_config(tmp_path, **changes)
        self.log, self.interrupt, self.fails_at, lab = [], Interrupt(), None, self
        self.inputs = types.SimpleNamespace(
            tokens={"validation": None},
            lengths=np.full(2, 16),
            units=UNITS,
            labels={"validation": np.ones((2, 1), np.int8)},
            dataset=types.SimpleNamespace(label_names=("normal",)),
        )

        class NotedCheckpoints(Checkpoints):
            def save(self, position, state):
                super().save(position, state)
                lab.log.append(("saved", position))

        class Trainer:
            """Each step adds one to its only number."""

            def __init__(self, members, **options):
                (own,) = members
                lab.log.append(("stage", own.stage, vars(own) | options))
                self.stage, self._index = own.stage, lab.plan.stages.index(own.stage)
                self.initial_state = TrainState({"w": jnp.zeros(())}, ())

            def plan(self, step):
                return step

            def step(self, state, step, plan):
                assert plan == step == int(state.adapters["w"]), "not the state of this step"
                done = Position(self._index, step + 1)
                lab.log.append(("step", done))
                value = jnp.where(done == lab.fails_at, jnp.nan, step + 1)
                return TrainState({"w": value.astype(jnp.float32)}, ()), done

            def describe(self, plan, diagnostics):
                return diagnostics, 0, 1.0

            def validation_probabilities(self, state):
                return np.full((2, 1), 0.5)

            def each(self, tree):
                return [tree]

            def install(self, state):
                pass

        def frozen_layers(*_):
            self.log.append(("frozen layers",))
            return types.SimpleNamespace(at=lambda level: {"train": FEATURES})

        def mean_feature(*arguments, **options):
            self.log.append(("feature mean", arguments, options))
            return MEAN

        model = types.SimpleNamespace(
            feature_level=3,
            fold_basis=lambda: self.log.append(("folded",)),
            divide_logits=lambda temperature: self.log.append(("divided", temperature)),
        )
        monkeypatch.setattr(whole, "StageTrainer", Trainer)
        monkeypatch.setattr(whole, "_build", lambda *_: ([model], None))
        monkeypatch.setattr(whole, "_frozen_layers", frozen_layers)
        monkeypatch.setattr(whole, "mean_feature", mean_feature)
        self.plan = plan_run(self.config)
        self.checkpoints = NotedCheckpoints(tmp_path / "checkpoints", 2)
        self.run = Run("run", self.plan, RunSecret.create(7), None, self)

    # As a monitor.
    def built(self, *_):
        pass

    def stage(self, *_):
        return contextlib.nullcontext()

    def stepped(self, done, *_):
        pass

    def evaluated(self, done, metrics, epsilon):
        self.log.append(("shown", done, epsilon))

    def train(self, stop_after=None):
        """Goes on from the newest checkpoint; asked to stop right after a step."""

        def received(stop):
            return ("step", stop_after) in self.log

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SharedInterrupt, "received", received)
            stop = SharedInterrupt(self.interrupt, make_mesh(1))
            patch.setattr(whole, "begin", lambda *given: self.log.append(("start", *given)))
            train_stages(self.config, [self.run], self.inputs, self.checkpoints, stop)

    def noted(self, kind):
        """What was noted of one kind, in order."""
        return [entry[1] for entry in self.log if entry[0] == kind]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)


def spent(config, plan, done):
    """Epsilon of all steps up to a position, from the mechanisms themselves."""
    head, main = (done.step, 0) if done.stage == 0 else (4, done.step)
    first, second = (stage.mechanism for stage in plan.stages)
    taken = [plan.centering, first.replace(steps=head), second.replace(steps=main)]
    return dp.epsilon_pld(taken, config.privacy.delta)


def test_epsilon_is_of_every_step_taken_and_of_the_mean(lab):
    for done in (Position(0, 0), *ALL):
        assert lab.plan.epsilon(*done) == spent(lab.config, lab.plan, done) > 0


def test_nothing_is_done_with_the_reports_before_the_start(lab):
    lab.train()
    assert [entry[0] for entry in lab.log[:5]] == [
        "start", "frozen layers", "feature mean", "stage", "saved",
    ]  # fmt: skip
    assert lab.log[4] == ("saved", Position(0, 0))


def test_a_run_begins_with_the_ledger_and_the_budget_of_its_settings(tmp_path, monkeypatch):
    file = tmp_path / "ledger"
    changes = {"privacy__ledger": str(file), "privacy__total_budget": 3.0}
    for lab, wanted in (
        (Lab(tmp_path / "a", monkeypatch, **changes), (dp.Ledger(file), 3.0)),
        (Lab(tmp_path / "b", monkeypatch), (None, None)),
    ):
        lab.train()
        ((_, run, _, inputs, *given),) = [e for e in lab.log if e[0] == "start"]
        assert (run, inputs, *given) == (lab.run, lab.inputs, *wanted)


def test_what_runs_is_what_was_planned(lab):
    lab.train()
    ((_, arguments, options),) = (entry for entry in lab.log if entry[0] == "feature mean")
    assert arguments == (FEATURES, UNITS, lab.plan.centering, lab.run.secret)
    assert lab.plan.centering is not None and options == {"secure_noise": True}
    assert tuple(lab.noted("stage")) == lab.plan.stages
    for _, _, options in (entry for entry in lab.log if entry[0] == "stage"):
        assert options["secret"] is lab.run.secret and options["units"] is UNITS
        assert options["secure_noise"] and options["center"] is MEAN
    assert lab.noted("step") == ALL


def test_in_the_end_the_head_is_an_ordinary_one_and_its_logits_are_divided_once(lab):
    lab.train()
    assert lab.log[-2:] == [("folded",), ("divided", 2.0)]
    assert lab.log.count(("folded",)) == 1 and lab.noted("divided") == [2.0]


def test_what_is_shown_is_saved_before_and_its_epsilon_is_of_that_step(lab):
    lab.train()
    assert lab.noted("shown") == [(0, 3), (0, 4), (1, 3), (1, 6)]
    for at, entry in enumerate(lab.log):
        if entry[0] == "shown":
            _, done, epsilon = entry
            assert ("saved", done) in lab.log[:at] and epsilon == spent(lab.config, lab.plan, done)


@pytest.mark.parametrize("at", [(0, 1), (0, 4), (1, 3), (1, 5)])
def test_a_stop_saves_tells_what_was_spent_and_goes_on_with_the_next_step(lab, at):
    with pytest.raises(Interrupted) as stop:
        lab.train(stop_after=Position(*at))
    done = lab.noted("step")[-1]
    assert stop.value.position == done == lab.checkpoints.latest()
    assert stop.value.epsilon == spent(lab.config, lab.plan, done)
    lab.train()
    assert lab.noted("step") == ALL


def test_a_state_that_is_not_finite_is_neither_saved_nor_shown(lab):
    lab.fails_at = Position(1, 4)
    with pytest.raises(FloatingPointError, match="learning rate"):
        lab.train()
    assert lab.noted("step")[-1] == lab.fails_at
    assert lab.noted("saved")[-1] == Position(1, 3)
    assert lab.noted("shown")[-1] == Position(1, 3)


# Before the first step.


MODEL = nnx.Linear(2, 2, rngs=nnx.Rngs(0))


def inputs(patients="aabb", unit="patient", **changes):
    data = make_dataset(patients, **changes)
    return setup.Inputs(data, {}, {}, 0, PrivacyUnits.of(data, unit), None, 16)


@pytest.mark.parametrize(
    "other",
    [
        inputs("abab"),
        inputs(unit="report"),
        inputs(labels=np.zeros((4, 2), np.int8)),
        inputs(texts=["report"] * 4),
    ],
    ids=["other patients", "other units", "other labels", "other texts"],
)
def test_noise_is_used_again_on_the_very_same_reports_labels_and_units_only(tmp_path, other):
    with contextlib.closing(RunDirectory(smoke_config(tmp_path), resume=False)) as run:
        secret = shared_secret(RunSecret.create(None), run, inputs())
        run.start({})
        assert shared_secret(RunSecret.create(None), run, inputs()).root == secret.root
        with pytest.raises(RunError, match="other training reports"):
            shared_secret(RunSecret.create(None), run, other)


@pytest.mark.parametrize(
    ("unit", "cap", "counts"),
    [("report", None, [1] * 7), ("patient", None, [4, 3]), ("patient", 2, [2, 2])],
)
def test_training_reports_are_grouped_as_configured(tmp_path, monkeypatch, unit, cap, counts):
    write_backbone(tmp_path / "backbone")
    data = make_dataset("aaaabbbcd", splits=["train"] * 7 + ["validation", "test"])
    monkeypatch.setattr(setup, "load_reports", lambda *_: data)
    config = smoke_config(tmp_path, privacy__unit=unit, privacy__max_reports_per_patient=cap)
    units = setup.load_inputs(config).units
    assert (units.unit, units.counts.tolist()) == (unit, counts)


@pytest.fixture
def new_run(tmp_path):
    """new_run(**changes): the settings of a run that has not started, and the run."""
    with contextlib.ExitStack() as opened:

        def new_run(**changes):
            changes = FIXED | {"privacy__ledger": str(tmp_path / "ledger")} | changes
            config = smoke_config(tmp_path, **changes)
            directory = RunDirectory(config, resume=False)
            opened.enter_context(contextlib.closing(directory))
            secret = shared_secret(RunSecret.create(None), directory, inputs())
            return config, Run("run", plan_run(config), secret, directory, SilentMonitor())

        yield new_run


def test_a_run_is_in_the_ledger_in_full_before_it_begins_and_its_secret_before_that(
    tmp_path, new_run, monkeypatch
):
    (_, run), planned, ledger = new_run(), dp.Ledger.plan, dp.Ledger(tmp_path / "ledger")

    def plan(*arguments, **options):
        assert run.directory.started
        planned(*arguments, **options)

    monkeypatch.setattr(dp.Ledger, "plan", plan)
    begin(run, MODEL, inputs(), ledger)
    (runs,) = ledger.runs().values()
    assert runs == {run.secret.public_id(): run.plan.mechanisms()}


def test_a_new_run_that_is_refused_has_not_started_and_one_that_goes_on_has(tmp_path, new_run):
    _, run = new_run()
    for started in (False, True):
        if started:
            begin(run, MODEL, inputs(), None)
        with pytest.raises(dp.LedgerError, match="over the total budget"):
            begin(run, MODEL, inputs(), dp.Ledger(tmp_path / "ledger"), total_budget=1e-3)
        assert run.directory.started is started


def test_a_run_goes_on_with_the_weights_and_the_noise_that_it_began_with(new_run):
    _, run = new_run(privacy__ledger=None)
    for _ in range(2):
        begin(run, MODEL, inputs(), None)
    with pytest.raises(RunError, match="with other weights or public start; resume it with"):
        begin(run, nnx.Linear(2, 2, rngs=nnx.Rngs(1)), inputs(), None)
    *before, stage = run.plan.stages
    other = stage.mechanism.replace(noise_multiplier=1.01 * stage.mechanism.noise_multiplier)
    stages = (*before, dataclasses.replace(stage, mechanism=other))
    plan = dataclasses.replace(run.plan, stages=stages)
    with pytest.raises(RunError, match="with other noise; resume it with"):
        begin(dataclasses.replace(run, plan=plan), MODEL, inputs(), None)


# After the last step.


def test_the_statement_is_of_what_ran_on_whom_and_with_which_noise(new_run, monkeypatch):
    (config, run), written = new_run(**RESTRICTED), []
    monkeypatch.setattr(whole, "write_release", lambda *_, **o: written.append(o))
    held_out = inputs(splits=["train", "train", "test", "test"])
    whole._finish(config, run, held_out, None, (), np.full((2, 2), 0.5, np.float32))
    (statement,) = (options["statement"] for options in written)
    assert [(m["stage"], m["steps"]) for m in statement["mechanisms"]] == [
        ("feature mean", 1), ("head stage", 4), ("main stage", 6),
    ]  # fmt: skip
    assert statement["epsilon"] == spent(config, run.plan, ALL[-1])
    assert (statement["privacy_unit"], statement["max_reports_per_patient"]) == ("patient", 3)
    assert statement["seed_policy"] == "fixed-for-research"
    assert statement["noise_generator"].startswith("SHAKE-256")
