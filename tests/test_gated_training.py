# SPDX-License-Identifier: Apache-2.0
"""The study's configs as they are shipped, run by scripts/train.py on SYNTHETIC copies of the gated
collections' files. Only what the size of copies and of a tiny model demands is overridden."""

import json

import pytest
from helpers_canaries import run_scripts
from helpers_data import CTRATE_LABELS, MIMIC_LABELS, write_ctrate, write_mimic
from helpers_training import REPOSITORY

pytestmark = pytest.mark.slow


def command(config, root, units):
    return [
        "train.py",
        f"--config={REPOSITORY}/configs/{config}.py",
        f"--config.data.root={root}",
        "--config.data.max_length=32",
        "--config.warm_start.reports=60",
        "--config.warm_start.steps=2",
        f"--config.privacy.units={units}",
        "--config.train.steps=3",
        f"--config.train.expected_batch_size={units / 2}",
    ]


def volumes():
    """Patients with two scans of two reconstructions each, and quirks."""
    reports = {
        f"train_{p}_{s}_{r}": ("Nodule, 3 mm.", "x")
        for p in range(120)
        for s in "ab"
        for r in (1, 2)
    }
    reports |= {"train_999_a_1": ("Not given.", "Not given."), "train_998_a_1": ("", "Unchanged.")}
    reports |= {f"valid_{p}_a_{r}": ("Emphysema.", "Not given.") for p in range(5) for r in (1, 2)}
    return reports


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    root = tmp_path_factory.mktemp("gated")
    for case in ("", "_plain", "_lost"):
        for source in ("mimic", "ctrate"):
            (root / (source + case)).mkdir()
    write_mimic(root / "mimic" / "data")
    reports = volumes()
    positive = {v: ("Lung nodule",) if v.startswith("train") else ("Emphysema",) for v in reports}
    write_ctrate(root / "ctrate" / "data", reports, positive)
    cases = {
        "mimic": command("mimic_eps1", root / "mimic" / "data", 3),
        "ctrate": command("ctrate_eps1", root / "ctrate" / "data", 200),
        "mimic_plain": command("mimic_plain_eps1", root / "mimic" / "data", 3),
        "ctrate_plain": command("ctrate_plain_eps1", root / "ctrate" / "data", 200),
        # the other's folder: as good as any wrong one, with something in it
        "mimic_lost": command("mimic_eps1", root / "ctrate" / "data", 3),
        "ctrate_lost": command("ctrate_eps1", root / "mimic" / "data", 60),
    }
    return run_scripts(root, cases)


@pytest.mark.parametrize(
    ("source", "labels", "sizes"),
    [
        ("mimic", MIMIC_LABELS, "MIMIC-CXR: 3 train, 2 validation, 1 test reports, 14 labels"),
        ("ctrate", CTRATE_LABELS, "5 test reports, 18 labels"),
    ],
)
@pytest.mark.parametrize("recipe", ["", "_plain"], ids=["ours", "plain"])
def test_trains_and_releases(outcomes, source, labels, sizes, recipe):
    name = source + recipe
    outcome = outcomes[name]
    assert outcome.status == 0, outcome.stderr
    printed = " ".join(outcome.stdout.split())
    assert sizes in printed and "dropped: 1" in printed
    run = outcome.folder / "runs" / f"{name}_eps1"
    statement = json.loads((run / "release" / "privacy.json").read_text())
    assert 0.9 < statement["epsilon"] <= 1 and statement["privacy_unit"] == "report"
    # After a public start the centre is public, so the mean feature is no mechanism.
    assert [m["stage"] for m in statement["mechanisms"]] == ["main stage"]
    assert (statement["public_start"] is None) == (recipe == "_plain")
    description = json.loads((run / "release" / "adapter" / "jaxdp.json").read_text())
    assert description["label_names"] == labels
    # patients with several reports, hence what those cost together, where it must not leave
    patients = json.loads((run / "private" / "patients.json").read_text())
    assert patients["largest"]["reports"] == 2 and patients["largest"]["epsilon"] > 1


@pytest.mark.parametrize(
    ("name", "expected", "found", "source"),
    [
        (
            "mimic_lost",
            "mimic-cxr-2.*-chexpert.csv(.gz) (MISSING); mimic-cxr-2.*-split.csv(.gz) (MISSING)",
            "At its top: dataset.",
            "https://physionet.org/content/mimic-cxr",
        ),
        (
            "ctrate_lost",
            "validation_reports.csv (MISSING); valid_predicted_labels.csv (MISSING)",
            "At its top: mimic-cxr, mimic-cxr-jpg.",
            "ibrahimhamamci/CT-RATE",
        ),
    ],
)
def test_wrong_root_says_what_is_expected_what_was_found_and_where_to_get_it(
    outcomes, name, expected, found, source
):
    outcome = outcomes[name]
    assert outcome.status == 1 and outcome.stderr.startswith("error: data.root = ")
    assert outcome.stderr.count("\n") == 1
    assert all(words in outcome.stderr for words in (expected, found, source))
