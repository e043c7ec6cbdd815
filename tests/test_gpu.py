# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: `python -m pytest -m gpu`, skipped where there is none.

JAXDP_GPU_TESTS_ON=cpu runs them there, to see that they are right.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_members
import test_noise
import test_trainer
from conftest import GPU_TESTS_ON
from flax import nnx
from helpers_models import IGNORE_PEFT, check_random_parity
from helpers_training import smoke_config, write_backbone
from rich.console import Console
from test_clipping import slow_clipped_sum

from jaxdp import dp
from jaxdp.config import TrainConfig
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.models import layers, lora
from jaxdp.models.pretrained import load_classifier
from jaxdp.models.tasks import multilabel_loss
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.release_check import check_release
from jaxdp.run.train import train
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.randomness import RunSecret
from jaxdp.training.stages import Stage
from jaxdp.training.trainer import StageMember, StageTrainer

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def device():
    if jax.default_backend() != GPU_TESTS_ON:
        pytest.skip(f"no {GPU_TESTS_ON} here")
    return jax.devices()[0]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("model") / "backbone", hidden=64)


@IGNORE_PEFT
@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_float32_is_that_of_transformers(tmp_path, kind):
    """Logits and gradients. TensorFloat-32 has 10 bits: errors of 1e-3."""
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    check_random_parity(tmp_path, kind, sizes, logits_atol=1e-4, gradient_rtol=1e-3, noise=0.05)


def test_one_patient_moves_a_step_by_the_clip_norm_at_most(backbone):
    model = load_classifier(write_backbone(backbone.parent / "narrow"), 3, "mean", rngs=nnx.Rngs(0))
    test_trainer.test_a_patient_moves_a_step_by_at_most_the_clip_norm_however_many_reports(model[0])


def test_noise_has_the_stddev_that_is_accounted_for():
    test_noise.test_noise_on_the_sum_has_the_mechanisms_stddev(0)


def test_fused_attention_has_the_gradient_of_plain_attention():
    rng = np.random.default_rng(0)
    wide = [rng.normal(size=(4, 64, 2, 64)).astype(np.float32) for _ in range(4)]
    lengths = np.array([64, 9, 1, 0], np.int32)
    q, k, v, weights = (jnp.asarray(x, jnp.bfloat16) for x in wide)
    # What stands behind a report's end is read by nobody.
    real = (np.arange(64) < lengths[:, None])[..., None, None]
    assert layers._fused(q[0], k[0]) == (GPU_TESTS_ON == "gpu")

    def gradients(*arrays):
        def total(q, k, v):
            found = jax.vmap(layers.attend)(q, k, v, lengths)
            return jnp.sum(jnp.where(real, found * weights.astype(found.dtype), 0), dtype="float32")

        return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*arrays)

    with jax.default_matmul_precision("float32"):
        fused, plain = gradients(q, k, v), gradients(*(x.astype(jnp.float32) for x in (q, k, v)))
    for found, wanted in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        assert np.isfinite(found).all()
        # 8 bits, rounded a few times over.
        error = np.abs(np.float32(found) - wanted).max()
        assert error <= 0.03 * np.abs(wanted).max()


def test_a_float32_step_is_the_loop_over_its_reports_on_the_cpu(backbone):
    """The whole step: LoRA on every layer, padding, buckets, clip, sum, update; no noise."""
    reports, rate, batch, clip = 24, 1.0, 12.0, 1.8
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 17, reports)
    tokens = Packed.from_lengths(rng.integers(5, 19, lengths.sum()).astype(np.int32), lengths)
    labels = rng.integers(0, 2, (reports, 3)).astype(np.int8)
    model = load_classifier(backbone, 3, "cls", rngs=nnx.Rngs(0))[0]
    lora.add_lora(model, rank=4, alpha=8, targets=["all-linear"], rngs=nnx.Rngs(1))
    settings = TrainConfig(
        steps=1, expected_batch_size=batch, learning_rate=rate, optimizer="sgd", mode="lora"
    )
    stage = Stage("main", "lora", settings, dp.SubsampledGaussian(reports, batch, 1, clip, 0.0))
    trainer = StageTrainer(
        [StageMember(stage, model, RunSecret.create(0))],
        frozen_layers=FrozenLayers(model, {"train": tokens}, Buckets((16, 8), (4, 8))),
        labels={"train": labels},
        units=PrivacyUnits("report", np.arange(reports), np.arange(reports + 1)),
        token_buckets=Buckets((16, 8), (4, 8)),
    )
    plan = trainer.plan(0)
    drawn = plan.rows[plan.rows >= 0]
    assert 4 < len(drawn) < reports
    state, diagnostics = trainer.step(trainer.initial_state, 0, plan)

    cpu = jax.devices("cpu")[0]
    graphdef, adapters, frozen = jax.device_put(lora.split(model, "lora"), cpu)

    @jax.jit
    def loss(adapters, ids, length, labels):
        return multilabel_loss(nnx.merge(graphdef, adapters, frozen)(ids, length), labels)

    with jax.default_device(cpu):
        batch_of = (*tokens.gather(drawn, 16), labels[drawn])
        total, norms = slow_clipped_sum(loss, adapters, batch_of, clip)
    assert (norms > clip).any() and (norms < clip).any(), "the test must see both branches"
    np.testing.assert_allclose(np.asarray(diagnostics.norm)[: len(drawn)], norms, rtol=1e-4)
    changes = jax.tree.map(lambda new, old: np.asarray(old) - new, state.adapters, adapters)
    for change, clipped in zip(jax.tree.leaves(changes), jax.tree.leaves(total), strict=True):
        wanted = rate * clipped / batch
        np.testing.assert_allclose(change, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max() + 1e-7)


def test_members_of_one_program_are_what_each_is_alone(tmp_path):
    backbone = write_backbone(tmp_path / "backbone")
    found = test_members.trained(*test_members.stage_trainer(backbone, (0, 1), "head"))
    for member, values in enumerate(found):
        (wanted,) = test_members.trained(*test_members.stage_trainer(backbone, (member,), "head"))
        for one, other in zip(values, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert np.abs(found[0][0] - found[1][0]).max() > 1e-3


def test_a_whole_run_releases_what_passes_its_check(workspace):
    config = smoke_config(workspace)
    console = Console(file=io.StringIO(), width=200)
    train(config, resume=False, interrupt=Interrupt(), monitor=Monitor(console))
    wanted = {"gpu": "bfloat16 on gpu", "cpu": "float32 on cpu"}[GPU_TESTS_ON]
    assert f"matrix products: {wanted}" in console.file.getvalue()
    findings = check_release(workspace / "runs" / "smoke" / "release")
    assert len(findings) > 5 and all(finding.passed for finding in findings)
