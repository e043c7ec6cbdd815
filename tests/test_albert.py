# SPDX-License-Identifier: Apache-2.0
"""ALBERT against transformers, and what sharing a layer means for its adapter."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from helpers_models import (
    IGNORE_PEFT,
    STUDY,
    check_random_parity,
    load,
    reports,
    save_torch_model,
)

from jaxdp.models import lora

pytestmark = IGNORE_PEFT


def test_logits_and_gradients_match_transformers(tmp_path):
    shape = {"num_hidden_layers": 2}
    check_random_parity(tmp_path, "albert", shape, logits_atol=2e-6, gradient_rtol=2e-5)


@pytest.mark.parametrize(
    ("pooling", "shape"),
    [
        ("mean", {"num_hidden_layers": 2, "num_hidden_groups": 2}),
        *(
            pytest.param(pooling, {"num_hidden_layers": layers} | more, marks=pytest.mark.slow)
            for pooling, layers, more in [
                ("cls", 3, {"num_hidden_groups": 1}),
                ("cls", 2, {"num_hidden_groups": 1, "inner_group_num": 2}),
                ("mean-last2", 2, {"num_hidden_groups": 1}),
            ]
        ),
    ],
)
def test_float64_agrees_to_1e_10(tmp_path, pooling, shape):
    with jax.enable_x64(True):
        check_random_parity(
            tmp_path,
            "albert",
            shape,
            pooling=pooling,
            dtype=torch.float64,
            logits_atol=1e-10,
            gradient_rtol=1e-10,
        )


@pytest.mark.slow
def test_study_size_matches_transformers(tmp_path):
    check_random_parity(
        tmp_path,
        *STUDY["albert-base-v2"],
        lengths=(128, 57, 1),
        width=128,
        noise=0.02,
        logits_atol=1e-4,
        gradient_rtol=1e-3,
    )


@pytest.mark.parametrize(("depth", "groups"), [(12, 1), (12, 3), (7, 3), (18, 14)])
def test_groups_are_used_where_transformers_uses_them(tmp_path, depth, groups):
    reference = save_torch_model(
        tmp_path, "albert", num_hidden_layers=depth, num_hidden_groups=groups
    )
    used = []
    for number, group in enumerate(reference.albert.encoder.albert_layer_groups):
        group.register_forward_hook(lambda *_, number=number: used.append(number))
    reference(torch.ones(1, 3, dtype=torch.int64))
    model = load(tmp_path)
    assert list(model.groups) == used
    assert [model.first_use(n) for n in range(groups)] == [used.index(n) for n in range(groups)]


def adapted(directory, **kwargs):
    model = load(directory)
    paths = lora.add_lora(model, rank=2, alpha=2.0, targets=["query"], rngs=nnx.Rngs(0), **kwargs)
    return model, paths


def test_a_shared_layer_has_one_adapter_used_at_every_depth(tmp_path):
    save_torch_model(tmp_path, "albert", num_hidden_groups=1)
    model, paths = adapted(tmp_path)
    assert len(paths) == 1 and model.depth == 4
    graphdef, adapters, frozen = lora.split(model, "lora")
    assert model.start_level(adapters) == 0
    (ids, *_), (length, *_) = reports()

    def gradient(start):
        """Of the last states, as far as it comes from the layers above `start`."""
        state = model.advance(ids, length, 0, start)

        def total(adapters):
            whole = nnx.merge(graphdef, adapters, frozen)
            return whole.advance(state, length, start, model.depth)[0].sum()

        (leaf,) = [
            value[...]
            for path, value in nnx.to_flat_state(jax.jit(jax.grad(total))(adapters))
            if path[-1] == "lora_b"
        ]
        return leaf

    everywhere, last, nowhere = gradient(0), gradient(3), gradient(4)
    assert np.all(nowhere == 0)
    assert np.abs(last).max() > 1e-4
    assert np.abs(everywhere - last).max() > 1e-4


def test_layers_of_a_group_can_be_adapted_only_if_all_its_uses_are(tmp_path):
    save_torch_model(tmp_path, "albert")  # 4 layers: groups 0, 0, 1, 1
    model, paths = adapted(tmp_path, first_layer=2)
    assert [path[3] for path in paths] == [1]
    assert model.start_level(lora.split(model, "lora")[1]) == 2
    with pytest.raises(ValueError, match=r"lora.layers: .* last:k needs k >= 2"):
        adapted(tmp_path, first_layer=3)
