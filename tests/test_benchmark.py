# SPDX-License-Identifier: Apache-2.0
"""The benchmark: what it counts and divides, its flags, and gross regressions of speed ratios."""

import dataclasses
import json
import math
import time

import jax
import jax.extend
import numpy as np
import pytest
from flax import nnx
from helpers_models import IGNORE_PEFT, SIZES
from helpers_training import smoke_config, start_script, write_workspace

from jaxdp.backbone import Backbone
from jaxdp.evaluation.inference import packed_logits
from jaxdp.models import lora
from jaxdp.models.pretrained import load_classifier
from jaxdp.models.tasks import multilabel_loss
from jaxdp.peers.benchmark import Rounds, draw
from jaxdp.peers.contenders import CONTENDERS, TORCH, USUAL
from jaxdp.peers.flops import step_flops
from jaxdp.peers.inputs import as_long_as_ct, plain_job, repeated, write_random_model
from jaxdp.peers.jax_privacy_side import JaxPrivacy
from jaxdp.peers.jax_side import OurTrainer
from jaxdp.peers.job import Job, Reports
from jaxdp.peers.machine import choose, environment
from jaxdp.peers.side import Side
from jaxdp.peers.start import reports_of
from jaxdp.peers.startup import measure
from jaxdp.peers.summary import HEADER, Record, ratio, rows, spread, summarise
from jaxdp.peers.torch_side import TorchTrainer
from jaxdp.training.setup import Inputs, load_inputs

pytestmark = IGNORE_PEFT


