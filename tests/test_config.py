# SPDX-License-Identifier: Apache-2.0
"""Settings: typed, validated, and errors that name the field."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from helpers_canaries import CONFIG, run_scripts
from helpers_training import REPOSITORY

from jaxdp.commands.define import Define
from jaxdp.config import Config, ConfigError, default_config, inherit
from jaxdp.settings import Check

PRIVATE = {"privacy": {"units": 1000}, "train": {"expected_batch_size": 10.0}}


def test_defaults_of_config_files_are_the_dataclasses():
    values = default_config().to_dict()
    values["privacy"] |= PRIVATE["privacy"]
    assert Config.from_dict(values) == Config.from_dict({"privacy": {"units": 1000}})


@pytest.mark.parametrize(
    "values, words",
    [
        ({"data": {"rot": "x"}}, r"config\.data\.rot is not a setting; did you mean root"),
        ({"dta": {}}, r"config\.dta is not a setting; did you mean data"),
        ({"data": 3}, r"config\.data must be a section"),
        ({"data": {"labeler": "gpt"}}, "data.labeler must be chexpert or negbio, not 'gpt'"),
        (
            {"data": {"uncertain": "half"}},
            "uncertain must be one of zeros, ones, ignore, not 'half'",
        ),
        ({"data": {"blank": "half"}}, "blank must be one of zeros, ones, ignore, not 'half'"),
        ({"data": {"evaluate_on": "nobody"}}, "data.evaluate_on must be all or physician"),
        (
            {"data": {"validation_fraction": 1}},
            r"config\.data\.validation_fraction must be in \(0, 1\), not 1",
        ),
        ({"teacher": {"mode": "merge"}}, "teacher.mode must be replace or fill, not 'merge'"),
        (
            {"privacy": {"epsilon": None, "ledger": "l", "total_budget": 3.0}},
            r"config\.privacy\.total_budget must be None without privacy\.ledger, or without",
        ),
        (
            {"privacy": {"max_reports_per_patient": 0}},
            r"config\.privacy\.max_reports_per_patient must be at least 1",
        ),
        ({"lora": {"rank": 0}}, r"config\.lora\.rank must be at least 1, not 0"),
        ({"lora": {"rank": 2.5}}, r"config\.lora\.rank must be of type int, not 2\.5"),
        ({"lora": {"rank": True}}, r"config\.lora\.rank must be of type int"),
        ({"lora": {"targets": "query"}}, r"config\.lora\.targets must be a list"),
        ({"lora": {"targets": ()}}, r"config\.lora\.targets must be non-empty"),
        ({"lora": {"layers": "last:0"}}, r"config\.lora\.layers must be all or last:k"),
        ({"privacy": {"epsilon": 0.0}}, r"config\.privacy\.epsilon must be positive"),
        ({"privacy": {"epsilon": -1.0}}, r"config\.privacy\.epsilon must be positive"),
        ({"privacy": {"epsilon": float("nan")}}, r"config\.privacy\.epsilon must be a number"),
        ({"privacy": {"delta": 1.0}}, r"config\.privacy\.delta must be in \(0, 1\)"),
        ({"privacy": {"unit": "scan"}}, r"config\.privacy\.unit must be report or patient"),
        ({"privacy": {"units": None}}, r"config\.privacy\.units must be set"),
        ({"privacy": {"l2_clip_norm": 0.0}}, r"config\.privacy\.l2_clip_norm must be positive"),
        ({"train": {"mode": "lorra"}}, r"config\.train\.mode must be one of lora"),
        ({"train": {"steps": 0}}, r"config\.train\.steps must be at least 1"),
        ({"train": {"optimizer": "adamw"}}, r"config\.train\.optimizer must be adam or sgd"),
        (
            {"train": {"expected_batch_size": 1001.0}},
            r"expected_batch_size must be at most privacy\.units = 1000.*sampling probability",
        ),
        ({"centering": {"l2_clip_norm": -1.0}}, r"config\.centering\.l2_clip_norm"),
        ({"head_stage": {"epsilon_share": 1.0}}, r"config\.head_stage\.epsilon_share"),
        (
            {"model": {"dtype": "float16"}},
            r"config\.model\.dtype must be one of float32, tensorfloat32, bfloat16 or",
        ),
        ({"run": {"name": "a/b"}}, r"config\.run\.name must be a folder name"),
    ],
)
def test_errors_name_the_field(values, words):
    merged = {k: PRIVATE.get(k, {}) | v if isinstance(v, dict) else v for k, v in values.items()}
    with pytest.raises(ConfigError, match=words):
        Config.from_dict(PRIVATE | merged)


def test_every_check_beside_a_field_is_made():
    # a __post_init__ of a section that forgets its base's would make none of them
    wrong = {tuple: (), str: "?/", int: -1, float: -1.0}
    checked = 0
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.type):
            marks = getattr(field.type, "__metadata__", ())
            if not any(isinstance(mark, Check) for mark in marks):
                continue
            checked += 1
            kind = next(k for k in wrong if k.__name__ in str(field.type.__origin__))
            values = {**PRIVATE, section.name: {field.name: wrong[kind]}}
            words = rf"config\.{section.name}\.{field.name} must be (?!of type|a list)"
            with pytest.raises(ConfigError, match=words):
                Config.from_dict(values)
    assert checked > 40


@pytest.mark.parametrize("epsilon", [None, float("inf")])
def test_no_epsilon_means_no_privacy_and_no_units(epsilon):
    config = Config.from_dict({"privacy": {"epsilon": epsilon}})
    assert not config.privacy.private
    assert json.loads(json.dumps(config.to_dict(), allow_nan=False))["privacy"]["epsilon"] is None


def test_whole_numbers_are_accepted_for_floats():
    assert Config.from_dict(PRIVATE | {"lora": {"alpha": 8}}).lora.alpha == 8.0


def test_layers_count_from_the_head():
    config = Config.from_dict(PRIVATE | {"lora": {"layers": "last:2"}})
    assert config.lora.first_layer(6) == 4
    with pytest.raises(ConfigError, match="at most last:1"):
        config.lora.first_layer(1)


CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*.py")
    if not path.stem.startswith(("audit", "sweep"))
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_are_valid_and_state_their_command(path: Path):
    settings = inherit(str(path), path.stem)
    if path.stem == "table":  # whose owner alone can say how many
        settings.privacy.units = 1200
    config = Config.from_dict(settings.to_dict())
    assert config.run.name == path.stem
    # a larger delta could be met by publishing a random unit
    assert not config.privacy.private or config.privacy.delta * config.privacy.units < 1
    # A report that is too long is to lose findings, not its impression.
    assert config.data.source != "ctrate" or config.data.text == "impression+findings"
    assert f"--config configs/{path.name}" in re.sub(r"\s+", " ", path.read_text())


def test_command_line_errors_are_one_line(tmp_path):
    runs = tmp_path / "file" / "runs"  # where its run directory is to be
    wrong = {
        "rank": ("--config.lora.rank=0", "config.lora.rank must be at least 1, not 0"),
        "epsilon": ("--config.privacy.epsilon=-2", "config.privacy.epsilon must be positive"),
        "root": ("--config.data.root=/nowhere.tgz", "/nowhere.tgz does not exist"),
        "file": ("--config.run.name=x", f"config.run.dir: {runs}/x"),
        "misspelt": ("--config.lora.rnk=3", "a flag names no setting: 'rnk'"),
        "none": ("--config.lora.rnk=None", "a flag names no setting: 'rnk'"),
        "number": ("--config.lora.rank=None", "config.lora.rank must be of type int, not None"),
    }
    for name in wrong:
        (tmp_path / name).mkdir()
    runs.touch()
    cases = {name: ["train.py", CONFIG, flag] for name, (flag, _) in wrong.items()}
    outcomes = run_scripts(tmp_path, cases)
    for name, outcome in outcomes.items():
        assert outcome.status == 1 and outcome.stderr.count("\n") == 1
        assert outcome.stderr.startswith(f"error: {wrong[name][1]}")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how a file is run
def test_a_flag_can_say_none_whatever_the_file_says(tmp_path, monkeypatch):
    (tmp_path / "base.py").write_text(
        "from jaxdp.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.data.labels, config.model.revision, config.train.steps = ('a',), 'main', 7\n"
        "    config.centering.l2_clip_norm, config.privacy.epsilon = 4.0, 8.0\n"
        "    return config\n"
    )
    settings = "data.labels", "model.revision", "centering.l2_clip_norm", "privacy.epsilon"
    arguments = [f"--config={tmp_path / 'base.py'}", *(f"--config.{s}=None" for s in settings)]
    arguments = ["jaxdp train", *arguments, "--config.train.steps=9", "more"]
    monkeypatch.setattr(sys, "argv", arguments)  # where overrides are looked for
    define = Define()
    holder = define.config()
    assert define.parse(arguments) == ["jaxdp train", "more"]
    config = holder.value
    assert [config[s.partition(".")[0]][s.partition(".")[2]] for s in settings] == [None] * 4
    assert config.train.steps == 9
