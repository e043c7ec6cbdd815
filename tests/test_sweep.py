# SPDX-License-Identifier: Apache-2.0
"""Sweeps: members, groups, what they cost together, running and resuming them, and the table."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import time
import types

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from helpers_sweep import pretend_finished, tiny_sweep, write_sweep_file
from helpers_training import (
    LABELS,
    REPOSITORY,
    AtTheFirstStep,
    run_script,
    smoke_config,
    smoke_settings,
    start_script,
    write_workspace,
)
from rich.console import Console

from jaxdp import dp
from jaxdp.commands import sweep as sweep_command
from jaxdp.config import Config, ConfigError
from jaxdp.run.directory import RunDirectory, RunError, read_secret
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.train import Interrupted, train
from jaxdp.sweep.accounting import plan_sweep
from jaxdp.sweep.directory import begin, read_begun, sampling_root
from jaxdp.sweep.estimate import estimate_seconds
from jaxdp.sweep.execute import finished, run_group
from jaxdp.sweep.history import evaluations, peak_memory, read_history, seconds
from jaxdp.sweep.members import Grid, Sweep, expand, groups, load_sweep, override
from jaxdp.sweep.progress import joint_lines, status, watching, winner_lines
from jaxdp.sweep.results import results_table, write_results
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import load_inputs

DELTA = 1e-3  # of configs/smoke.py
ONE_STAGE = ["head_stage.steps=0", "centering.l2_clip_norm=None"]  # one noise to calibrate


# Members.


def test_axes_multiply_and_grids_add_up(tmp_path):
    base = smoke_settings(tmp_path, run__research_seed=None)
    sweep = tiny_sweep(
        tmp_path,
        grids=[
            Grid("a", base, {"privacy.epsilon": (1.0, float("inf")), "lora.rank": (2, 4)}),
            Grid("b", base, {"train.steps, train.learning_rate": [(3, 0.1), (5, 0.2)]}),
            Grid("c", base, {"lora.rank": (3,)}, seeds=1),
        ],
    )
    members = expand(sweep)
    assert len(members) == 2 * (4 + 2) + 1
    assert (list(members)[-1], members["c_rank3"].seed) == ("c_rank3", 0)
    assert list(members)[:3] == [
        "a_eps1_rank2_seed0", "a_eps1_rank2_seed1", "a_eps1_rank4_seed0",
    ]  # fmt: skip
    config = members["b_steps5_learning_rate0.2_seed1"].config
    assert (config.train.steps, config.train.learning_rate) == (5, 0.2)
    assert config.run.dir == str(tmp_path / "runs" / "sweep")
    assert members["a_nonprivate_rank2_seed0"].config.privacy.epsilon is None
    assert base.lora.rank == 8, "the base was changed"


def test_every_member_has_noise_of_its_own(tmp_path):
    seeds = {m.config.run.research_seed for m in expand(tiny_sweep(tmp_path)).values()}
    assert len(seeds) == 4 and None not in seeds
    assert seeds == {m.config.run.research_seed for m in expand(tiny_sweep(tmp_path)).values()}
    from_os = expand(tiny_sweep(tmp_path, research_seed=None))
    assert {m.config.run.research_seed for m in from_os.values()} == {None}
    # The same seed for two members: their difference would be free of noise.
    grids = [Grid("a", smoke_settings(tmp_path), {"privacy.epsilon": (1.0, 2.0)})]
    with pytest.raises(ConfigError, match="a_eps1 and a_eps2 have the same run.research_seed"):
        expand(tiny_sweep(tmp_path, seeds=1, research_seed=None, grids=grids))


def test_what_is_wrong_is_named(tmp_path):
    base = smoke_settings(tmp_path, run__research_seed=None)
    for axes, message in (
        ({"privacy.epsilom": (1,)}, "config.privacy.epsilom is not a setting"),
        ({"lora.rank": ("two",)}, "config.lora.rank must be of type int"),
        ({"lora.rank": (2, 2)}, "two members are named tiny_rank2"),
        ({"lora.rank": ()}, "has no members"),
    ):
        with pytest.raises(ConfigError, match=message):
            expand(tiny_sweep(tmp_path, axes=axes, seeds=1))
    with pytest.raises(ConfigError, match="a: seeds must be at least 1, not 0"):
        expand(tiny_sweep(tmp_path, grids=[Grid("a", base, seeds=0)]))
    base.privacy.ledger = "somewhere"
    with pytest.raises(ConfigError, match="Sweep.ledger"):
        expand(tiny_sweep(tmp_path, grids=[Grid("a", base)]))
    with pytest.raises(ConfigError, match="Sweep.name"):
        expand(tiny_sweep(tmp_path, name="a/b"))
    with pytest.raises(ConfigError, match="no such file"):
        load_sweep(str(tmp_path / "missing.py"))
    with pytest.raises(ConfigError, match="has no get_sweep"):
        load_sweep(str(REPOSITORY / "configs" / "smoke.py"))


def test_settings_are_overridden_for_all_or_for_one_grid(tmp_path):
    base = smoke_settings(tmp_path, run__research_seed=None)
    sweep = tiny_sweep(
        tmp_path, seeds=1, grids=[Grid("a", base, {"lora.rank": (2,)}), Grid("b", base)]
    )
    settings = ["train.steps=9", "b:data.root=/x", "lora.layers=last:2", "privacy.epsilon=None"]
    a, b = (m.config for m in expand(override(sweep, settings)).values())
    assert (a.train.steps, b.train.steps, b.data.root) == (9, 9, "/x")
    assert a.data.root != "/x" and a.lora.layers == "last:2" and a.privacy.epsilon is None
    for setting, message in (
        ("train.steps", "section.field=value"),
        ("train.step=1", "train.step is not a setting"),
        ("c:train.steps=1", "grids are a, b"),
        ("lora.rank=1", "an axis of a"),
    ):
        with pytest.raises(ConfigError, match=message):
            override(sweep, [setting])


def test_members_that_can_share_samples_are_a_group(tmp_path):
    def count(axes, **changes):
        return len(groups(expand(tiny_sweep(tmp_path, axes=axes, **changes))))

    numbers = {
        "privacy.epsilon": (1.0, None),
        "privacy.l2_clip_norm": (0.1, 0.2),
        "train.learning_rate": (0.1, 0.2),
        "head_stage.learning_rate": (0.1, 0.2),
        "centering.l2_clip_norm": (4.0, 5.0),
    }
    assert count(numbers) == 1
    for name, values in {
        "train.expected_batch_size": (16.0, 24.0),
        "train.steps": (6, 7),
        "lora.rank": (2, 4),
        "data.text": ("impression", "findings"),
        "train.optimizer": ("adam", "sgd"),
        "privacy.units": (96, 97),
        "centering.l2_clip_norm": (4.0, None),
    }.items():
        assert count({name: values}) == 2, name


def test_the_files_in_configs_are_sweeps():
    for name, members in (("openi", 22), ("padchest", 12), ("lr", 9), ("paper", 54)):
        sweep = load_sweep(str(REPOSITORY / "configs" / f"sweep_{name}.py"))
        assert sweep.name == f"sweep_{name}" and len(expand(sweep)) == members


# What they cost.


def test_costs_are_the_accountants(tmp_path):
    axes = {"privacy.epsilon": (0.05, 0.08, None), "lora.rank": (2, 4)}
    plan = plan_sweep(override(tiny_sweep(tmp_path, axes=axes, seeds=1), ONE_STAGE))
    each = {n: p.mechanisms() for n, p in plan.plans.items()}
    for index, rank in enumerate((2, 4)):
        private = [each[f"tiny_eps{e}_rank{rank}"] for e in (0.05, 0.08)]
        assert plan.group_mechanisms(index) == dp.joint_mechanisms(private)
    (cost,) = plan.joint_costs()
    joint = [m for i in (0, 1) for m in plan.group_mechanisms(i).values()]
    assert cost.epsilon == pytest.approx(dp.epsilon_pld(joint, DELTA), rel=1e-9)
    assert len(cost.members) == 4 and cost.delta == DELTA
    assert cost.epsilon > 0.08 > plan.plans["tiny_eps0.05_rank2"].epsilon()
    assert plan.plans["tiny_nonprivate_rank2"].epsilon() is None

    own = plan_sweep(dataclasses.replace(plan.sweep, share_sampling=False))
    (independent,) = own.joint_costs()
    together = [m for stages in each.values() for m in stages.values()]
    assert independent.epsilon == pytest.approx(dp.epsilon_pld(together, DELTA), rel=1e-6)
    assert independent.epsilon < cost.epsilon


def test_the_smallest_delta_counts_and_collections_are_apart(tmp_path):
    axes = {"privacy.delta": (1e-3, 1e-4), "data.root": ("/one", "/other")}
    sweep = override(tiny_sweep(tmp_path, axes=axes, seeds=1), [*ONE_STAGE, "privacy.epsilon=0.05"])
    first, second = plan_sweep(sweep).joint_costs()
    assert first.delta == second.delta == 1e-4
    assert not set(first.members) & set(second.members)


def test_the_joint_cost_is_said_in_words(tmp_path):
    plan = plan_sweep(tiny_sweep(tmp_path))
    lines = joint_lines(plan)
    epsilon = f"{plan.joint_costs()[0].epsilon:.4g}"
    assert "sharing each step's sample" in lines[0]
    assert f"publishing the best of these 2 private members on openi, or all of them, costs " \
        f"epsilon = {epsilon} at delta 0.001 per report" in lines[1]  # fmt: skip
    assert "2 members are trained without privacy" in lines[2]
    pretend_finished(plan)
    assert winner_lines(plan)[0].startswith("best on validation: tiny_eps0.5_seed1")
    assert f"publishing the best of these 2 costs epsilon = {epsilon}" in winner_lines(plan)[1]


def test_a_sweep_enters_the_ledger_whole_or_not_at_all(tmp_path):
    write_workspace(tmp_path)
    ledger = dp.Ledger(tmp_path / "ledger.jsonl")
    sweep = tiny_sweep(tmp_path, ledger=str(ledger.path))
    plan = plan_sweep(sweep)
    (cost,) = plan.joint_costs()
    begin(plan)
    begin(plan)
    ((fingerprint, runs),) = ledger.runs().items()
    assert list(runs.values()) == [cost.mechanisms]
    assert ledger.epsilon(fingerprint, DELTA) == cost.epsilon
    # On the same reports with fewer labels nothing is left: then the others do not count either.
    labels = {"data.labels": (LABELS[:2], LABELS[:1])}
    both = tiny_sweep(tmp_path, axes=labels, seeds=1, name="both", ledger=str(ledger.path))
    configs = [m.config for m in expand(both).values()]
    new, spent = (ledger.fingerprint(load_inputs(c).training_records()) for c in configs)
    ledger.plan(spent, "earlier", cost.mechanisms)
    with pytest.raises(dp.LedgerError, match="over the total budget"):
        begin(plan_sweep(dataclasses.replace(both, total_budget=0.9)))
    assert not (both.path / "sweep.json").exists()
    assert ledger.epsilon(new, DELTA) == 0 and ledger.epsilon(spent, DELTA) == cost.epsilon


# Running.


def undisturbed(sweep: Sweep):
    plan = plan_sweep(sweep)
    begin(plan)
    with Interrupt() as interrupt:
        for index in range(len(plan.groups)):
            run_group(sweep.path, index, interrupt)
    return plan


def weights(folder) -> bytes:
    return (folder / "release" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_sweep_trains_its_members_and_skips_them_then(workspace):
    sweep = override(tiny_sweep(workspace, seeds=1), ["train.mode=head", *ONE_STAGE])
    plan = undisturbed(sweep)
    table = results_table(plan.members)
    write_results(sweep.path, table)
    rows = table.to_pylist()
    assert len(rows) == 2 * (5 + 3 * 5)
    kept = {
        (r["member"], r["label"], r["metric"]): (r["value"], r["privacy.epsilon"]) for r in rows
    }
    for name, member in plan.members.items():
        test = json.loads((member.path / "metrics.json").read_text())["test"]
        f1, epsilon = kept[name, "(all)", "weighted_f1"]
        assert f1 == test["weighted_f1"] and epsilon == member.config.privacy.epsilon
        assert kept[name, "normal", "f1"][0] == test["per_label"]["normal"]["f1"]
        statement = json.loads((member.path / "release" / "privacy.json").read_text())
        assert statement["epsilon"] == plan.plans[name].epsilon()
        s = status(member, plan.plans[name])
        assert (s.state, s.fraction, s.steps) == ("finished", 1.0, 6) and s.seconds > 0
        assert s.test == f1 and peak_memory(read_history(member.path)) > 10**7
    assert pyarrow.parquet.read_table(sweep.path / "results.parquet").equals(table)
    assert pyarrow.csv.read_csv(sweep.path / "results.csv").num_rows == len(rows)
    assert (sweep.path / "private").stat().st_mode & 0o077 == 0

    # One group, one sampling; noise and initial adapters of their own.
    secrets = [json.loads((m.path / "private" / "secret.json").read_text())
               for m in plan.members.values()]  # fmt: skip
    assert len({s["sampling"] for s in secrets}) == 1 and len({s["secret"] for s in secrets}) == 2
    one, other = (RunSecret(bytes.fromhex(s["secret"]), bytes.fromhex(s["sampling"]))
                    for s in secrets)  # fmt: skip
    assert one.sampling_seed("main stage") == other.sampling_seed("main stage")
    assert one.init_seed() != other.init_seed()
    assert one.public_id() != other.public_id()

    # Again: nothing is trained.
    before = {n: (m.path / "private" / "history.jsonl").read_bytes() for n, m in
              plan.members.items()}  # fmt: skip
    undisturbed(sweep)
    for name, member in plan.members.items():
        assert (member.path / "private" / "history.jsonl").read_bytes() == before[name]

    # Alone, with the group's samples: bit for bit the same.
    name = "tiny_eps0.5"
    alone = dataclasses.replace(plan.members[name].config.run, dir=str(workspace / "alone"))
    config = dataclasses.replace(plan.members[name].config, run=alone)
    with Interrupt() as interrupt:
        train(
            config, resume=False, interrupt=interrupt, monitor=Monitor(Console(quiet=True)),
            sampling_root=sampling_root(sweep.path, 0),
        )  # fmt: skip
    assert weights(workspace / "alone" / name) == weights(plan.members[name].path)
    # A finished member of other settings is not skipped over.
    file = plan.members[name].path / "config.json"
    changed = json.loads(file.read_text())
    changed["privacy"]["l2_clip_norm"] = 0.7
    file.write_text(json.dumps(changed))
    with pytest.raises(RunError, match=f"{name} was started .* config.privacy.l2_clip_norm = 0.7"):
        finished(plan.members[name])


def test_a_folder_belongs_to_one_sweep(tmp_path):
    sweep = tiny_sweep(tmp_path)
    begin(plan_sweep(sweep))
    assert read_begun(sweep.path)[1] == expand(sweep)
    for changed, message in (
        (dataclasses.replace(sweep, seeds=3), "tiny_eps0.5_seed2 is not yet among them"),
        (dataclasses.replace(sweep, seeds=1), "was begun with other members"),
        (override(sweep, ["train.learning_rate=0.5"]), "same config.train.learning_rate = 0.001"),
        (dataclasses.replace(sweep, share_sampling=False), "the other Sweep.share_sampling"),
    ):
        with pytest.raises(RunError, match=message):
            begin(plan_sweep(changed))
    (sweep.path / "private" / "secret.json").unlink()
    with pytest.raises(RunError, match="secret.json is missing"):
        begin(plan_sweep(sweep))


def test_a_member_of_a_group_is_not_resumed_with_other_samples(workspace):
    sweep = tiny_sweep(workspace, axes={}, seeds=1)
    begin(plan_sweep(sweep))
    with pytest.raises(Interrupted):
        run_group(sweep.path, 0, AtTheFirstStep())
    (member,) = expand(sweep).values()
    done = status(member, plan_sweep(sweep).plans[member.name])
    assert done.state == "begun" and done.steps == 1
    with Interrupt() as interrupt, pytest.raises(RunError, match="other samples"):
        train(member.config, resume=True, interrupt=interrupt, monitor=Monitor(Console(quiet=True)))


def test_a_run_keeps_the_samples_it_was_started_with(tmp_path):
    config = smoke_config(tmp_path)
    shared = bytes(range(32))

    def secret_of(run, sampling_root):
        return run.secret(RunSecret.create(None, sampling_root), [b"a report"])

    run = RunDirectory(config, resume=False)
    secret = secret_of(run, shared)
    run.start({})
    run.close()
    with contextlib.closing(RunDirectory(config, resume=True)) as again:
        assert secret_of(again, shared) == secret == read_secret(again.private)[0]
        for other in (None, bytes(32)):
            with pytest.raises(RunError, match="other samples"):
                secret_of(again, other)
    # Shared is the sampling, and nothing else.
    own = RunSecret(secret.root)
    assert secret.sampling_seed("s") == RunSecret(bytes(32), shared).sampling_seed("s")
    assert secret.sampling_seed("s") != own.sampling_seed("s")
    assert (secret.init_seed(), secret.public_id()) == (own.init_seed(), own.public_id())


def test_a_group_that_diverges_keeps_no_other_from_training(tmp_path, monkeypatch):
    plan, ran = plan_sweep(tiny_sweep(tmp_path, axes={"lora.rank": (2, 4)})), []

    def run(folder, index, interrupt):
        ran.append(index)
        if index == 0:
            raise FloatingPointError("member: lower the learning rate")

    monkeypatch.setattr(sweep_command, "run_group", run)
    monkeypatch.setattr(sweep_command, "_EXECUTOR", types.SimpleNamespace(value="inline"))
    console = Console(file=io.StringIO())
    errors = sweep_command.train_all(plan, Interrupt(), console)
    assert errors == ["member: lower the learning rate"] and ran == [*range(len(plan.groups))]
    assert len(ran) > 1


def test_history_counts_attempts_and_reads_over_a_torn_line(tmp_path):
    (tmp_path / "private").mkdir()
    lines = [
        '{"event": "attempt", "seconds": 1.0}',
        '{"event": "evaluated", "seconds": 5.0, "stage": 0, "step": 2, "weighted_f1": 0.1}',
        '{"event": "step", "seconds": 7.0, "stage": 0, "step": 3}',
        '{"event": "attempt", "seconds": 1.0}',
        '{"event": "evaluated", "seconds": 2.0, "stage": 0, "step": 2, "weighted_f1": 0.1}',
        '{"event": "finished", "seconds": 4.0, "peak_memory": 9}',
        '{"event": "fini',
    ]
    (tmp_path / "private" / "history.jsonl").write_text("\n".join(lines))
    events = read_history(tmp_path)
    assert seconds(events) == 11.0 and peak_memory(events) == 9
    assert [e["step"] for e in evaluations(events)] == [2]
    assert read_history(tmp_path / "none") == [] and seconds([]) == 0


def test_times_are_estimated_from_what_is_finished(tmp_path):
    axes = {"model.backbone": ("bert-tiny", "owner/name")}
    plan = plan_sweep(tiny_sweep(tmp_path, axes=axes, seeds=1))
    known, unknown = "tiny_bert-tiny", "tiny_name"
    alone, total = estimate_seconds(plan)
    assert 20 < alone[known] < 120 and alone[unknown] is None and total == alone[known]
    pretend_finished(plan)
    alone, total = estimate_seconds(plan)
    assert alone[unknown] == 5.0 and total == 10.0


def test_members_of_one_program_share_what_is_computed_once(tmp_path):
    def estimate(seeds, **changes):
        axes = {"model.backbone": ("bert-tiny",)}
        sweep = tiny_sweep(tmp_path, axes=axes, seeds=seeds, **changes)
        alone, total = estimate_seconds(plan_sweep(sweep))
        return [*alone.values()], total

    (alone,), total = estimate(1)
    (_, second, _), together = estimate(3)
    assert total == alone
    assert together < 3 * second - 30  # two starts, of 20 s
    (first, *_), apart = estimate(3, share_sampling=False)
    assert apart == pytest.approx(3 * first)


def test_a_log_is_told_how_far_a_sweep_is(tmp_path):
    plan = plan_sweep(tiny_sweep(tmp_path, axes={"privacy.epsilon": (None,)}))
    written = io.StringIO()
    with watching(plan, Console(file=written, width=100)):
        pretend_finished(plan)
    *members, last = written.getvalue().splitlines()
    assert len(members) == 2 and all("test weighted F1" in line for line in members)
    assert last.startswith("sweep: 2 of 2 members")


# The script.


def test_script_prints_the_plan_and_wrong_input_is_plain(workspace):
    file = write_sweep_file(workspace)
    output = workspace / "plan.json"
    quick = [f"--set={setting}" for setting in ONE_STAGE]
    done = run_script("sweep.py", f"--config={file}", "--dry-run", f"--json={output}", *quick)
    assert done.returncode == 0, done.stderr
    assert (
        "tiny_nonprivate_seed1" in done.stdout and "publishing the best of these 2" in done.stdout
    )
    assert not (workspace / "runs").exists()
    plan = json.loads(output.read_text())
    assert len(plan["members"]) == 4 and plan["joint"][0]["epsilon"] > 0.5
    for member in plan["members"].values():
        Config.from_dict(member["config"])
    done = run_script("sweep.py", f"--config={file}", "--set=train.step=1")
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 and "config.train.step is not a setting" in done.stderr


def test_seeds_on_the_command_line_are_those_of_every_grid(tmp_path):
    file = tmp_path / "sweep.py"
    text = "from jaxdp.config import default_config\nfrom jaxdp.sweep.members import Grid, Sweep\n"
    grids = "[Grid('a', default_config()), Grid('b', default_config(), seeds=1)]"
    file.write_text(f"{text}def get_sweep():\n    return Sweep('s', {grids}, seeds=3)\n")
    for given, wanted in (([], [None, 1]), (["--seeds=2"], [None, None])):
        sweep_command.DEFINE.flags(["sweep", f"--config={file}", *given])
        assert [grid.seeds for grid in sweep_command.read_sweep().grids] == wanted
        assert sweep_command.read_sweep().seeds == (2 if given else 3)
    sweep_command.DEFINE.flags.unparse_flags()


@pytest.mark.slow
def test_killed_at_random_and_run_again_gives_the_same_table(workspace):
    wanted = undisturbed(tiny_sweep(workspace, name="undisturbed", seeds=1))
    file = write_sweep_file(workspace, seeds=1)
    rng = np.random.default_rng()

    def events() -> int:
        found = (workspace / "runs" / "sweep").glob("*/private/history.jsonl")
        return sum(len(path.read_bytes().splitlines()) for path in found)

    for _ in range(3):
        before, wait = events(), rng.integers(1, 6)
        process = start_script("sweep.py", f"--config={file}")
        while process.poll() is None and events() < before + wait:
            time.sleep(0.05)
        time.sleep(rng.random())
        process.kill()
        process.communicate()
    done = run_script("sweep.py", f"--config={file}")
    assert done.returncode == 0, done.stderr
    assert "best on validation" in done.stdout
    table = pyarrow.parquet.read_table(workspace / "runs" / "sweep" / "results.parquet")
    again = results_table(wanted.members)
    for column in table.column_names:
        if column != "run.dir":
            assert table[column].equals(again[column]), column


@pytest.mark.slow
def test_jobs_of_the_local_executor_train_the_groups_and_a_lost_one_is_run_again(workspace):
    file = write_sweep_file(workspace)
    arguments = (f"--config={file}", "--executor=local", "--set=run.checkpoint_every=1")
    process = start_script("sweep.py", *arguments, start_new_session="1")
    history = workspace / "runs" / "sweep" / "tiny_eps0.5_seed0" / "private" / "history.jsonl"
    while not (history.exists() and "evaluated" in history.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, stderr
    assert "the same command goes on" in stderr
    done = run_script("sweep.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "results of 4 members" in done.stdout
    assert os.listdir(workspace / "runs" / "sweep" / "private" / "jobs")
