# SPDX-License-Identifier: Apache-2.0
"""The recipe: fills what is open from public numbers, keeps what is set, and is the same again."""

import pytest

from jaxdp import recipe
from jaxdp.config import Config, ConfigError, WarmStartConfig
from jaxdp.data.phrasebook import SHIPPED

PLAIN = {
    "train": {
        "mode": "lora",
        "queries": False,
        "query_share": 0.0,
        "steps": 100,
        "expected_batch_size": 512.0,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "temperature": 1.0,
    },
    "warm_start": {
        "normal": 0.35,
        "findings": 1.5,
        "denied": 0.65,
        "repeated": 0.6,
        "other": 0.35,
        "noise": 0.0,
        "readers": 1,
    },
}
"""What settings are that are None, and that no recipe has chosen."""


def config(**sections) -> Config:
    values = {"privacy": {"units": 3100, "epsilon": 1.0}, "train": {"recipe": "auto"}}
    for name, fields in sections.items():
        values[name] = values.get(name, {}) | fields
    return Config.from_dict(values)


def test_it_fills_what_is_open():
    found = config()
    assert found.model.pooling == "label-attention" and found.warm_start.phrasebook == "chest_en"
    train = found.train
    assert (train.mode, train.expected_batch_size, train.learning_rate) == ("head", 3100.0, 0.05)
    assert found.privacy.l2_clip_norm == 0.03 and train.temperature == recipe.TEMPERATURE
    assert config(privacy={"epsilon": None}).train.temperature == 1.0
    chosen = recipe.choices(found.to_dict())
    assert all(getattr(getattr(found, c.section), c.field) == c.value for c in chosen)
    assert all(c.reason for c in chosen)


def test_what_is_set_is_kept_whatever_it_is():
    found = config(
        train=PLAIN["train"], privacy={"l2_clip_norm": 1.0}, warm_start={"phrasebook": "mimic_en"}
    )
    assert {field: getattr(found.train, field) for field in PLAIN["train"]} == PLAIN["train"]
    assert found.privacy.l2_clip_norm == 1.0 and found.warm_start.phrasebook == "mimic_en"
    start = PLAIN["warm_start"] | {"phrasebook": "labels"}
    found = config(data={"source": "padchest"}, warm_start=start).warm_start
    assert {field: getattr(found, field) for field in start} == start


def test_a_finished_configuration_is_read_as_it_is():
    for found in (config(), config(data={"source": "padchest"}), config(privacy={"epsilon": None})):
        assert Config.from_dict(found.to_dict()) == found


def test_without_a_recipe_nothing_is_chosen():
    found = config(train={"recipe": None})
    assert {field: getattr(found.train, field) for field in PLAIN["train"]} == PLAIN["train"]
    assert found.model.pooling is None and found.warm_start == WarmStartConfig()
    start = PLAIN["warm_start"]
    assert {field: getattr(found.warm_start, field) for field in start} == start
    assert found.privacy.l2_clip_norm == 0.1


@pytest.mark.parametrize(
    ("units", "epsilon", "rate"),
    [
        (3100, 0.01, 0.003),
        (3100, 0.1, 0.03),
        (3100, 1.0, 0.05),
        (3100, 8.0, 0.1),
        (53000, 0.1, 0.1),
        (53000, 8.0, 0.1),
    ],
)
def test_rates_are_those_that_were_measured(units, epsilon, rate):
    assert recipe.learning_rate(units, epsilon) == rate
    assert config(privacy={"units": units, "epsilon": epsilon}).train.learning_rate == rate


def test_every_source_has_a_book_and_a_table_that_of_its_labels():
    assert set(recipe.PHRASEBOOKS.values()) <= set(SHIPPED)
    assert config(data={"source": "table"}).warm_start.phrasebook == "labels"
    for source, shape in recipe.SHAPES.items():
        found = config(data={"source": source}).warm_start
        assert shape == {field: getattr(found, field) for field in shape}


