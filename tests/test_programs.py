# SPDX-License-Identifier: Apache-2.0
"""`jaxdp programs`: what it counts, and that a step stays one program of few kernels."""

import jax
import jax.numpy as jnp
import pytest
from helpers_training import smoke_config
from helpers_xla import AS_USERS_DO

from jaxdp.commands.programs import blank_model, measure
from jaxdp.compiled import Chip, count, roofline
from jaxdp.config import ConfigError


def counted(fn, *arguments):
    return count(jax.jit(fn, compiler_options=AS_USERS_DO).lower(*arguments).compile())


def test_flops_bytes_and_kernels_are_those_of_the_program():
    x = jnp.ones((64, 64))
    one = counted(jnp.matmul, x, x + 1)
    assert one["flops"] == 2 * 64**3 and one["bytes"] == 3 * 4 * 64**2
    assert one["kernels"] == 1 and one["to_bfloat16"] == 0
    # A loop's body counts once, whatever its trips.
    looped = counted(lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: jnp.sin(y @ x), x), x, 9)
    assert one["flops"] <= looped["flops"] < 1.1 * one["flops"] and looped["kernels"] > 1
    rounded = counted(lambda x: jnp.sum(jnp.sin(x).astype(jnp.bfloat16) * x[0, 0]), x)
    assert rounded["to_bfloat16"] >= 1


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic():
    chip = Chip("", "", flops=10.0, bandwidth=2.0)
    assert roofline({"flops": 100, "bytes": 4}, chip) == 10
    assert roofline({"flops": 100, "bytes": 40}, chip) == 20
    assert roofline({"flops": None, "bytes": None}, chip) is None


@pytest.mark.slow  # as users compile
@pytest.mark.parametrize(
    "mode, widths, most",
    [
        ("lora", 1, {"step": 400, "prediction": 70}),
        ("head", 2, {"step": 220, "frozen layers": 60, "prediction": 62}),
    ],
)
def test_a_step_is_one_program_of_few_kernels(workspace, mode, widths, most):
    """More kernels than these want a reason; where there are far fewer, lower the bound."""
    config = smoke_config(
        workspace,
        train__mode=mode,
        train__widths=widths,
        data__max_length=16 // widths,
        lora__layers="all",
    )
    rows = {row["program"].partition(" (")[0]: row for row in measure(config, "cpu")}
    assert {name: row["programs"] for name, row in rows.items()} == {
        name: 1 if name == "step" else widths for name in most
    }
    for name, kernels in most.items():
        assert 0.8 * kernels < rows[name]["kernels"] <= kernels, name


def test_programs_have_the_shapes_of_a_run(workspace):
    assert measure(smoke_config(workspace), "cpu")[0]["program"] == "step (1 widths)"


def test_the_model_is_the_configured_one(workspace):
    changes = dict(model__pooling="mean", model__dtype="bfloat16", data__windows=2)
    model = blank_model(smoke_config(workspace, **changes), 3)
    assert model.window == (16, 2) and model.precision == "bfloat16"
    pooled = workspace / "backbone" / "1_Pooling"
    pooled.mkdir()
    (pooled / "config.json").write_text('{"pooling_mode": "mean"}')
    assert blank_model(smoke_config(workspace, model__pooling=None), 3).pooling == "mean"


def test_a_chip_without_its_compiler_is_said_in_a_line(workspace, monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    for chip, extra in (("v5e", "tpu"), ("h100", "cuda13")):
        with pytest.raises(ConfigError, match=rf"--chip={chip} needs pip .*jaxdp-text\[{extra}\]"):
            measure(smoke_config(workspace), chip)
