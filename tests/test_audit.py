# SPDX-License-Identifier: Apache-2.0
"""The audit: its canaries, its attack on the real training step, and its statistics."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import scipy.stats
from dp_accounting import get_sigma_gaussian
from helpers_training import (
    LABELS,
    REPOSITORY,
    run_script,
    smoke_settings,
    write_backbone,
    write_collection,
)

from jaxdp import dp
from jaxdp.audit.attack import gradient_scores, input_scores
from jaxdp.audit.bound import Bounds, lower_bounds
from jaxdp.audit.canaries import CanaryCollection, GradientCanaries
from jaxdp.audit.config import AuditConfig, with_audit
from jaxdp.audit.run import Audit, Finding, showings, summary
from jaxdp.audit.variants import Variant, all_variants
from jaxdp.config import Config, ConfigError, inherit
from jaxdp.models.tasks import multilabel_loss
from jaxdp.report.audit import epsilon_plot, write_report

DELTA = 1e-5
HIDDEN, CANARIES, RUNS, STEPS = 1024, 3000, 2, 4
HALF = np.arange(CANARIES) % 2 == 0


def audit_settings(workspace, **changes):
    """A head on a tiny random backbone and 96 synthetic reports, with 3 labels."""
    fixed = dict(
        centering__l2_clip_norm=None,
        head_stage__steps=0,
        train__mode="head",
        train__steps=STEPS,
        train__learning_rate=0.1,
        train__expected_batch_size=96.0,
        train__microbatch_tokens=512,
        privacy__epsilon=4.0,
        privacy__delta=DELTA,
        audit__gradient_canaries=CANARIES,
        audit__gradient_runs=RUNS,
        audit__input_canaries=100,
    )
    training, audit = {}, {}
    for name, value in (fixed | changes).items():
        section, field = name.split("__")
        (audit if section == "audit" else training)[name if section != "audit" else field] = value
    settings = with_audit(smoke_settings(workspace, **training))
    settings.audit.update(audit)
    return settings


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    write_collection(folder / "NLMCXR_reports.tgz")
    write_backbone(folder / "backbone", hidden=HIDDEN, layers=1)
    return folder


@pytest.fixture(scope="module")
def audit(workspace):
    return Audit.prepare(AuditConfig.from_dict(audit_settings(workspace).to_dict()))


def silent(audit):
    """The attacked mechanism, without its noise."""
    return audit.stage.mechanism.replace(noise_multiplier=0.0)


def kernel_and_bias(tree):
    return np.concatenate([np.ravel(leaf[...]) for leaf in jax.tree.leaves(tree["classifier"])])


# canaries


def test_each_gradient_canary_adds_exactly_the_clip_norm_in_its_direction(audit):
    canaries, features = audit.collection.gradient, audit.collection.features["train"]
    mechanism = silent(audit)
    first = len(features) - CANARIES
    units = audit.collection.units("gradient", HALF)
    trainer = audit.trainer("alone", mechanism, audit.secret, units)
    capacity = len(trainer.plan(0).rows)
    state = trainer.initial_state
    before = 0.0
    for step, number in enumerate([0, 7, CANARIES - 1]):
        row = np.array([first + number])
        plan = trainer.buckets.plan(row, features.lengths, capacity)
        state, diagnostics = trainer.step(state, step, plan)
        assert diagnostics.norm[0] > 1000 * mechanism.l2_clip_norm
        mu = optax.tree_utils.tree_get(state.optimizer, "mu")
        after = kernel_and_bias(mu).astype(np.float64)
        added = (after - 0.9 * before) / 0.1 * mechanism.expected_batch_size
        before = after
        np.testing.assert_allclose(np.linalg.norm(added), mechanism.l2_clip_norm, rtol=1e-5)
        # Its feature in one column, and a hundredth of that in the bias.
        direction = np.zeros((HIDDEN, 3))
        direction[:, canaries.columns[number]] = -canaries.features[number]
        bias = -1.0 * (np.arange(3) == canaries.columns[number])
        expected = np.concatenate([bias, direction.ravel()])
        expected *= mechanism.l2_clip_norm / np.linalg.norm(expected)
        np.testing.assert_allclose(added, expected, atol=1e-5 * mechanism.l2_clip_norm)


def test_alignment_is_the_inner_product_with_each_direction():
    rng = np.random.default_rng(0)
    canaries = GradientCanaries.draw(rng, 30, hidden=8, num_labels=5)
    kernel = rng.normal(size=(8, 5))
    slow, directions = [], []
    for feature, labels in zip(canaries.features, canaries.labels, strict=True):
        assert sorted(labels) == [-1, -1, -1, -1, 127]
        gradient = -np.outer(feature, labels == 127)
        directions.append(gradient.ravel() / np.linalg.norm(gradient))
        slow.append(directions[-1] @ kernel.ravel())
    np.testing.assert_allclose(canaries.alignment(kernel), slow, rtol=1e-6)
    np.testing.assert_allclose(
        np.array(directions) @ np.transpose(directions), np.eye(30), atol=1e-6
    )


def test_canaries_that_are_left_out_change_nothing(audit):
    """Not even if their features are not numbers."""
    for kind, included in (("gradient", HALF), ("input", HALF[:100])):
        units = audit.collection.units(kind, included)
        assert units.num_units == audit.collection.honest.num_units + included.sum()
        values = audit.collection.features["train"].values.copy()
        out = np.ones(len(values), bool)
        out[units.members] = False
        assert out.sum() == CANARIES + 100 - included.sum()
        values[out] = np.nan
        features = dataclasses.replace(audit.collection.features["train"], values=values)
        other = dataclasses.replace(
            audit.collection, features=audit.collection.features | {"train": features}
        )
        results = []
        for attacker in (audit, dataclasses.replace(audit, collection=other)):
            trainer = attacker.trainer("left out", silent(audit), audit.secret, units)
            results.append(kernel_and_bias(trainer.after(2).adapters))
        np.testing.assert_array_equal(*results)
        assert np.isfinite(results[0]).all()


def test_rare_reports_have_rare_words_and_an_honest_frame(audit):
    collection = audit.collection
    assert len(collection.features["validation"]) == 100
    start = len(collection.features["train"]) - CANARIES - 100
    # The same reports, up to the rounding of microbatches of other widths; others differ by 1.
    np.testing.assert_allclose(
        collection.features["train"].values[start : start + 100],
        collection.features["validation"].values,
        rtol=0,
        atol=1e-4,
    )
    labels = collection.labels["validation"]
    np.testing.assert_array_equal(collection.labels["train"][start : start + 100], labels)
    assert set(np.unique(labels)) == {0, 1} and abs(labels.mean() - 0.5) < 0.1


# attacks


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
def test_without_noise_the_gradient_attack_reads_off_who_is_in(audit, optimizer):
    """In aligns by C / batch, out by nothing: honest reports, momentum and all else are undone."""
    settings = dataclasses.replace(audit.stage.settings, optimizer=optimizer)
    audit = dataclasses.replace(audit, stage=dataclasses.replace(audit.stage, settings=settings))
    mechanism = silent(audit)
    units = audit.collection.units("gradient", HALF)
    trainer = audit.trainer("attacked", mechanism, audit.secret, units)
    honest = audit.trainer("honest", mechanism, audit.secret, audit.collection.honest)
    scores = gradient_scores(trainer, honest, audit.collection.gradient)
    unit = mechanism.l2_clip_norm / mechanism.expected_batch_size
    np.testing.assert_allclose(scores / unit, HALF, atol=2e-3)


def test_the_input_attack_scores_by_the_final_loss():
    rng = np.random.default_rng(0)
    logits, labels = np.float32(rng.normal(size=(6, 3))), rng.integers(0, 2, (6, 3))
    trainer = SimpleNamespace(
        after=lambda steps: None,
        stage=SimpleNamespace(steps=0),
        validation_probabilities=lambda state: 1 / (1 + np.exp(-logits)),
    )
    slow = [-float(multilabel_loss(z, y)) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(input_scores(trainer, labels), slow, rtol=1e-5)


def by_name(audit, name):
    variants = all_variants(audit.stage.mechanism, 0.1, DELTA)
    return next(v for v in variants if v.name == name)


def test_correct_training_keeps_its_claim_and_the_attack_is_as_sharp_as_theory(audit):
    """T steps of noise_multiplier s shift the scores of those who are in by sqrt(T) / s standard
    deviations, 0.92 here. With 6,000 canaries that is measured to 2 / sqrt(6000) = 0.026, and noise
    that is 15 % off would be seen at five of these."""
    finding = audit.attack(by_name(audit, "as trained"), "gradient")
    inside, outside = finding.scores[finding.included], finding.scores[~finding.included]
    shift = (inside.mean() - outside.mean()) / math.sqrt((inside.var() + outside.var()) / 2)
    expected = math.sqrt(STEPS) / audit.stage.mechanism.noise_multiplier
    assert abs(shift - expected) < 5 * 2 / math.sqrt(len(finding.scores))
    assert 3.9 < finding.claim <= 4
    # The bound is 2.2 in the mean, and would reach the claim only with 9 standard errors.
    assert 1.5 < finding.bounds.epsilon < finding.claim
    assert finding.bounds.epsilon_any < finding.bounds.epsilon


@pytest.mark.slow
def test_research_seed_repeats_an_attack(audit):
    variant = by_name(audit, "as trained")
    one, two = (audit.attack(variant, "input") for _ in range(2))
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_array_equal(one.included, two.included)


@pytest.mark.parametrize(
    "name",
    [
        "noise halved",
        pytest.param("noise every other step", marks=pytest.mark.slow),
        pytest.param("no clipping", marks=pytest.mark.slow),
    ],
)
def test_broken_training_is_caught(audit, name):
    """Halved noise gives a bound of about 5 with 6,000 canaries, above the claim of 4 by three
    standard errors; the others let every guess be right."""
    variant = by_name(audit, name)
    finding = audit.attack(variant, "gradient")
    assert variant.broken and finding.violated
    if name != "noise halved":
        assert finding.bounds.auroc > 0.999


# statistics


def gaussian_scores(rng, count, shift):
    """One run of a mechanism that is a Gaussian that shifts every canary by `shift` deviations."""
    included = rng.random(count) < 0.5
    return shift * included + rng.standard_normal(count), included


JUDGE = dict(delta=DELTA, guesses=0.05, confidence=0.95)


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_bound_of_a_gaussian_mechanism_is_below_its_epsilon_but_not_far(epsilon):
    rng = np.random.default_rng(0)
    shift = 1 / get_sigma_gaussian(epsilon, DELTA)
    for _ in range(2):
        bounds = lower_bounds(*gaussian_scores(rng, 20_000, shift), **JUDGE)
        assert 0.4 * epsilon < bounds.epsilon < epsilon
        assert 0.3 * epsilon < bounds.epsilon_any < bounds.epsilon
        doubled = lower_bounds(*gaussian_scores(rng, 20_000, 2 * shift), **JUDGE)
        assert doubled.epsilon > epsilon


def test_confidence_is_what_it_says_and_not_much_more():
    """Scores that tell nothing prove more than 0 in at most 5 % of all runs; in 3.2 % here, where
    32 of 50 guesses must be right: 6.5 of 200 runs. The best of all thresholds would be wrong more
    often."""
    rng = np.random.default_rng(0)
    proven = sum(
        lower_bounds(*gaussian_scores(rng, 1000, 0.0), **JUDGE).epsilon > 0 for _ in range(200)
    )
    wrong = scipy.stats.binom.sf(31, 50, 0.5)
    assert 0.03 < wrong < 0.05
    assert 0 < proven <= scipy.stats.binom.isf(1e-4, 200, wrong)


def test_auroc_counts_pairs():
    scores, included = gaussian_scores(np.random.default_rng(0), 300, 1.0)
    pairs = scores[included][:, None] - scores[~included]
    assert lower_bounds(scores, included, **JUDGE).auroc == pytest.approx(np.mean(pairs > 0))


# variants, verdicts, report


def test_only_the_three_broken_variants_differ_from_their_claim():
    mechanism = dp.SubsampledGaussian(100, 100, 10, 0.5, 3.0)
    variants = {v.name: v for v in all_variants(mechanism, 0.1, DELTA)}
    broken = [name for name, variant in variants.items() if variant.broken]
    assert broken == ["noise halved", "noise every other step", "no clipping"]
    assert variants["noise halved"].trained.stddev == mechanism.stddev / 2
    assert variants["no clipping"].trained.stddev == pytest.approx(mechanism.stddev)
    assert dp.epsilon_pld([variants["small epsilon"].claimed], DELTA) <= 0.1


def finding(kind, variant, claim, epsilon, auroc):
    scores, included = gaussian_scores(np.random.default_rng(0), 200, 1.0)
    return Finding(kind, variant, claim, scores, included, Bounds(auroc, epsilon, epsilon / 2))


def made_up_findings():
    mechanism = dp.SubsampledGaussian(100, 100, 10, 0.5, 3.0)
    small = mechanism.replace(noise_multiplier=90.0)
    return [
        finding("gradient", Variant("as trained", mechanism, mechanism), 4.0, 2.0, 0.7),
        finding("gradient", Variant("noise halved", mechanism, small), 4.0, 5.0, 0.9),
        finding("gradient", Variant("small epsilon", small, small), 0.1, 0.0, 0.52),
        finding("input", Variant("no privacy", None, None), math.inf, 8.0, 0.95),
    ]


@pytest.mark.parametrize(
    "place, epsilon, auroc, lost",
    [(0, 4.1, 0.7, 0), (1, 3.9, 0.9, 1), (2, 0.0, 0.65, 2), (3, 8.0, 0.8, 3)],
)
def test_every_showing_can_fail(place, epsilon, auroc, lost):
    findings = made_up_findings()
    assert list(showings(findings).values()) == [True] * 4
    bounds = Bounds(auroc, epsilon, 0.0)
    findings[place] = dataclasses.replace(findings[place], bounds=bounds)
    assert [not shown for shown in showings(findings).values()].index(True) == lost


def test_report_is_written_whole(tmp_path, workspace):
    config = AuditConfig.from_dict(audit_settings(workspace).to_dict())
    findings = made_up_findings()
    write_report(tmp_path, summary(config, findings), findings)
    text = (tmp_path / "report.md").read_text()
    assert "| gradient | noise halved | 4 | 5.00 | 2.50 | 0.900 | VIOLATED |" in text
    for name in ("roc.png", "epsilon.png"):
        assert name in text and (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "audit.json").read_text())["findings"]
    assert [row["claimed_epsilon"] for row in rows] == [4.0, 4.0, 0.1, "infinite"]


def test_the_plot_shows_a_claim_beyond_what_is_proven():
    findings = made_up_findings()[:1]
    for bound, claim, least in ((0.0, 4.0, 4.0), (2.0, math.inf, 2.0), (0.0, math.inf, 0.0)):
        bounds = findings[0].bounds._replace(epsilon=bound)
        shown = dataclasses.replace(findings[0], claim=claim, bounds=bounds)
        (axes,) = epsilon_plot([shown], 1e-5, 0.95).axes
        assert axes.get_xlim()[1] > least


# settings


def test_shipped_configs_are_valid_and_no_training():
    paths = sorted((REPOSITORY / "configs").glob("audit*.py"))
    assert paths
    for path in paths:
        settings = inherit(str(path), path.stem)
        config = AuditConfig.from_dict(settings.to_dict())
        assert config.run.name == path.stem and config.run.research_seed is not None
        assert f"--config configs/{path.name}" in path.read_text()
        with pytest.raises(ConfigError, match="config.audit is not a setting"):
            Config.from_dict(settings.to_dict())


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(train__mode="lora"), 'config.train.mode must be "head"'),
        (
            dict(train__queries=True, model__pooling="label-attention"),
            "config.train.queries must be False",
        ),
        (dict(train__expected_batch_size=48.0), "config.train.expected_batch_size must be"),
        (dict(centering__l2_clip_norm=4.0), "config.centering.l2_clip_norm must be None"),
        (dict(head_stage__steps=3), "config.head_stage.steps must be 0"),
        (dict(privacy__unit="patient"), 'config.privacy.unit must be "report"'),
        (dict(privacy__epsilon=None), "config.privacy.epsilon must be finite"),
        (dict(privacy__ledger="ledger.jsonl"), "config.privacy.ledger must be None"),
        (dict(audit__small_epsilon=4.0), r"config.audit.small_epsilon must be in \(0, privacy"),
        (dict(audit__guesses=0.9), "config.audit.guesses must be in"),
        (dict(audit__confidence=1.0), "config.audit.confidence must be in"),
        (
            dict(
                train__query_share=0.3,
                model__pooling="label-attention",
                warm_start__phrasebook="chest_en",
            ),
            "config.train.query_share must be 0",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused(workspace, change, message):
    with pytest.raises(ConfigError, match=message):
        AuditConfig.from_dict(audit_settings(workspace, **change).to_dict())


def test_a_typo_in_the_audit_section_is_named(workspace):
    values = audit_settings(workspace).to_dict()
    values["audit"]["gradient_canary"] = 3
    with pytest.raises(ConfigError, match="did you mean gradient_canaries"):
        AuditConfig.from_dict(values)


def test_more_directions_than_the_head_has_are_refused(audit):
    counts = {"gradient_canaries": HIDDEN * 3 + 1, "input_canaries": 100}
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=f"at most {HIDDEN * 3}, the entries of this head"):
        CanaryCollection.build(None, audit.model, rng, **counts, buckets=None, folder=None)


FLAGS = [f"--config={REPOSITORY / 'configs' / 'audit_openi.py'}"]


@pytest.mark.slow
def test_one_command_shows_it_all(workspace, tmp_path):
    flags = {
        "data.root": workspace / "NLMCXR_reports.tgz",
        "data.text": "impression",
        "data.labels": LABELS,
        "data.max_length": 16,
        "model.backbone": workspace / "backbone",
        "privacy.units": 96,
        "train.expected_batch_size": 96.0,
        "audit.gradient_canaries": CANARIES,
        "audit.gradient_runs": 2,
        "audit.input_canaries": 100,
        "run.dir": tmp_path,
    }
    flags = [f"--config.{name}={value}" for name, value in flags.items()]
    result = tmp_path / "result.json"
    done = run_script("audit.py", *FLAGS, *flags, f"--json={result}", JAXDP_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "VIOLATED" in done.stdout
    written = json.loads(result.read_text())
    assert written["showings"] and all(written["showings"].values())
    assert len(written["findings"]) == 12
    assert sorted(p.name for p in (tmp_path / "audit_openi").iterdir()) == [
        "audit.json", "epsilon.png", "report.md", "roc.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_command_line_errors_are_one_line(tmp_path):
    done = run_script(
        "audit.py", *FLAGS, "--config.train.mode=lora", f"--config.run.dir={tmp_path}"
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith('error: config.train.mode must be "head"')
    assert not list(tmp_path.iterdir())