def test_directions_are_fewer_the_less_can_be_told_and_all_for_labels_names():
    for units, epsilon, wanted in ((3100, 8.0, 128), (53_000, 1.0, 256), (53_000, 8.0, 512)):
        assert config(privacy={"units": units, "epsilon": epsilon}).model.label_dimensions == wanted
    for changes in ({"warm_start": {"phrasebook": "labels"}}, {"data": {"source": "table"}}):
        found = config(**changes)
        assert found.warm_start.phrasebook == "labels" and found.model.label_dimensions is None


def test_two_readers_where_adapters_learn_in_public():
    assert config().warm_start.readers == 2
    assert config(warm_start={"adapters": False}).warm_start.readers == 1
    names = {"warm_start": {"phrasebook": "labels"}, "privacy": {"epsilon": 0.1}}
    assert config(**names).warm_start.readers == 2
    assert config(**names, model={"pooling": "mean"}).warm_start.readers == 1
    assert config(train={"recipe": None}).warm_start.readers == 1
    numbers = {"source": "table", "task": "multi-class", "labels": ("0", "1")}
    assert config(data=numbers).warm_start.readers == 1  # no phrasebook, so no public start


def test_names_alone_get_a_query_stage_instead_where_reports_can_tell():
    names = {
        "warm_start": {"phrasebook": "labels", "lexicon": False},
        "privacy": {"epsilon": 8.0},
    }
    found = config(**names)
    assert (found.train.query_share, found.train.learning_rate) == (recipe.QUERY_SHARE, 0.2)
    assert found.warm_start.readers == 1
    assert Config.from_dict(found.to_dict()) == found
    assert config(**names, train={"query_share": 0.1}).train.learning_rate == 0.2
    share_of_none = [
        {"privacy": {"epsilon": 8.0}},  # a phrasebook
        names | {"warm_start": {"phrasebook": "labels"}},  # the lexicon
        names | {"privacy": {"epsilon": 1.6}},
        names | {"privacy": {"epsilon": 8.0, "noise_multiplier": 30.0}},
        names | {"head_stage": {"steps": 10, "expected_batch_size": 3100.0}},
        names | {"data": {"source": "table", "task": "multi-class", "labels": ("up", "down")}},
        names | {"privacy": {"epsilon": None}},
        names | {"train": {"query_share": 0.0}},
    ]
    for changes in share_of_none:
        assert config(**changes).train.query_share == 0
    none = config(**names, train={"query_share": 0.0})
    assert (none.train.learning_rate, none.warm_start.readers) == (0.1, 2)
    for changes in (
        {"train": {"mode": "lora"}},
        {"train": {"queries": True}},
        {"centering": {"l2_clip_norm": 1.0}},
        {"model": {"pooling": "mean"}},
    ):
        assert config(**names, **changes).train.query_share == 0
    old = found.to_dict()
    del old["train"]["query_share"]
    assert Config.of_run(old).train.query_share == 0


def test_without_privacy_adapters_and_queries_learn():
    found = config(privacy={"epsilon": None})
    assert found.train.trained == "lora+queries" and found.warm_start.phrasebook == "chest_en"
    assert found.model.label_dimensions is None and found.warm_start.readers == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"recipe": "best"}}, "train.recipe must be auto or None"),
        ({"privacy": {"units": None}}, "privacy.units must be set"),
        ({"privacy": {"units": "many"}}, "privacy.units must be of type int"),
        ({"privacy": {"epsilon": "1"}}, "privacy.epsilon must be of type float"),
        ({"train": {"stps": 3}}, "train.stps is not a setting"),
        ({"tran": {}}, "tran is not a setting"),
        (
            {"data": {"source": "table", "task": "multi-class", "labels": (0, 1)}},
            "data.labels must be a list of names",
        ),
    ],
)
def test_mistakes_are_named_with_a_recipe_too(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)
