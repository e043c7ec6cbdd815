# SPDX-License-Identifier: Apache-2.0
"""The public start: it learns, costs nothing, is said, and is the same again in a resumed run."""

import io
import json
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from helpers_training import LABELS, smoke_config
from rich.console import Console

from jaxdp.backbone import Backbone
from jaxdp.config import ConfigError
from jaxdp.models import lora
from jaxdp.training.interrupt import Interrupt
from jaxdp.training.loop import Interrupted, train
from jaxdp.training.monitor import Monitor
from jaxdp.training.randomness import RunSecret
from jaxdp.training.release_check import check_release
from jaxdp.training.setup import build_model, load_inputs
from jaxdp.training.setup import test_probabilities as probabilities_of_test_reports

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
def book(workspace):
    (workspace / "book.json").write_text(json.dumps(BOOK))
    return str(workspace / "book.json")


def settings(book, steps=0, **changes):
    return {
        "warm_start__phrasebook": book,
        "warm_start__reports": 200,
        "warm_start__head_learning_rate": 0.3,
        "warm_start__steps": steps,
        "warm_start__learning_rate": 3e-2,
        **changes,
    }


def built(workspace, config):
    backbone = Backbone("", workspace / "backbone", "cls")
    return build_model(config, backbone, LABELS, RunSecret.create(0))[0]


def parameters(model):
    return {".".join(map(str, p)): v[...] for p, v in nnx.to_flat_state(nnx.state(model))}


def run(config, resume=False, stop_at=None):
    interrupt = Interrupt()

    class Watch(Monitor):
        def stepped(self, done, *rest):
            super().stepped(done, *rest)
            if done == stop_at:
                interrupt.received = signal.SIGTERM

    monitor = Watch(Console(file=io.StringIO()))
    return train(config, resume=resume, interrupt=interrupt, monitor=monitor)


def test_the_head_learns_the_phrases_and_finds_them_in_reports(workspace, book):
    config = smoke_config(workspace, **settings(book))
    inputs = load_inputs(config)
    known = inputs.labels["test"] == 1

    def separation(**changes):
        model = built(workspace, smoke_config(workspace, **changes))
        (probabilities,) = probabilities_of_test_reports(config, [model], inputs)
        columns = zip(probabilities.T, known.T, strict=True)
        return np.mean([p[y].mean() - p[~y].mean() for p, y in columns])

    # Its first words are among those that decide the labels of the tiny collection.
    assert separation(**settings(book)) > 0.1 > abs(separation())


def test_it_moves_the_head_alone_or_the_adapters_too_and_nothing_else(workspace, book):
    plain, head, both = (
        parameters(built(workspace, smoke_config(workspace, **changes)))
        for changes in ({}, settings(book), settings(book, steps=5))
    )
    moved = [{n for n in plain if (plain[n] != other[n]).any()} for other in (head, both)]
    assert moved[0] == {"classifier.kernel", "classifier.bias"}
    factors = {name for name in plain if "lora" in name}
    assert factors and moved[1] == moved[0] | factors


def test_a_head_can_be_trained_on_adapters_that_have_learnt_in_public(workspace, book):
    changes = settings(book, steps=5, train__mode="head", head_stage__steps=0)
    config = smoke_config(workspace, **changes)
    result = run(config)
    assert [m["stage"] for m in result["privacy"]["mechanisms"]] == ["feature mean", "main stage"]
    file = workspace / "runs" / "smoke" / "release" / "adapter" / "adapter_model.safetensors"
    released = safetensors.numpy.load_file(file)
    start = parameters(built(workspace, config))
    b = [v for name, v in released.items() if "lora_B" in name]
    assert b and all(np.any(v) for v in b)
    adapters = [v for name, v in start.items() if name.endswith("lora_b")]
    # The secret differs, and with it A: as many tensors, of the same shapes.
    assert sorted(v.T.shape for v in adapters) == sorted(v.shape for v in b)


def test_it_costs_no_epsilon_and_the_statement_says_where_it_is_from(workspace, book):
    plain = run(smoke_config(workspace, run__name="plain"))["privacy"]
    warm = run(smoke_config(workspace, run__name="warm", **settings(book, steps=3)))["privacy"]
    assert plain["public_start"] is None
    differ = {field for field in plain if plain[field] != warm[field]}
    assert differ == {"public_start"}
    assert warm["public_start"].startswith("head and adapters learnt first from 200 made-up")
    assert warm["public_start"].endswith("their sentences: words of a test")
    release = workspace / "runs" / "warm" / "release"
    assert "Public start: head and adapters" in (release / "PRIVACY.md").read_text()
    assert all(finding.passed for finding in check_release(release, workspace / "backbone"))


def test_a_resumed_run_starts_from_the_same(workspace, book):
    changes = settings(book, steps=4, data__cache=str(workspace / "kept"))
    for name in ("whole", "stopped"):
        config = smoke_config(workspace, run__name=name, **changes)
        if name == "whole":
            run(config)
            continue
        with pytest.raises(Interrupted):
            run(config, stop_at=(0, 2))
        run(config, resume=True)
    whole, stopped = (
        safetensors.numpy.load_file(
            workspace / "runs" / name / "release" / "adapter" / "adapter_model.safetensors"
        )
        for name in ("whole", "stopped")
    )
    for name in whole:
        np.testing.assert_array_equal(whole[name], stopped[name], err_msg=name)


def test_adapters_need_a_mode_that_releases_them(workspace, book):
    with pytest.raises(ConfigError, match="train.mode must be lora, lora-ffa, head where warm"):
        smoke_config(workspace, **settings(book, steps=1, train__mode="bitfit"))
    model = built(workspace, smoke_config(workspace, **settings(book, train__mode="bitfit")))
    assert not jax.tree.leaves(nnx.state(model, nnx.LoRAParam))
    assert lora.split(model, "bitfit")