def product_flops(jaxpr) -> float:
    """Of all matrix products in a program, one by one."""
    total = 0.0
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += product_flops(inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
    return total


@pytest.mark.parametrize(
    "kind, pooling, last",
    [("bert", "cls", None), ("bert", "mean", 2), ("albert", "cls", None)],
)
def test_flops_are_those_of_the_traced_gradient(kind, pooling, last, tmp_path):
    """Of a report, forward and backward, from the level where its frozen layers end."""
    encoder = {"model_type": kind, **SIZES[kind], "hidden_act": "gelu"}
    write_random_model(tmp_path / "model", encoder, 5, pooling)
    model, _ = load_classifier(tmp_path / "model", 5, pooling, rngs=nnx.Rngs(0))
    first = model.depth - last if last else 0
    lora.add_lora(
        model, rank=4, alpha=8, targets=["query", "value"], first_layer=first, rngs=nnx.Rngs(1)
    )
    graphdef, adapters, frozen = lora.split(model, "lora")
    level, width = model.start_level(adapters), 24

    def loss(adapters, values):
        merged = nnx.merge(graphdef, adapters, frozen)
        return multilabel_loss(packed_logits(merged, values, width, level), np.zeros(5))

    hidden = encoder["hidden_size"]
    values = np.zeros((width, hidden), np.float32) if level else np.zeros(width, np.int32)
    program = jax.make_jaxpr(jax.value_and_grad(loss))(adapters, values)
    flops = step_flops(
        width,
        encoder,
        labels=5,
        rank=4,
        adapted=2,
        first_layer=first,
        pooler=pooling == "cls",
        cached=level > 0,
        pooled_only=pooling == "cls",
    )
    assert product_flops(program.jaxpr) == pytest.approx(flops, rel=1e-12)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    write_workspace(folder)
    return load_inputs(smoke_config(folder))


@pytest.fixture(scope="module")
def job(inputs, tmp_path_factory) -> Job:
    """LoRA on a BERT of 1 layer of 128 that averages over tokens; reports with a median of 5
    tokens, cut at 16: few widths, since each of them is compiled."""
    folder = tmp_path_factory.mktemp("job")
    encoder = {"model_type": "bert", **SIZES["bert"], "hidden_act": "gelu"} | {
        "hidden_size": 128,
        "num_hidden_layers": 1,
        "intermediate_size": 512,
        "max_position_embeddings": 16,
    }
    write_random_model(folder / "model", encoder, inputs.num_labels, "mean")
    backbone = Backbone("model", folder / "model", "mean")
    train, test = (reports_of(inputs, split) for split in ("train", "test"))
    job = plain_job(
        dataclasses.replace(inputs, backbone=backbone, max_length=16),
        repeated(train, 16 * len(train)),
        test,
        batch=512,
        layers="all",
        folder=folder / "job",
    )
    lengths = np.random.default_rng(0).lognormal(np.log(5), 0.6, len(job.train))
    lengths = np.clip(lengths, 3, 16).astype(np.int32)
    ids = np.random.default_rng(1).integers(0, 97, lengths.sum()).astype(np.int32)
    return dataclasses.replace(job, train=Reports(ids, lengths, job.train.labels))


@pytest.mark.slow  # as users compile
@pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")  # of JAX-Privacy
def test_speed_has_not_fallen_off_a_cliff(job):
    """Ratios within a round, then their median: load meets all alike.

    On a machine with ten other programs per two cores the medians of 7 rounds were 1.04 for DP /
    non-private (rounds 0.70 to 2.03) and 1.72 for JAX-Privacy / ours (1.33 to 3.00). The limits are
    far from both medians; with every report computed at full length the second was 1.04.
    """
    sides = {"ours": OurTrainer(job), "plain": OurTrainer(job, private=False)}
    sides["padded"] = JaxPrivacy(job, physical_batch=64)  # as many positions at once as ours
    seconds = {name: [] for name in sides}
    for step in range(16):
        for name in np.roll(list(sides), -step):
            began = time.perf_counter()
            sides[name].step(draw(job, step))
            seconds[name].append(time.perf_counter() - began)
    later = {name: values[1:] for name, values in seconds.items()}  # the first one compiles
    assert ratio(later["ours"], later["plain"])["median"] < 1.5
    assert ratio(later["padded"], later["ours"])["median"] > 1.2


def test_widths_are_those_that_are_computed(job):
    rows_of_step = draw(job, 0)
    lengths = job.train.lengths[rows_of_step]
    padded = JaxPrivacy(job, physical_batch=32)
    assert (padded.widths(rows_of_step) == 16).all()
    assert len(padded.widths(rows_of_step)) == 32 * math.ceil(len(lengths) / 32)

    def torch_widths(**options):
        trainer = TorchTrainer(job, method="none", physical_batch=16, **options)
        return trainer.widths(rows_of_step)

    assert (torch_widths(padding="fixed") == 16).all()
    parts = np.array_split(lengths, math.ceil(len(lengths) / 16))
    wanted = np.concatenate([np.full(len(part), part.max()) for part in parts])
    assert np.array_equal(torch_widths(padding="dynamic"), wanted)
    in_order = torch_widths(padding="sorted")
    assert len(in_order) == len(lengths) and (np.diff(in_order) <= 0).all()
    assert (in_order >= np.sort(lengths)[::-1]).all() and in_order.sum() < wanted.sum()


def test_the_fastest_physical_batch_is_kept():
    class Slow(Side):
        seen = set()

        def step(self, rows):
            time.sleep(0.02 if self.physical_batch == 32 else 0.1)
            if self.physical_batch not in self.seen:
                self.seen.add(self.physical_batch)
                time.sleep(0.3)  # compiling does not count

    side = Slow()
    tried = side.tune(np.arange(3), (16, 32, 64))
    assert side.physical_batch == 32 and list(tried) == ["16", "32", "64"]
    assert tried["32"] < 0.08 < tried["16"] and max(tried.values()) < 0.3


@pytest.mark.slow
def test_one_failure_leaves_the_others_running(job, tmp_path):
    """Without a mechanism JAX-Privacy has nothing to clip by; ours trains without privacy."""
    few = dataclasses.replace(job.train.take(np.arange(40)))
    plain = dataclasses.replace(job, mechanisms={}, train=few, test=few)
    records = {"jax-privacy": Record(plain), "ghost-fixed": Record(error="no job")}
    records["ours"] = Record(plain)
    rounds = Rounds("cpu", 2, True, lambda line: None, profile=tmp_path / "trace")
    rounds.run(records, tmp_path)
    assert records["jax-privacy"].error == "KeyError: 'main stage'"
    assert records["ghost-fixed"] == Record(error="no job")
    ours = records["ours"]
    assert ours.error is None and len(ours.steps) == 2 and not ours.tried
    assert [a["reports"] for a in ours.steps] == [len(draw(plain, step)) for step in (1, 2)]
    assert any((tmp_path / "trace").rglob("*.xplane.pb"))
    assert all(a["idle_cpu_seconds"] <= 0.05 + 0.1 * a["idle_seconds"] for a in ours.steps)
    row = summarise(records, 1e9)["ours"]
    assert 0 < row["padding"] < 1 and 0 < row["useful_flops"] < 1
    json.dumps(row, allow_nan=False)


def answer(seconds: float, reports: int = 10, **changes) -> dict:
    return {
        "seconds": seconds,
        "reports": reports,
        "tokens": 60,
        "positions": 80,
        "flops": 4e9,
        "useful_flops": 3e9,
        "peak_memory": 10**9,
        "device_memory": 0,
        "idle_cpu_seconds": 0.0,
        "idle_seconds": 1.0,
        "settings": {"device": "cpu", "arithmetic": "float32"},
    } | changes


def test_ratios_are_of_the_same_round_and_then_their_median():
    """The machine was four times slower in the last round; the ratios do not see it."""
    records = {
        "ours": Record(
            setup_seconds=1.0, first=answer(3.0), steps=[answer(s) for s in (1.0, 1.0, 4.0)]
        ),
        "opacus-fixed": Record(
            setup_seconds=2.0,
            first=answer(2.0),
            steps=[answer(s) for s in (2.0, 3.0, 8.4)],
            tried={"16": 1.0},
        ),
        "opacus-dynamic": Record(
            setup_seconds=2.0, first=answer(2.0), steps=[answer(s) for s in (1.0, 1.6, 8.0)]
        ),
        "ghost-fixed": Record(error="NotImplementedError: shared layers"),
    }
    table = summarise(records, matmul=8.0)
    ours, theirs = table["ours"], table["opacus-fixed"]
    assert ours["reports_per_second"] == spread([10.0, 10.0, 2.5])
    assert theirs["baseline_over_this"] == pytest.approx({"median": 2.1, "min": 2.0, "max": 3.0})
    assert ours["gflops"]["median"] == 4.0 and ours["utilisation"] == 0.5
    assert ours["padding"] == 0.25 and ours["useful_flops"] == 0.75
    assert ours["compile_seconds"] == 2.0 and ours["first_step_seconds"] == 4.0
    assert theirs["compile_seconds"] == 0.0
    assert table["ghost-fixed"] == {"error": "NotImplementedError: shared layers"}
    cells = rows(table)
    assert all(len(row) == len(HEADER) for row in cells)
    assert cells[3][1] == "NotImplementedError: shared layers"
    assert theirs["wanted"] == 2.0 and cells[0][4:6] == ["1.00 (1.00-1.00) x", ""]
    assert cells[1][4:6] == ["2.10 (2.00-3.00) x", ">= 2, met"]
    assert cells[2][4:6] == ["1.60 (1.00-2.00) x", ">= 1.7, missed"]
    assert cells[0][1:3] == ["cpu", "float32"] and cells[0][HEADER.index("device GB")] == ""
    there = {"device_memory": 2 * 10**9, "settings": {"device": "H100", "arithmetic": "bfloat16"}}
    on_device = Record(setup_seconds=1.0, first=answer(3.0), steps=[answer(1.0, **there)])
    table = summarise({"ours": on_device, "opacus-fixed": on_device}, matmul=8.0)
    cells = rows(table)[1]
    assert cells[1:3] == ["H100", "bfloat16"] and cells[HEADER.index("device GB")] == "2.00"
    assert cells[4:6] == ["1.00 (1.00-1.00) x", ""]  # what is wanted is known for CPUs only


def test_lengths_are_as_described(inputs):
    train = reports_of(inputs, "train")
    many = repeated(train, 30 * len(train) - 1)
    assert len(many) == 30 * len(train) == len(many.labels)
    long = as_long_as_ct(many)
    assert len(long) == len(many) > 2000
    assert 285 < np.median(long.lengths) < 315 and long.lengths.max() == 512
    assert 0.11 < np.mean(long.lengths == 512) < 0.18
    assert len(long.ids) == long.lengths.sum()
    once = repeated(train, 1)
    assert np.array_equal(once.ids, inputs.tokens["train"].values)


def test_every_contender_has_a_baseline_and_a_side():
    for contender in CONTENDERS.values():
        baseline = CONTENDERS[contender.baseline]
        assert baseline.options == {"private": True} and baseline.layers == contender.layers


def test_the_platform_is_jaxs_own_unless_another_is_asked_for(monkeypatch):
    assert choose(None, lambda: "gpu") == choose("gpu", lambda: "gpu") == "gpu"
    assert choose("cpu", lambda: pytest.fail("looked for devices")) == "cpu"
    with pytest.raises(ValueError, match="JAX finds no gpu here, but a cpu"):
        choose("gpu", lambda: "cpu")
    assert environment("cpu") == {"JAX_PLATFORMS": "cpu"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert environment("gpu") == {
        "CUDA_VISIBLE_DEVICES": "3",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def test_who_takes_part_and_how_depends_on_the_platform():
    for usual in USUAL.values():
        assert set(usual.quick_names) <= set(usual.names) <= set(CONTENDERS)
    on_cpu = [CONTENDERS[name].options_on("cpu") for name in USUAL["cpu"].names]
    assert {o["dtype"] for o in on_cpu if "dtype" in o} == {"float32"}
    assert {o["device"] for o in on_cpu if "device" in o} == {"cpu"}
    on_gpu = {name: CONTENDERS[name].options_on("gpu") for name in USUAL["gpu"].names}
    assert on_gpu["ours"] == {"private": True}  # in what the platform's default is
    said = {"opacus-bf16": "bfloat16", "torch-bf16": "autocast"}
    assert len(on_gpu) > len(on_cpu) > 12
    for name, options in on_gpu.items():
        dtype = "tensorfloat32" if CONTENDERS[name].side == TORCH else None
        dtype = "tensorfloat32" if name == "ours-tf32" else said.get(name, dtype)
        assert options.get("dtype") == dtype, name
    theirs = [o for o in on_gpu.values() if "device" in o]
    assert all(o["device"] == "cuda" and o["physical_batch"] == 512 for o in theirs)
    assert max(USUAL["gpu"].at_once) == 1024 <= USUAL["gpu"].batch


@pytest.mark.slow
def test_flags():
    wrong = {
        "--models=bert-smal": "error: --models: 'bert-smal' is none of minilm-l6, bert-small, ",
        "--platform=tpu": "error: --platform: JAX finds no tpu here, but a cpu",
        "--batches=256,many": "error: --batches must be whole numbers above 0, not '256,many'",
    }
    started = {flag: start_script("benchmark.py", flag) for flag in ("--help", *wrong)}
    results = {flag: process.communicate(timeout=300) for flag, process in started.items()}
    for flag, message in wrong.items():
        (line,) = results[flag][1].strip().splitlines()
        assert line.startswith(message) and started[flag].returncode == 1
    assert "--contenders" in results["--help"][0]


@pytest.mark.slow
def test_a_start_is_cut_into_its_parts(workspace):
    """Warm, the compiled programs are found, and not made. So they are with data.cache as well,
    where frozen layers are found by their program, which is traced for it."""
    result = measure(smoke_config(workspace), repeats=1)
    cold, (warm,), (cached,) = result["cold"], result["warm"], result["cached"]
    assert list(cold["parts"]) == list(warm["parts"]) == list(cached["parts"])
    assert list(cold["parts"])[:4] == ["imports", "calibration", "data", "weights"]
    assert list(cold["parts"])[-1] == "first step of the main stage"
    for run in (cold, warm, cached):
        assert all(0 <= p["compiling"] <= p["seconds"] for p in run["parts"].values())
        assert 0 < run["first_step_seconds"] < sum(p["seconds"] for p in run["parts"].values())
    compiling = [sum(p["compiling"] for p in r["parts"].values()) for r in (cold, warm, cached)]
    assert max(compiling[1:]) < compiling[0] / 2
