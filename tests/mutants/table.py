# SPDX-License-Identifier: Apache-2.0
"""The mutants: one small way each in which DP training silently goes wrong, and who notices.

`old` must occur exactly once in `file`; `killer` is a test that fails once it reads `new` instead.
When code changes and a mutant no longer applies, adapt it; do not drop it.
"""

from typing import NamedTuple

CLIPPING, MECHANISM, NOISE = "dp/clipping.py", "dp/mechanism.py", "dp/noise.py"
SAMPLING, ACCOUNTING, STATEMENT = "dp/sampling.py", "dp/accounting.py", "dp/statement.py"
LEDGER, SECURE, JOINT = "dp/ledger.py", "dp/secure_noise.py", "dp/joint.py"
STEP, TRAINER, RANDOMNESS = "training/step.py", "training/trainer.py", "training/randomness.py"
CHECKPOINT, RUNDIR = "run/checkpoint.py", "run/directory.py"
FILES = "files.py"
TRAIN, BEGIN, RUN_LOOP = "run/train.py", "run/begin.py", "run/loop.py"
BEGUN = "[begin(*pair, inputs, ledger, budget) for pair in pairs]"
START = f"        processes.first(lambda: {BEGUN})\n"
FROZEN = "        frozen_layers = _frozen_layers(config, runs[0], models[0], inputs, None)\n"
STAGES, FROZEN_LAYERS = "training/stages.py", "training/frozen_layers.py"
GROUPS, UNITS = "dp/groups.py", "data/units.py"
PROCESSES = "run/processes.py"
RELEASE_CHECK = "run/release_check.py"
TASKS, TABLES = "models/tasks.py", "data/tables.py"
LORA, WARM_START = "models/lora.py", "training/warm_start.py"
READERS = "models/readers.py"
LAYERS, FAMILIES = "models/layers.py", "test_families.py"
BATCHING, CLASSIFIER, ROWS = "data/batching.py", "models/classifier.py", "test_shared_rows.py"
ROW_GRADIENTS = "test_gradients_of_shared_rows_are_those_of_reports_alone"
NEIGHBOURS = "test_no_number_of_a_report_reaches_its_neighbours"
ATTENTION, ADAPTER = (f"test_{what}_keeps_reports_apart" for what in ("attention", "an_adapter"))
QUERY_STAGE = "test_query_stage.py"
TURNED, AGAIN = "    queries = turned_queries(model)\n", "    nnx.update(model, public)\n"
MAIN_STAGE = (
    f"{QUERY_STAGE}::test_the_main_stage_begins_with_the_public_head_on_features_of_turned_queries"
)
LOCAL = "test_attention.py::test_long_and_local_attention_are_what_their_definition_says"


class Mutant(NamedTuple):
    name: str
    file: str
    """Below jaxdp/."""
    old: str
    new: str
    killer: str
    """Test below tests/, as pytest names it; all cases of it unless one is given."""


LOOP = "test_step.py::test_equals_the_loop_over_reports_whatever_the_microbatches[{}]".format(
    "Buckets(widths=(16,), rows=(7,), reports=None)"
)
EDGES = "test_clipping.py::test_edge_table"
COLUMNS = "test_label_attention.py::test_column_products_are_the_gradients_of_the_label_head"
OUTER = "test_clipping.py::test_outer_products_are_clipped_as_if_they_were_formed"
SIGMA = "test_noise.py::test_noise_on_the_sum_has_the_mechanisms_stddev"
INDEPENDENT = "test_noise.py::test_noise_is_independent_between_steps_leaves_and_keys"
SECURE_SIGMA = "test_secure_noise.py::test_noise_on_the_sum_has_the_mechanisms_stddev"
SECURE_INDEPENDENT = (
    "test_secure_noise.py::test_noise_is_independent_between_steps_leaves_and_secrets"
)
BINOMIAL = "test_sampling.py::test_batch_sizes_are_binomial"
SHARES = "test_step.py::test_shares_of_four_devices_are_disjoint_complete_and_as_large"
DEVICES = "on_devices.py::test_any_number_of_devices_makes_the_same_adapters[float64-2]"
# A gradient sum, in a mutated `make_train_step`, that is released by itself.
NOISED = """
    def noised(gradient_sum):
        def noisy_sum(*args, **kwargs):
            total, diagnostics = gradient_sum(*args, **kwargs)
            return optimizer.update(total, optimizer.init(total))[0], diagnostics

        return noisy_sum

"""
MEMBERS = "test_members.py::test_a_stage_of_members_is_the_stage_of_each[head]"
CLOSED_FORM = "test_accounting.py::test_one_sampled_step_is_its_closed_form"
STREAMS = "test_randomness.py::test_every_stream_has_a_key_of_its_own_from_the_whole_secret"
WIDTHS = "test_randomness.py::test_every_stream_is_as_wide_as_it_says"
STAGE_NOISE = "test_trainer.py::test_a_step_without_gradients_is_the_noise_of_its_stage_and_number"
OWN_SAMPLES = (
    "test_trainer.py::test_stages_and_runs_draw_samples_of_their_own_and_a_resumed_one_the_same"
)
MEAN_NOISE = "test_frozen_layers.py::test_noise_of_the_mean_is_of_its_own_stream_and_kind"
OWN_NUMBERS = "test_stages.py::test_every_stage_has_its_own_clip_norm_batch_steps_and_noise"
TO_THE_TARGET = "test_stages.py::test_plan_composes_to_the_target"
AS_PLANNED = "test_stage_loop.py::test_what_runs_is_what_was_planned"
STOPPED = (
    "test_stage_loop.py::test_a_stop_saves_tells_what_was_spent_and_goes_on_with_the_next_step"
)
SAME_REPORTS = (
    "test_stage_loop.py::test_noise_is_used_again_on_the_very_same_reports_labels_and_units_only"
)
GROUPED = "test_stage_loop.py::test_training_reports_are_grouped_as_configured"
STATED = "test_stage_loop.py::test_the_statement_is_of_what_ran_on_whom_and_with_which_noise"
LEDGER_POWER = (
    "test_ledger.py::test_an_entry_and_its_key_survive_a_power_loss_once_the_plan_has_returned"
)
CHECKPOINT_POWER = "test_checkpoint.py::test_a_checkpoint_survives_a_power_loss_once_it_is_saved"
SECRET_POWER = (
    "test_checkpoint.py::test_a_secret_survives_a_power_loss_from_the_start_and_is_nobody_elses"
)

MUTANTS = [
    # Clipping: sensitivity that does not match the clip.
    Mutant(
        "square root dropped from the norm", CLIPPING, "return jnp.sqrt(sum(", "return (sum(", EDGES
    ),
    Mutant(
        "L1 norm for L2", CLIPPING, "jnp.sum(jnp.square(_wide(g)),", "jnp.sum(jnp.abs(g),", EDGES
    ),
    Mutant(
        "mean of the reports for their sum",
        CLIPPING,
        "return jnp.sum(g, axis=0)",
        "return jnp.mean(g, axis=0)",
        EDGES,
    ),
    Mutant(
        "clip after the sum",
        CLIPPING,
        "return jnp.sum(g, axis=0)",
        "return jnp.sum(g / by_row(factors, g), axis=0) * jnp.min(factors)",
        "test_clipping.py::test_no_report_influences_how_another_is_clipped",
    ),
    Mutant(
        "clip by the batch's largest norm",
        CLIPPING,
        "norms > l2_clip_norm, l2_clip_norm / norms, 1.0",
        "jnp.max(norms) > l2_clip_norm, l2_clip_norm / jnp.max(norms), 1.0",
        "test_clipping.py::test_no_report_influences_how_another_is_clipped",
    ),
    Mutant(
        "clip each leaf by itself",
        CLIPPING,
        "g, 0.0) * by_row(factors, g)",
        "g, 0.0) * by_row(jnp.minimum(1.0, l2_clip_norm / per_report_norms([g])), g)",
        "test_clipping.py::test_sensitivity_is_the_clip_norm_over_all_leaves_together",
    ),
    Mutant(
        "every gradient scaled to the clip norm",
        CLIPPING,
        "jnp.where(norms > l2_clip_norm, l2_clip_norm / norms, 1.0)",
        "l2_clip_norm / norms",
        EDGES,
    ),
    Mutant(
        "stability constant in the clip",
        CLIPPING,
        "l2_clip_norm / norms, 1.0",
        "l2_clip_norm / (norms + 1e-4), 1.0",
        EDGES,
    ),
    Mutant(
        "no clipping",
        CLIPPING,
        "jnp.where(norms > l2_clip_norm, l2_clip_norm / norms, 1.0)",
        "jnp.ones_like(norms)",
        EDGES,
    ),
    Mutant(
        "clip at twice the norm",
        CLIPPING,
        "sum_clipped(gradients, l2_clip_norm, is_padding)",
        "sum_clipped(gradients, 2 * l2_clip_norm, is_padding)",
        "test_clipping.py::test_equals_the_per_report_loop_in_float64",
    ),
    Mutant(
        "optax transform does not clip",
        CLIPPING,
        "sum_clipped(updates, l2_clip_norm,",
        "sum_clipped(updates, jnp.inf,",
        "test_clipping.py::test_optax_transform_is_the_same_sum",
    ),
    Mutant(
        "non-finite gradients kept",
        CLIPPING,
        "counts = jnp.isfinite(norms) & ~is_padding",
        "counts = ~is_padding",
        EDGES,
    ),
    Mutant(
        "non-finite gradients multiplied by zero",
        CLIPPING,
        "jnp.where(by_row(counts, g), g, 0.0) * by_row(factors, g)",
        "g * by_row(jnp.where(counts, factors, 0.0), g)",
        EDGES,
    ),
    Mutant(
        "padding counted",
        CLIPPING,
        "counts = jnp.isfinite(norms) & ~is_padding",
        "counts = jnp.isfinite(norms)",
        "test_clipping.py::test_padding_contributes_nothing_whatever_it_holds",
    ),
    Mutant(
        "a mask of another shape broadcasts",
        CLIPPING,
        "    chex.assert_equal_shape_prefix([is_padding, *jax.tree.leaves(gradients)], 1)\n",
        "",
        "test_clipping.py::test_shapes_that_would_broadcast_are_refused",
    ),
    Mutant(
        "sum kept in half precision",
        CLIPPING,
        "g, 0.0) * by_row(factors, g)",
        "g, 0.0) * by_row(factors, g).astype(g.dtype)",
        "test_clipping.py::test_half_precision_gradients_are_measured_and_summed_in_float32",
    ),
    Mutant(
        "norm taken in half precision",
        CLIPPING,
        "return x.astype(jnp.promote_types(x.dtype, jnp.float32))",
        "return x",
        "test_clipping.py::test_half_precision_gradients_are_measured_and_summed_in_float32",
    ),
    Mutant(
        "norm of an outer product from one factor",
        CLIPPING,
        "norm(_wide(g.left)) * norm(_wide(g.right))",
        "norm(_wide(g.right))",
        OUTER,
    ),
    Mutant(
        "outer products summed without clipping",
        CLIPPING,
        "scaled = right * factors[:, None]",
        "scaled = right",
        OUTER,
    ),
    Mutant(
        "non-finite outer products kept",
        CLIPPING,
        "(jnp.where(by_row(counts, x), _wide(x), 0.0) for x in g)",
        "map(_wide, g)",
        "test_clipping.py::test_edge_table_of_outer_products",
    ),
    Mutant(
        "a factor's square vanishes",
        CLIPPING,
        "jnp.where(largest == 0, 1.0, largest)",
        "jnp.ones_like(largest)",
        "test_clipping.py::test_edge_table_of_outer_products",
    ),
    Mutant(
        "outer products in half precision on accelerators",
        CLIPPING,
        "jnp.matmul(left.T, scaled, precision=jax.lax.Precision.HIGHEST)",
        "jnp.matmul(left.T, scaled)",
        "test_clipping.py::test_no_product_may_be_rounded_to_half_precision_by_an_accelerator",
    ),
    # Mechanism: noise, sampling and accounting from one object.
    Mutant(
        "noise not scaled by the clip norm",
        MECHANISM,
        "return self.noise_multiplier * self.l2_clip_norm",
        "return self.noise_multiplier",
        "test_mechanism.py::test_derived_numbers",
    ),
    Mutant(
        "noise of a mean added to a sum",
        MECHANISM,
        "return self.noise_multiplier * self.l2_clip_norm",
        "return self.noise_multiplier * self.l2_clip_norm / self.expected_batch_size",
        "test_mechanism.py::test_derived_numbers",
    ),
    Mutant(
        "sampling probability off by one unit",
        MECHANISM,
        "return self.expected_batch_size / self.units",
        "return self.expected_batch_size / (self.units + 1)",
        "test_mechanism.py::test_derived_numbers",
    ),
    Mutant(
        "steps off by one",
        MECHANISM,
        "SelfComposedDpEvent(step, self.steps)",
        "SelfComposedDpEvent(step, self.steps - 1)",
        "test_mechanism.py::test_event_is_the_poisson_sampled_gaussian_steps_times",
    ),
    Mutant(
        "a single step is free",
        MECHANISM,
        "if self.steps == 0:",
        "if self.steps <= 1:",
        CLOSED_FORM,
    ),
    Mutant(
        "event claims more sampling than there is",
        MECHANISM,
        "PoissonSampledDpEvent(self.sampling_probability, step)",
        "PoissonSampledDpEvent(self.sampling_probability**2, step)",
        "test_mechanism.py::test_sampler_and_accountant_share_the_probability",
    ),
    Mutant(
        "sampling probability above 1 accepted",
        MECHANISM,
        "if not 0 < self.expected_batch_size <= self.units:",
        "if not 0 < self.expected_batch_size:",
        "test_mechanism.py::test_out_of_range_is_refused_and_named",
    ),
    Mutant(
        "clip norm beyond float32 accepted",
        MECHANISM,
        "if not low <= self.l2_clip_norm <= high:",
        "if not self.l2_clip_norm > 0:",
        "test_mechanism.py::test_out_of_range_is_refused_and_named",
    ),
    # Noise: its size, and never the same twice.
    Mutant("no noise", NOISE, "noise = stddev *", "noise = 0 * stddev *", SIGMA),
    Mutant(
        "noise 0.9 of its size",
        NOISE,
        "noise = stddev",
        "noise = 0.9 * stddev",
        SIGMA,
    ),
    Mutant(
        "noise 1.1 of its size",
        NOISE,
        "noise = stddev",
        "noise = 1.1 * stddev",
        SIGMA,
    ),
    Mutant(
        "variance for standard deviation",
        NOISE,
        "stddev *",
        "stddev**2 *",
        SIGMA,
    ),
    Mutant(
        "noise skipped on an empty batch",
        NOISE,
        "(leaf + part.reshape(leaf.shape))",
        "(leaf + part.reshape(leaf.shape) * jnp.any(leaf != 0))",
        "test_noise.py::test_an_empty_draw_is_noised_like_any_other",
    ),
    Mutant(
        "divided by the units instead of the expected batch",
        NOISE,
        "/ mechanism.expected_batch_size",
        "/ mechanism.units",
        "test_noise.py::test_without_noise_it_is_the_exact_average",
    ),
    Mutant(
        "noise divided, sum not",
        NOISE,
        "(leaf + part.reshape(leaf.shape)).astype(leaf.dtype) / mechanism.expected_batch_size",
        "(leaf + part.reshape(leaf.shape) / mechanism.expected_batch_size).astype(leaf.dtype)",
        "test_noise.py::test_without_noise_it_is_the_exact_average",
    ),
    Mutant(
        "the same key at every step",
        NOISE,
        "jax.random.fold_in(state.key, state.step)",
        "jax.random.clone(state.key)",
        INDEPENDENT,
    ),
    Mutant("step does not advance", NOISE, "state.step + 1", "state.step", INDEPENDENT),
    Mutant(
        "the same noise for every leaf",
        NOISE,
        "jnp.split(noise, ends[:-1])",
        "[noise[: leaf.size] for leaf in leaves]",
        INDEPENDENT,
    ),
    Mutant(
        "resume with a new key",
        NOISE,
        "jax.random.fold_in(state.key, state.step)",
        "jax.random.fold_in(key, state.step)",
        "test_noise.py::test_noise_is_a_pure_function_of_key_and_step",
    ),
    Mutant(
        "one float32 draw, with its cut tails",
        NOISE,
        "DRAWS = 4",
        "DRAWS = 1",
        "test_noise.py::test_noise_does_not_stop_where_one_float32_draw_does",
    ),
    Mutant(
        "the four draws are one",
        NOISE,
        "for k in jax.random.split(key, DRAWS)]",
        "for k in [jax.random.clone(key) for _ in range(DRAWS)]]",
        SIGMA,
    ),
    Mutant("sum of draws not rescaled", NOISE, "/ DRAWS**0.5", "", SIGMA),
    Mutant(
        "noise of half precision",
        NOISE,
        "wide = jnp.result_type(*leaves)",
        "wide = jnp.bfloat16",
        "test_noise.py::test_no_value_repeats_over_many_steps_and_leaves",
    ),
    Mutant(
        "sums of half precision accepted",
        NOISE,
        "not in (jnp.float32, jnp.float64)",
        "in ()",
        "test_noise.py::test_sums_narrower_than_float32_are_refused",
    ),
    Mutant(
        "noise before the clip",
        NOISE,
        "optax.chain(clip_and_sum(mechanism.l2_clip_norm), add_noise_and_average(mechanism, key))",
        "optax.chain(add_noise_and_average(mechanism, key), clip_and_sum(mechanism.l2_clip_norm))",
        "test_noise.py::test_aggregate_clips_sums_and_noises_once",
    ),
    # Secure noise: the same, from the host.
    Mutant(
        "secure noise skipped",
        SECURE,
        "(rounded + noise).astype",
        "(rounded + 0 * noise).astype",
        SECURE_SIGMA,
    ),
    Mutant(
        "secure noise not scaled by the sensitivity",
        SECURE,
        "self.mechanism.noise_multiplier * self.sensitivity",
        "self.mechanism.noise_multiplier",
        SECURE_SIGMA,
    ),
    Mutant(
        "rounding left out of the sensitivity",
        SECURE,
        "return self.mechanism.l2_clip_norm + self.grid * self._root_size",
        "return self.mechanism.l2_clip_norm",
        "test_secure_noise.py::test_rounding_is_part_of_the_sensitivity",
    ),
    Mutant(
        "secure noise added in floating point",
        SECURE,
        "(rounded + noise).astype(leaf.dtype)",
        "leaf / self.grid + noise",
        "test_secure_noise.py::test_sum_and_noise_are_rounded_to_the_grid_and_added_without_error",
    ),
    Mutant(
        "the same secure noise at every step",
        SECURE,
        'place = step.to_bytes(8, "little")',
        "place = bytes(8)",
        SECURE_INDEPENDENT,
    ),
    Mutant(
        "the same secure noise for every leaf",
        SECURE,
        'leaf.to_bytes(8, "little")',
        "bytes(8)",
        SECURE_INDEPENDENT,
    ),
    Mutant(
        "secure noise without the secret",
        SECURE,
        "shake_256(secret + place)",
        "shake_256(place)",
        SECURE_INDEPENDENT,
    ),
    Mutant(
        "secure noise of one sign",
        SECURE,
        "np.where(words & np.uint64(1), tail, -tail)",
        "-tail",
        "test_secure_noise.py::test_tails_are_those_of_a_gaussian",
    ),
    Mutant(
        "secure noise from 32 bits",
        SECURE,
        "((words >> np.uint64(1)) + 0.5) * 2.0**-64",
        "((words >> np.uint64(33)) + 0.5) * 2.0**-32",
        "test_secure_noise.py::test_tails_are_those_of_a_gaussian",
    ),
    Mutant(
        "the draw of another step accepted",
        SECURE,
        "jnp.where(draw.step == state.step, released, jnp.nan)",
        "released",
        "test_secure_noise.py::test_the_draw_of_another_step_is_noticed_and_none_is_refused",
    ),
    Mutant(
        "a draw of other shapes broadcasts",
        SECURE,
        "            chex.assert_trees_all_equal_shapes(clipped_sum, draw.noise)\n",
        "",
        "test_secure_noise.py::test_a_draw_of_other_shapes_is_refused",
    ),
    Mutant(
        "sums beyond int32 wrap around",
        SECURE,
        "jnp.clip(jnp.round(leaf / self.grid), -_LIMIT, _LIMIT)",
        "jnp.round(leaf / self.grid)",
        "test_secure_noise.py::test_sums_beyond_the_grids_range_are_held_at_its_end",
    ),
    Mutant(
        "secure noise of half-precision sums",
        SECURE,
        "                require_wide(leaf)\n",
        "",
        "test_secure_noise.py::test_sums_narrower_than_float32_are_refused",
    ),
    Mutant(
        "the draw of the first step at every step",
        TRAINER,
        "self._draw(step)",
        "self._draw(0)",
        STAGE_NOISE,
    ),
    Mutant(
        "secure noise asked for, and not used",
        RANDOMNESS,
        "        if secure:\n",
        "        if False:\n",
        "test_randomness.py::test_the_generator_that_is_named_is_the_one_that_is_used",
    ),
    Mutant(
        "rounding of the largest leaf alone in the sensitivity",
        SECURE,
        "math.sqrt(sum(math.prod",
        "math.sqrt(max(math.prod",
        "test_secure_noise.py::test_rounding_of_every_leaf_is_part_of_the_sensitivity",
    ),
    # Sampling: Poisson, and nothing like it.
    Mutant(
        "batches of fixed size",
        SAMPLING,
        "np.flatnonzero(self._uniform(step, 0) < self.sampling_probability)",
        "np.sort(np.argsort(self._uniform(step, 0))"
        "[: round(self.sampling_probability * self.num_units)])",
        BINOMIAL,
    ),
    Mutant(
        "shuffled epochs",
        SAMPLING,
        "np.flatnonzero(self._uniform(step, 0) < self.sampling_probability)",
        "np.flatnonzero((np.arange(self.num_units) + step)"
        " % int(1 / self.sampling_probability) == 0)",
        BINOMIAL,
    ),
    Mutant(
        "sampling probability 2 % too high",
        SAMPLING,
        "< self.sampling_probability)",
        "< 1.02 * self.sampling_probability)",
        BINOMIAL,
    ),
    Mutant(
        "the same draw at every step",
        SAMPLING,
        "counter=[0, 0, stream, step]",
        "counter=[0, 0, stream, 0]",
        "test_sampling.py::test_draws_of_different_steps_never_coincide",
    ),
    Mutant(
        "seed ignored",
        SAMPLING,
        "key=self.seed",
        "key=1",
        "test_sampling.py::test_is_a_pure_function_of_seed_and_step",
    ),
    Mutant(
        "steps overlap in the random stream",
        SAMPLING,
        "counter=[0, 0, stream, step]",
        "counter=[step, 0, stream, 0]",
        "test_sampling.py::test_units_and_steps_are_independent",
    ),
    Mutant(
        "choice of report follows from taking part",
        SAMPLING,
        "self._uniform(step, 1)",
        "self._uniform(step, 0)",
        "test_sampling.py::test_choice_is_independent_of_taking_part",
    ),
    Mutant(
        "half of the sampling seed",
        SAMPLING,
        "key=self.seed,",
        "key=self.seed % 2**64,",
        "test_sampling.py::test_every_bit_of_the_seed_counts",
    ),
    # Accounting and calibration.
    Mutant(
        "wrong neighbouring relation",
        ACCOUNTING,
        "pld.PLDAccountant(value_discretization_interval=interval)",
        "pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE, interval)",
        CLOSED_FORM,
    ),
    Mutant(
        "epsilon at ten times delta",
        ACCOUNTING,
        "compose(composed_event(mechanisms)).get_epsilon(delta)",
        "compose(composed_event(mechanisms)).get_epsilon(10 * delta)",
        CLOSED_FORM,
    ),
    Mutant(
        "Renyi bound reported as PLD",
        ACCOUNTING,
        "pld.PLDAccountant(value_discretization_interval=interval)",
        "rdp.RdpAccountant()",
        CLOSED_FORM,
    ),
    Mutant(
        "only the first stage counted",
        ACCOUNTING,
        "for m in mechanisms])",
        "for m in mechanisms[:1]])",
        "test_accounting.py::test_stages_compose_like_one_gaussian_where_that_is_exact",
    ),
    Mutant(
        "a stage without noise is free",
        ACCOUNTING,
        "    if any(m.noise_multiplier == 0 for m in active):\n        return math.inf",
        "    if any(m.noise_multiplier == 0 for m in active):\n        return 0.0",
        "test_accounting.py::test_nothing_taken_costs_nothing_and_no_noise_costs_everything",
    ),
    Mutant(
        "calibration forgets the other stages",
        ACCOUNTING,
        "stages = [*others, mechanism.replace(noise_multiplier=noise_multiplier)]",
        "stages = [mechanism.replace(noise_multiplier=noise_multiplier)]",
        "test_accounting.py::test_calibration_with_other_stages_meets_the_target_together",
    ),
    Mutant(
        "calibration may exceed the target a little",
        ACCOUNTING,
        "        if value > target:",
        "        if value > 1.01 * target:",
        "test_accounting.py::test_calibration_is_tight_never_above_and_takes_few_trials",
    ),
    Mutant(
        "memory guard removed",
        ACCOUNTING,
        "least < MIN_NOISE_MULTIPLIER or looser > MAX_PLD_EPSILON",
        "False",
        "test_accounting.py::test_too_little_noise_is_refused_instead_of_filling_the_memory"
        "[little_noise0]",  # the one case whose distribution would fit after all
    ),
    # Statement: what is claimed.
    Mutant(
        "claim without the last stage",
        STATEMENT,
        "epsilon = epsilon_pld(stages, delta) if private",
        "epsilon = epsilon_pld(stages[:1], delta) if private",
        "test_statement.py::test_epsilon_recomputes_from_the_json_by_dp_accounting_alone",
    ),
    Mutant(
        "training without privacy stated as a no-op",
        STATEMENT,
        "if private else dp_accounting.NonPrivateDpEvent()",
        "if private else dp_accounting.NoOpDpEvent()",
        "test_statement.py::test_without_privacy_nothing_is_claimed",
    ),
    Mutant(
        "no warning at delta = 1/units",
        STATEMENT,
        "delta >= 1 / units",
        "delta > 1 / units",
        "test_statement.py::test_delta_not_below_one_over_units_is_warned_about",
    ),
    Mutant(
        "no warning about a public seed",
        STATEMENT,
        'seed_policy != "os-entropy"',
        'seed_policy == ""',
        "test_statement.py::test_a_public_seed_is_warned_about",
    ),
    Mutant(
        "epsilon printed rounded down",
        STATEMENT,
        "decimal.ROUND_CEILING",
        "decimal.ROUND_HALF_EVEN",
        "test_statement.py::test_printed_epsilon_is_never_below_the_epsilon",
    ),
    Mutant(
        "a statement that contradicts itself passes",
        STATEMENT,
        "if event != composed_event(stages) or stated !=",
        "if stated !=",
        "test_statement.py::test_a_statement_that_contradicts_itself_is_refused",
    ),
    Mutant(
        "other bounds printed rounded down",
        STATEMENT,
        '"none is claimed" if epsilon is None else rounded_up(epsilon)',
        '"none is claimed" if epsilon is None else f"{epsilon:.4g}"',
        "test_statement.py::test_no_other_bound_in_words_is_below_what_it_bounds",
    ),
    # Ledger: no entry is lost, none is made up.
    Mutant(
        "total budget ignores earlier runs",
        LEDGER,
        "total = _total({**runs, run: mechanisms}, delta)",
        "total = _total({run: mechanisms}, delta)",
        "test_ledger.py::test_a_run_that_would_overdraw_is_refused_and_not_recorded",
    ),
    Mutant(
        "a resumed run may change its mechanism",
        LEDGER,
        "if run in runs and not _part_of(runs[run], mechanisms):",
        "if False:",
        "test_ledger.py::test_a_resumed_run_counts_once_and_must_be_the_same",
    ),
    Mutant(
        "a torn line spoils the next",
        LEDGER,
        "                file.truncate(whole)\n",
        "",
        "test_ledger.py::test_a_line_torn_at_any_byte_loses_nothing_else",
    ),
    Mutant(
        "entries not chained",
        LEDGER,
        'f"{previous} {body}".encode()',
        "body.encode()",
        "test_ledger.py::test_tampering_is_noticed",
    ),
    Mutant(
        "fingerprint without a key",
        LEDGER,
        "hashlib.blake2b(r, key=key).digest() for r in records)\n"
        '            return hashlib.blake2b(b"".join(digests), key=key,',
        "hashlib.blake2b(r).digest() for r in records)\n"
        '            return hashlib.blake2b(b"".join(digests),',
        "test_ledger.py::test_fingerprint_is_of_the_multiset_and_keyed",
    ),
    Mutant(
        "a whole last entry taken for a torn one",
        LEDGER,
        'if claimed != expected and not line.endswith(b"\\n"):',
        'if not line.endswith(b"\\n"):',
        "test_ledger.py::test_a_whole_last_entry_is_not_taken_for_a_torn_one",
    ),
    Mutant(
        "half an entry counts as written",
        LEDGER,
        "if file.write(line) != len(line):",
        "if file.write(line) < 0:",
        "test_ledger.py::test_a_plan_that_finds_no_room_is_an_error_and_is_not_recorded[100]",
    ),
    # Going on after a crash: the same mechanism on the same data, or not at all.
    Mutant(
        "checkpoints not checked",
        CHECKPOINT,
        "        if not self._sound(position):\n",
        "        if False:\n",
        "test_checkpoint.py::test_a_checkpoint_that_is_damaged_anywhere_is_refused",
    ),
    Mutant(
        "a started run gets another secret",
        RUNDIR,
        "if not self.started:\n            write_json(self._secret_file",
        "if True:\n            write_json(self._secret_file",
        "test_checkpoint.py::test_the_secret_is_kept_from_the_start_and_never_replaced",
    ),
    Mutant(
        "a run goes on with other weights or noise",
        RUNDIR,
        "if before.get(name) != value]",
        "if False]",
        "test_stage_loop.py::test_a_run_goes_on_with_the_weights_and_the_noise_that_it_began_with",
    ),
    Mutant(
        "a resumed run learns another public start",
        WARM_START,
        "stored(kept_start.parent, kept_start.name, known) if kept_start else known()",
        "known()",
        "test_warm_start.py::test_a_run_goes_on_from_the_public_start_that_it_began_with",
    ),
    Mutant(
        "a row more moves others between splits",
        TABLES,
        "id_of((own, text, labels), seen)",
        "id_of((part, number), seen)",
        "test_tables.py::test_a_row_more_moves_no_other_between_splits",
    ),
    Mutant(
        "too little noise counts nothing",
        LEDGER,
        "        return math.inf\n",
        "        return 0.0\n",
        "test_ledger.py::test_too_little_noise_is_over_any_budget_and_can_be_added_up",
    ),
    Mutant(
        "patients of whom nothing is known are one",
        "data/arrays.py",
        'ids = ["" if _is_missing(value) else clean_cell(value) for value in given]',
        "ids = [str(value) for value in given]",
        "test_arrays.py::test_groups_are_ids_of_any_kind",
    ),
    Mutant(
        "the noise used again on other reports",
        RUNDIR,
        'if content.get("data") != secret.fingerprint(records):',
        "if False:",
        "test_checkpoint.py::test_the_secret_is_kept_from_the_start_and_never_replaced",
    ),
    Mutant(
        "checkpoints continued with another secret",
        RUNDIR,
        'if any(self.checkpoints.glob("*")):',
        "if False:",
        "test_checkpoint.py::test_checkpoints_without_their_secret_are_not_continued_with_another",
    ),
    Mutant(
        "the clip norm may change on resume",
        RUNDIR,
        '    "data": {"cache"},\n',
        '    "data": {"cache"},\n    "privacy": {"l2_clip_norm"},\n',
        "test_checkpoint.py::test_a_started_run_keeps_what_decides_its_result[privacy-l2_clip_norm-0.2]",
    ),
    Mutant(
        "a release with a false epsilon",
        RELEASE_CHECK,
        'field != "accountant_version" and',
        'field not in ("accountant_version", "epsilon") and',
        "test_release_check.py::test_a_spoilt_bundle_fails_its_check[8-statement-epsilon]",
    ),
    Mutant(
        "a release with a LoRA that does nothing",
        RELEASE_CHECK,
        "bool(np.any(product))",
        "True",
        "test_release_check.py::test_what_was_not_trained_is_not_released",
    ),
    # The step: what happens once per logical batch.
    Mutant(
        "noise per microbatch",
        STEP,
        "    share_sum = make_share_sum(loss_fn, gradient_sum, buckets)\n",
        NOISED
        + "    share_sum = make_share_sum(loss_fn, lambda *f: noised(gradient_sum(*f)), buckets)\n",
        LOOP,
    ),
    Mutant(
        "only the last microbatch counts",
        STEP,
        "jax.tree.map(jnp.add, total, part[0])",
        "part[0]",
        LOOP,
    ),
    Mutant("a microbatch left out", STEP, "(0, trips,", "(1, trips,", LOOP),
    Mutant(
        "reports counted twice where microbatches overlap",
        STEP,
        "start = plan.starts[i] + (first + j * devices) * slots",
        "start = plan.starts[i] + (first + j * devices) * (slots - 1)",
        LOOP,
    ),
    Mutant(
        "padding counted by the step",
        STEP,
        "is_padding=index < 0",
        "is_padding=index < -1",
        "test_step.py::test_padding_rows_contribute_nothing",
    ),
    Mutant(
        "divided by the actual batch",
        STEP,
        "            total, state.optimizer, state.adapters, **release\n",
        "            jax.tree.map(lambda t: t * 8 / jnp.maximum((plan.rows >= 0).sum(), 1), "
        "total), state.optimizer, state.adapters, **release\n",
        "test_step.py::test_divides_by_the_expected_not_the_actual_batch",
    ),
    Mutant(
        "step skipped when nobody is drawn",
        STEP,
        "return TrainState(adapters, optimizer_state), diagnostics",
        "adapters = jax.tree.map(lambda new, old: jnp.where((plan.rows >= 0).any(), new, old), "
        "adapters, state.adapters)\n"
        "        return TrainState(adapters, optimizer_state), diagnostics",
        "test_step.py::test_a_step_without_reports_still_releases_noise",
    ),
    Mutant(
        "noise state not carried to the next step",
        STEP,
        "return TrainState(adapters, optimizer_state), diagnostics",
        "return TrainState(adapters, state.optimizer), diagnostics",
        LOOP,
    ),
    # Several devices: shares of one sum, and noise once.
    Mutant(
        "noise on every device",
        STEP,
        "    share_sum = make_share_sum(loss_fn, gradient_sum, buckets)\n",
        NOISED + "    share_sum = noised(make_share_sum(loss_fn, gradient_sum, buckets))\n",
        "on_devices.py::test_noise_is_drawn_once_whatever_the_devices",
    ),
    Mutant(
        "the devices' sums not added up",
        STEP,
        "unravel(jax.lax.psum(flat, DATA))",
        "unravel(flat)",
        DEVICES,
    ),
    Mutant(
        "the mean over devices for their sum",
        STEP,
        "jax.lax.psum(flat, DATA)",
        "jax.lax.pmean(flat, DATA)",
        DEVICES,
    ),
    Mutant(
        "every device takes the same microbatches",
        STEP,
        "(device - before[i]) % devices",
        "0 * device",
        SHARES,
    ),
    Mutant(
        "a round that does not fill all devices left out",
        STEP,
        "first + devices - 1) // devices",
        "first) // devices",
        SHARES,
    ),
    Mutant(
        "weights that are shared out are taken for whole",
        STEP,
        "frozen = gathered(frozen, frozen_specs)",
        "pass",
        "on_devices.py::test_frozen_weights_may_be_shared_out",
    ),
    Mutant(
        "one collective for each microbatch",
        STEP,
        "jax.tree.map(jnp.add, total, part[0])",
        "jax.tree.map(lambda t, p: t + (jax.lax.pmean(p, DATA) if devices > 1 "
        "else p), total, part[0])",
        "on_devices.py::test_a_step_has_one_collective_of_the_adapters_size_outside_of_its_loops",
    ),
    Mutant(
        "prediction forgets the microbatches of other devices",
        "evaluation/inference.py",
        "min(begin + devices * size, end)",
        "begin + size",
        "on_devices.py::test_prediction_and_frozen_levels_have_the_bits_of_one_device",
    ),
    # Several processes: one secret, one writer, one decision.
    Mutant(
        "every process draws its own secret",
        BEGIN,
        "return RunSecret(*(root.tobytes() for root in shared))",
        "return own or RunSecret.create(None)",
        "test_processes.py::test_one_run_has_one_secret",
    ),
    Mutant(
        "every process writes",
        PROCESSES,
        "on_all(fn if is_first() else lambda: None)",
        "on_all(fn)",
        "test_processes.py::test_only_process_0_does_what_is_for_the_first",
    ),
    Mutant(
        "an error of one process unknown to the others",
        PROCESSES,
        "        if text:\n",
        "        if False:\n",
        "test_processes.py::test_an_error_of_one_is_an_error_of_both_and_says_whose",
    ),
    Mutant(
        "processes train on different reports",
        PROCESSES,
        "if (other != column[0]).any():",
        "if False:",
        "test_processes.py::test_both_must_read_the_same",
    ),
    Mutant(
        "the process that is asked to stop stops alone",
        PROCESSES,
        "number = 0 if before is None else int(before)",
        "number = int(self._interrupt.received or 0)",
        "test_processes.py::test_a_stop_is_known_one_step_later_and_keeps_its_signal",
    ),
    Mutant(
        "a checkpoint is read by process 0 for itself alone",
        CHECKPOINT,
        "values = processes.from_first(found or list(_tensors(like).values()))",
        "values = found or list(_tensors(like).values())",
        "test_processes.py::test_process_0_reads_the_checkpoint_for_both",
    ),
    # Sweeps: what members cost together, and what that rests on.
    Mutant(
        "a sweep costs what its dearest member costs",
        JOINT,
        "return least / math.sqrt(math.fsum((least / s) ** 2 for s in noise_multipliers))",
        "return least",
        "test_joint.py::test_equal_members_are_one_with_less_noise",
    ),
    Mutant(
        "a sweep's noise adds up instead of its precision",
        JOINT,
        "math.fsum((least / s) ** 2 for s",
        "math.fsum(least / s for s",
        "test_joint.py::test_one_step_by_integration",
    ),
    Mutant(
        "the steps that only some members take count for nobody",
        JOINT,
        "taking = [m for m in active if m.steps >= end]",
        "taking = [m for m in active if m.steps == ends[0]]",
        "test_joint.py::test_steps_that_only_some_take_are_joint_among_those",
    ),
    Mutant(
        "two members with the same noise",
        "sweep/members.py",
        "if seed is not None and (other := given.setdefault(seed, name)) != name:",
        "if False:",
        "test_sweep.py::test_every_member_has_noise_of_its_own",
    ),
    Mutant(
        "a member resumed with samples of its own",
        RUNDIR,
        "if secret.sampling_root != new.sampling_root:",
        "if False:",
        "test_sweep.py::test_a_run_keeps_the_samples_it_was_started_with",
    ),
    Mutant(
        "a sweep refused by the ledger still counts",
        "sweep/directory.py",
        "if new:  # refused",
        "if False:  # refused",
        "test_sweep.py::test_a_sweep_enters_the_ledger_whole_or_not_at_all",
    ),
    Mutant(
        "patients' reports swapped one by one",
        "evaluation/statistics.py",
        "swapped = rng.integers(0, 2, (size, units.max() + 1))[:, units]",
        "swapped = rng.integers(0, 2, (size, len(units)))",
        "test_statistics.py::test_the_permutation_test_has_its_size_under_the_null_and_the_wrong_one_has_not",
    ),
    # Members in one program: each keeps what is its own.
    Mutant(
        "members share noise key, scale and rate",
        TRAINER,
        "TrainState(own, each.init(own))",
        "TrainState(own, optimizer.init(own))",
        MEMBERS,
    ),
    Mutant(
        "every member's noise has the size of the first's",
        NOISE,
        "noise = stddev *",
        "noise = mechanism.stddev *",
        "test_members.py::test_noise_is_the_members_own_in_key_and_size",
    ),
    Mutant(
        "every member is clipped as the first",
        TRAINER,
        "jnp.float32(own.l2_clip_norm if",
        "jnp.float32(stage.mechanism.l2_clip_norm if",
        MEMBERS,
    ),
    Mutant(
        "every member is centred as the first",
        TRAINER,
        "jnp.float32(each.center)",
        "jnp.float32(members[0].center)",
        MEMBERS,
    ),
    Mutant(
        "every member has the learning rate of the first",
        "training/stages.py",
        "-rate * schedule",
        "-settings.learning_rate * schedule",
        "test_members.py::test_every_member_is_what_it_is_alone_whoever_else_is_there",
    ),
    Mutant(
        "members with samples of their own in one program",
        TRAINER,
        "settings.schedule, seed, settings.steps",
        "settings.schedule, settings.steps",
        "test_members.py::test_members_that_do_not_fit_one_program_are_refused",
    ),
    # A public start: made-up reports only, said in the statement, never mistaken for the backbone.
    Mutant(
        "levels kept of adapters that have learnt are found by those that have not",
        FROZEN_LAYERS,
        "if not _adapters_act(model, state, level):",
        "if True:",
        "test_frozen_layers.py::test_adapters_that_have_learnt_change_the_levels_above_them_alone",
    ),
    Mutant(
        "microbatches of a public start are not even",
        BATCHING,
        "rows = tuple(-(-reports // -(-reports // most)) for most in self.rows)",
        "rows = tuple(min(reports, most) for most in self.rows)",
        "test_batching.py::test_even_microbatches_are_as_many_and_leave_less_than_a_row_each_empty",
    ),
    Mutant(
        "a public start forgets to even its microbatches",
        WARM_START,
        "buckets = buckets.even(-(-size // mesh.shape[DATA]))",
        "buckets = buckets",
        "test_warm_start.py::test_its_microbatches_are_as_full_as_one_another",
    ),
    Mutant(
        "the basis is of all made-up reports",
        WARM_START,
        "lengths = below.lengths[:_SHOWN]",
        "lengths = below.lengths",
        "test_warm_start.py::test_its_center_is_that_of_so_many_made_up_reports",
    ),
    Mutant(
        "kept features are those of one basis",
        FROZEN_LAYERS,
        "and self._folder is not None and model.basis is not None:",
        "and self._folder is None and model.basis is not None:",
        "test_frozen_layers.py::test_runs_that_differ_in_their_basis_share_the_kept_features",
    ),
    Mutant(
        "kept features along no directions",
        FROZEN_LAYERS,
        "return kept if directions is None else _projected(kept, directions[...], model)",
        "return kept",
        "test_frozen_layers.py::test_runs_that_differ_in_their_basis_share_the_kept_features",
    ),
    Mutant(
        "a made-up report denies what it has",
        "data/phrasebook.py",
        'if label not in found and self.labels[label]["absent"]',
        'if self.labels[label]["absent"]',
        "test_phrasebook.py::test_a_report_says_exactly_what_its_labels_say",
    ),
    Mutant(
        "the statement keeps quiet about a public start",
        TRAIN,
        "public_start=public_start(config.warm_start),",
        "public_start=None,",
        "test_warm_start.py::test_it_costs_no_epsilon_and_the_statement_says_where_it_is_from",
    ),
    Mutant(
        "the average of the last layer and itself",
        CLASSIFIER,
        "x = (self.output(before) + x) / 2",
        "x = (x + x) / 2",
        "test_bert.py::test_the_last_two_layers_are_averaged_from_below_both",
    ),
    Mutant(
        "adapters that act and differ share the first member's features",
        "training/members.py",
        "apart = bool(ours[b][...].any() or others[b][...].any())",
        "apart = False",
        "test_members.py::test_adapters_that_act_must_be_the_same",
    ),
    Mutant(
        "a public start that depends on the secret",
        WARM_START,
        "rngs = nnx.Rngs(0 if public else secret.init_seed())",
        "rngs = nnx.Rngs(secret.init_seed())",
        "test_warm_start.py::test_it_moves_the_head_alone_or_the_adapters_too_and_nothing_else",
    ),
    Mutant(
        "one width fewer than there could be",
        BATCHING,
        "range(min(widths, len(grid)) - 1)",
        "range(min(widths, len(grid)) - 2)",
        "test_batching.py::test_no_other_widths_pad_less",
    ),
    Mutant(
        "widths that nobody has asked for",
        "training/setup.py",
        "train.widths or here.widths",
        "here.widths",
        "test_batching.py::test_a_run_has_the_widths_that_it_is_configured_to_have",
    ),
    Mutant(
        "a damaged checkpoint that stays where it is",
        CHECKPOINT,
        "            path.rename(path.with_suffix(_DAMAGED))\n",
        "",
        "test_checkpoint.py::test_damaged_ones_are_set_aside_for_the_one_before_and_count_as_how_far_it_was",
    ),
    Mutant(
        "a report cut to the widest shape",
        BATCHING,
        "if (ordered > self.widths[0]).any():",
        "if False:",
        "test_batching.py::test_a_report_longer_than_all_widths_is_an_error",
    ),
    Mutant(
        "a slot of one book filled from another's",
        "data/phrasebook.py",
        'rf"{{{file}_\\1}}"',
        'rf"{{\\1}}"',
        "test_phrasebook.py::test_the_lexicon_adds_what_shipped_files_say_of_a_name",
    ),
    Mutant(
        "the head of another label than the adapter's",
        WARM_START,
        ".set(theirs[...][:, its])",
        ".set(theirs[...][:, mine])",
        "test_warm_start.py::test_it_begins_at_an_adapter_for_the_labels_that_both_know",
    ),
    Mutant(
        "adapters of the folder not taken",
        WARM_START,
        "        nnx.update(one, nnx.state(other, nnx.LoRAParam))\n",
        "",
        "test_warm_start.py::test_it_begins_at_an_adapter_for_the_labels_that_both_know",
    ),
    Mutant(
        "noise as strong as padding is",
        WARM_START,
        "jnp.square(x_LxH), where=real",
        "jnp.square(x_LxH)",
        "test_warm_start.py::test_noise_is_as_strong_as_the_real_states",
    ),
    Mutant(
        "no noise on embeddings",
        WARM_START,
        "settings.noise and not at_feature:",
        "settings.noise and not at_feature and level:",
        "test_warm_start.py::test_noise_reaches_what_learns_and_is_the_same_again",
    ),
    # Label attention: what a label reads, in which coordinates, and how its head is clipped.
    Mutant(
        "norm of column products from one factor",
        CLIPPING,
        "norm(norm(_wide(g.left)) * _wide(g.right))",
        "norm(_wide(g.right))",
        COLUMNS,
    ),
    Mutant(
        "column products of one label alone count",
        CLIPPING,
        "norm(norm(_wide(g.left)) * _wide(g.right))",
        "jnp.max(norm(_wide(g.left)) * jnp.abs(_wide(g.right)), axis=-1)",
        COLUMNS,
    ),
    Mutant(
        "column products summed without clipping",
        CLIPPING,
        "left * scaled[..., None]",
        "left * right[..., None]",
        COLUMNS,
    ),
    Mutant(
        "a label's head in place of another's",
        TRAINER,
        "dp.OuterProducts if feature[0].ndim == 1 else dp.ColumnProducts",
        "lambda f, g: dp.ColumnProducts(f[::-1], g)",
        "test_label_attention.py::test_a_label_heads_gradient_is_its_products",
    ),
    Mutant(
        "padding is attended to",
        "models/label_attention.py",
        "jnp.where(real_L, scores, jnp.finfo(jnp.float32).min)",
        "scores",
        "test_label_attention.py::test_padding_is_not_read_and_an_empty_row_is_finite",
    ),
    Mutant(
        "queries are trained unasked",
        LORA,
        "if more else _TRAINED[mode]",
        "if True else _TRAINED[mode]",
        "test_label_attention.py::test_queries_are_trained_where_the_mode_says_so_and_a_basis_never",
    ),
    Mutant(
        "the public basis is trained in private",
        LORA,
        'nnx.Not(nnx.PathContains("basis")), ',
        "",
        "test_label_attention.py::test_queries_are_trained_where_the_mode_says_so_and_a_basis_never",
    ),
    Mutant(
        "a folded head forgets the centre",
        CLASSIFIER,
        "bias - jnp.sum(center * kernel.T, axis=-1)",
        "bias",
        "test_label_attention.py::test_a_basis_changes_coordinates_and_nothing_else",
    ),
    Mutant(
        "directions lose the public head",
        WARM_START,
        "np.concatenate([own, vectors[:, :0:-1]], axis=1)",
        "vectors[:, ::-1]",
        "test_warm_start.py::test_the_basis_is_the_made_up_mean_and_holds_the_head_and_the_widest_"
        "directions",
    ),
    Mutant(
        "a head keeps how sure it was",
        TRAIN,
        "        model.divide_logits(config.train.temperature)\n",
        "",
        "test_stage_loop.py::test_in_the_end_the_head_is_an_ordinary_one_and_its_logits_are_divided_once",
    ),
    Mutant(
        "a temperature leaves the biases",
        CLASSIFIER,
        "bias / temperature)",
        "bias)",
        "test_label_attention.py::test_a_temperature_divides_all_logits",
    ),
    Mutant(
        "released in training coordinates",
        TRAIN,
        "        model.fold_basis()\n",
        "        pass\n",
        "test_warm_start.py::test_it_costs_no_epsilon_and_the_statement_says_where_it_is_from",
    ),
    Mutant(
        "the recipe overrides what is set",
        "config.py",
        "if whole[section][field] is None:",
        "if True:",
        "test_recipe.py::test_what_is_set_is_kept_whatever_it_is",
    ),
    Mutant(
        "evidence from another sentence",
        "evaluation/evidence.py",
        "totals.argmax(axis=1)",
        "totals.argmin(axis=1)",
        "test_evidence.py::test_each_label_is_shown_its_sentence",
    ),
    # Several readers: each its own, and their logits summed.
    Mutant(
        "the first reader's bias for all",
        READERS,
        'sum(each) if path[-1] == "bias"',
        'each[0] if path[-1] == "bias"',
        "test_readers.py::test_logits_are_the_sum_of_each_reader_s[bert-label-attention]",
    ),
    Mutant(
        "every part with the whole bias",
        READERS,
        "value / model.readers",
        "value",
        "test_readers.py::test_logits_are_the_sum_of_each_reader_s[bert-label-attention]",
    ),
    Mutant(
        "the first reader's adapters for all",
        READERS,
        "variable.replace(value[number])",
        "variable.replace(value[0])",
        "test_readers.py::test_in_pytorch_and_back[bert]",
    ),
    Mutant(
        "queries on states that every reader makes anew",
        CLASSIFIER,
        "self.depth - 1 if self.readers == 1 else min(self.depth - 1, self._shared)",
        "self.depth - 1",
        "test_readers.py::test_levels_and_a_basis_change_nothing[bert]",
    ),
    Mutant(
        "readers without a basis",
        CLASSIFIER,
        "return x if self.basis is None else self.basis(x)\n            if start",
        "return x\n            if start",
        "test_readers.py::test_levels_and_a_basis_change_nothing[bert]",
    ),
    Mutant(
        "a feature longer than one reader's",
        CLASSIFIER,
        " * self.readers**-0.5",
        "",
        "test_readers.py::test_logits_are_the_sum_of_each_reader_s[bert-label-attention]",
    ),
    Mutant(
        "rows shared where readers are trained",
        "training/setup.py",
        "share, tokens = False, tokens",
        "share, tokens = share, tokens",
        "test_readers.py::test_rows_are_shared_where_no_reader_is_trained",
    ),
    Mutant(
        "readers that learn in one order",
        WARM_START,
        "buckets.widths, size, order)",
        "buckets.widths, size, 0)",
        "test_readers.py::test_each_learns_in_an_order_of_its_own_and_the_first_as_one_alone",
    ),
    Mutant(
        "readers that count twice",
        WARM_START,
        "        model.divide_logits(len(readers))  # their mean\n",
        "",
        "test_readers.py::test_each_learns_in_an_order_of_its_own_and_the_first_as_one_alone",
    ),
    Mutant(
        "the folder's first reader for all",
        WARM_START,
        "part(donor, number % donor.readers)",
        "part(donor, 0)",
        "test_readers.py::test_a_start_from_several_readers_goes_on_with_each",
    ),
    Mutant(
        "the first reader's evidence",
        "evaluation/evidence.py",
        ".mean(axis=0)",
        "[0]",
        "test_evidence.py::test_what_all_readers_read_counts",
    ),
    Mutant(
        "only the first reader checked",
        RELEASE_CHECK,
        "bundle.readers()[1:] if name",
        "[] if name",
        "test_readers.py::test_a_run_with_two_readers_is_released_whole[head]",
    ),
    # Tasks: of one class, its own loss, decision and names, from the loader to the release.
    Mutant(
        "one class by the binary loss",
        TASKS,
        "loss=multiclass_loss",
        "loss=multilabel_loss",
        "test_tasks.py::test_the_loss_is_minus_the_log_probability_of_the_class",
    ),
    Mutant(
        "every stage trains for several labels",
        TRAINER,
        "task = TASKS[merged.task]",
        'task = TASKS["multi-label"]',
        "test_baseline.py::test_trajectories_stay_together[classes]",
    ),
    Mutant(
        "a public start learns for several labels",
        WARM_START,
        "return TASKS[model.task].loss(",
        'return TASKS["multi-label"].loss(',
        "test_tasks.py::test_a_public_start_learns_by_the_tasks_loss",
    ),
    Mutant(
        "a class must reach the threshold",
        TASKS,
        "decide=_largest",
        "decide=lambda probabilities: probabilities >= DECISION_THRESHOLD",
        "test_tasks.py::test_the_likeliest_class_is_decided_whatever_its_probability",
    ),
    Mutant(
        "made-up reports of one class have several",
        "data/phrasebook.py",
        "            if one_class:\n",
        "            if False:\n",
        "test_tasks.py::test_made_up_reports_have_one_class",
    ),
    Mutant(
        "classes are read off the labels",
        "data/arrays.py",
        "    if classes is None:\n",
        "    classes = list(values) if classes is None else classes\n    if False:\n",
        "test_tasks.py::test_what_is_no_class_is_said_by_its_place",
    ),
    Mutant(
        "a class is tested that was never trained",
        TABLES,
        "    if one_class:\n        _require_in_training(dataset, source)\n",
        "",
        "test_tables.py::test_a_class_that_training_lacks_is_named",
    ),
    Mutant(
        "a release does not say its task",
        "models/checkpoints.py",
        'if value.pop("task") != Description.task:',
        'if value.pop("task") is None:',
        "test_tasks.py::test_the_release_says_its_task_and_answers_the_same_elsewhere",
    ),
    # Streams of one secret: none is used twice, none is narrower than it says.
    Mutant(
        "all stages have one noise key",
        RANDOMNESS,
        'f"noise/{stage}"',
        '"noise"',
        "test_randomness.py::test_no_two_releases_of_a_run_or_of_two_have_the_same_noise",
    ),
    Mutant(
        "all stages have one secure noise",
        RANDOMNESS,
        'f"secure noise/{stage}"',
        '"secure noise"',
        "test_randomness.py::test_no_two_releases_of_a_run_or_of_two_have_the_same_noise",
    ),
    Mutant(
        "all stages draw the same units",
        RANDOMNESS,
        'f"sampling/{stage}"',
        '"sampling"',
        STREAMS,
    ),
    Mutant(
        "streams of the stage's name alone",
        RANDOMNESS,
        "key=root or self.root",
        'key=root or b"jaxdp"',
        STREAMS,
    ),
    Mutant(
        "streams of the first half of the secret",
        RANDOMNESS,
        "key=root or self.root",
        "key=root or self.root[:16]",
        STREAMS,
    ),
    Mutant(
        "a noise key of 32 bits",
        RANDOMNESS,
        'self._derive(f"noise/{stage}", 8)',
        'self._derive(f"noise/{stage}", 4) * 2',
        WIDTHS,
    ),
    Mutant(
        "a secure noise key of 128 bits",
        RANDOMNESS,
        'self._derive(f"secure noise/{stage}", 32)',
        'self._derive(f"secure noise/{stage}", 16) * 2',
        WIDTHS,
    ),
    Mutant(
        "a sampling seed of 64 bits",
        RANDOMNESS,
        'f"sampling/{stage}", 16,',
        'f"sampling/{stage}", 8,',
        WIDTHS,
    ),
    Mutant(
        "a secret of 64 bits",
        RANDOMNESS,
        "cls(os.urandom(32), ",
        "cls(os.urandom(8) * 4, ",
        "test_randomness.py::test_the_secret_is_256_bits_of_the_operating_system",
    ),
    Mutant(
        "members of a group share their noise",
        RANDOMNESS,
        'self._derive(f"noise/{stage}", 8)',
        'self._derive(f"noise/{stage}", 8, self.sampling_root)',
        "test_randomness.py::test_members_of_a_group_share_their_samples_and_nothing_else",
    ),
    Mutant(
        "the ledger shows half of the secret",
        RANDOMNESS,
        'self._derive("public id", 16).hex()',
        "self.root[:16].hex()",
        "test_randomness.py::test_no_stream_shows_a_part_of_the_secret",
    ),
    Mutant(
        "the secret is printed",
        RANDOMNESS,
        "root: bytes = dataclasses.field(repr=False)",
        "root: bytes = dataclasses.field()",
        "test_randomness.py::test_the_secret_is_not_printed",
    ),
    Mutant(
        "research seed 0 passes for the operating system's",
        RANDOMNESS,
        '"os-entropy" if research_seed is None',
        '"os-entropy" if not research_seed',
        "test_randomness.py::test_a_research_seed_is_all_there_is_to_its_secret_and_is_named",
    ),
    # Units: at most one report of each in a step, and in every other release.
    Mutant(
        "every report of a sampled patient",
        UNITS,
        "return self.members[self.offsets[units] + shown]",
        "return self.members[np.isin(np.repeat(np.arange(self.num_units), self.counts), units)]",
        "test_units.py::test_a_step_sees_one_report_of_each_sampled_patient",
    ),
    Mutant(
        "always the first report of a patient",
        UNITS,
        "self.offsets[units] + shown",
        "self.offsets[units] + 0 * shown",
        "test_units.py::test_every_report_of_a_patient_is_equally_likely",
    ),
    Mutant(
        "other patients decide which reports are kept",
        UNITS,
        'keyed_fraction(dataset.report_ids, seed, "max_reports_per_patient")',
        "np.random.default_rng(seed).random(len(patient))",
        "test_units.py::test_what_is_kept_of_a_patient_does_not_depend_on_others",
    ),
    Mutant(
        "every report of a patient in a stage's step",
        TRAINER,
        "self._units.reports_at(step, self._sampler)",
        "self._units.members",
        "test_trainer.py::test_a_patient_moves_a_step_by_at_most_the_clip_norm_however_many_reports",
    ),
    Mutant(
        "every report of a patient in the mean",
        FROZEN_LAYERS,
        "features.values[units.reports_at(0, sampler)]",
        "features.values[units.members]",
        "test_frozen_layers.py::test_a_patient_adds_at_most_the_clip_norm_to_the_mean_however_many_reports",
    ),
    Mutant(
        "the mean of all units, whatever its sampling",
        FROZEN_LAYERS,
        'secret.sampling_seed("feature mean"), mechanism.sampling_probability,',
        'secret.sampling_seed("feature mean"), 1.0,',
        "test_frozen_layers.py::test_the_mean_is_of_a_poisson_sample_of_the_units",
    ),
    Mutant(
        "a unit of the group has no more draws than one",
        GROUPS,
        "stats.binom(size, mechanism",
        "stats.binom(1, mechanism",
        "test_groups.py::test_without_sampling_a_group_divides_the_noise",
    ),
    Mutant(
        "a group's large draws left out",
        GROUPS,
        "drawn.isf(rare)",
        "drawn.isf(0.1)",
        "test_groups.py::test_is_the_mixture_over_how_many_of_the_group_are_drawn",
    ),
    Mutant(
        "a swap counted as an addition",
        GROUPS,
        "dp_accounting.NeighboringRelation.REPLACE_ONE",
        "dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE",
        "test_groups.py::test_a_swap_is_two_opposite_shifts",
    ),
    # Stages: each has its own numbers, sample and noise, and all of them are counted.
    Mutant(
        "the head stage clips as the main stage",
        STAGES,
        '"head_stage", head.l2_clip_norm,',
        '"head_stage", privacy.l2_clip_norm,',
        OWN_NUMBERS,
    ),
    Mutant(
        "the mean is clipped as the main stage",
        STAGES,
        "privacy.units, 1, mean.l2_clip_norm,",
        "privacy.units, 1, privacy.l2_clip_norm,",
        OWN_NUMBERS,
    ),
    Mutant(
        "the mean is not counted",
        STAGES,
        '{} if self.centering is None else {"feature mean": self.centering}',
        "{}",
        TO_THE_TARGET,
    ),
    Mutant(
        "the stage that is running is not counted",
        STAGES,
        "index > stage)",
        "index >= stage)",
        TO_THE_TARGET,
    ),
    Mutant(
        "fixed noise may exceed the target",
        STAGES,
        "if privacy.private and total > privacy.epsilon:",
        "if False:",
        "test_stages.py::test_unreachable_targets_are_refused_before_data_is_read[changes0-cost]",
    ),
    Mutant(
        "units drawn with their true number",
        TRAINER,
        "mechanism.sampling_probability if mechanism else min(batch",
        "min(batch",
        "test_trainer.py::test_units_are_drawn_with_the_published_probability_whatever_their_number",
    ),
    Mutant(
        "every stage draws the main stage's sample",
        TRAINER,
        "            secret.sampling_seed(stage.name),\n",
        '            secret.sampling_seed("main stage"),\n',
        OWN_SAMPLES,
    ),
    Mutant(
        "every stage releases the main stage's noise",
        TRAINER,
        "stage.mechanism, stage.name, like,",
        'stage.mechanism, "main stage", like,',
        STAGE_NOISE,
    ),
    Mutant(
        "secure noise asked for, and not used by a stage",
        TRAINER,
        "like, secure=secure_noise",
        "like, secure=False",
        STAGE_NOISE,
    ),
    Mutant(
        "a stage that is private does not clip",
        TRAINER,
        "jnp.float32(own.l2_clip_norm if",
        "jnp.float32(math.inf if",
        "test_trainer.py::test_a_patient_moves_a_step_by_at_most_the_clip_norm_however_many_reports",
    ),
    Mutant(
        "the mean has the main stage's noise",
        FROZEN_LAYERS,
        'secret.release(mechanism, "feature mean",',
        'secret.release(mechanism, "main stage",',
        MEAN_NOISE,
    ),
    Mutant(
        "secure noise asked for, and not used by the mean",
        FROZEN_LAYERS,
        "one, secure=secure_noise",
        "one, secure=False",
        MEAN_NOISE,
    ),
    # As a run goes on: what is told is what was spent, and it is saved before.
    Mutant(
        "a stopped run tells one step less",
        STAGES,
        "self.mechanisms(stage, step).values()",
        "self.mechanisms(stage, max(step - 1, 0)).values()",
        "test_stage_loop.py::test_epsilon_is_of_every_step_taken_and_of_the_mean",
    ),
    Mutant(
        "the step that was just taken is not counted",
        RUN_LOOP,
        "done = Position(position.stage, step + 1)",
        "done = Position(position.stage, step)",
        STOPPED,
    ),
    Mutant(
        "a stop does not save",
        RUN_LOOP,
        "evaluate = stop or self._due(step + 1)",
        "evaluate = self._due(step + 1)",
        STOPPED,
    ),
    Mutant(
        "shown before it is saved",
        RUN_LOOP,
        "                    metrics = self._evaluate(done, state)\n",
        "                    metrics = self._evaluate(done, state)\n"
        "                    self._show(done, metrics)\n",
        "test_stage_loop.py::test_what_is_shown_is_saved_before_and_its_epsilon_is_of_that_step",
    ),
    Mutant(
        "reports are read before the secret is kept",
        TRAIN,
        START,
        f"{FROZEN}{START}",
        "test_stage_loop.py::test_nothing_is_done_with_the_reports_before_the_start",
    ),
    Mutant(
        "the mean is not noised",
        TRAIN,
        "inputs.units, run.plan.centering,",
        "inputs.units, None,",
        AS_PLANNED,
    ),
    Mutant(
        "every stage runs the first one's mechanism",
        TRAIN,
        "run.plan.stages[index], model",
        "run.plan.stages[0], model",
        AS_PLANNED,
    ),
    Mutant(
        "an adapter that is not finite is saved",
        RUN_LOOP,
        "                self._require_finite(state.adapters, done)\n",
        "",
        "test_stage_loop.py::test_a_state_that_is_not_finite_is_neither_saved_nor_shown",
    ),
    Mutant(
        "noise used again on other patients' grouping",
        BEGIN,
        "itertools.chain(inputs.training_records(), inputs.grouping())",
        "inputs.training_records()",
        SAME_REPORTS,
    ),
    Mutant(
        "noise used again on other labels",
        "training/setup.py",
        'text.encode() + b"\\0" + labels.tobytes()',
        "text.encode()",
        SAME_REPORTS,
    ),
    Mutant(
        "the ledger is told of a part of the run",
        BEGIN,
        "mechanisms = run.plan.mechanisms()",
        "mechanisms = run.plan.mechanisms(0, 0)",
        "test_stage_loop.py::test_a_run_is_in_the_ledger_in_full_before_it_begins_and_its_secret_before_that",
    ),
    Mutant(
        "a run's budget does not reach its ledger",
        TRAIN,
        BEGUN,
        BEGUN.replace(", budget", ""),
        "test_stage_loop.py::test_a_run_begins_with_the_ledger_and_the_budget_of_its_settings",
    ),
    Mutant(
        "a started run that is refused loses its secret",
        BEGIN,
        "        if new:\n",
        "        if True:\n",
        "test_stage_loop.py::test_a_new_run_that_is_refused_has_not_started_and_one_that_goes_on_has",
    ),
    Mutant(
        "a run given up counts without what was set aside",
        CHECKPOINT,
        "_positions(directory, damaged=True)",
        "_positions(directory)",
        "test_checkpoint.py::test_a_run_that_is_given_up_counts_with_the_furthest_step_that_was_saved",
    ),
    Mutant(
        "a resumed run starts from fresh adapters",
        TRAIN,
        "        if start == saved:\n",
        "        if False:\n",
        STOPPED,
    ),
    Mutant(
        "a run per patient groups by report",
        "training/setup.py",
        "        config.privacy.unit,\n",
        '        "report",\n',
        GROUPED,
    ),
    Mutant(
        "the cap on a patient's reports is not applied",
        "training/setup.py",
        "max_reports_per_patient=config.privacy.max_reports_per_patient",
        "max_reports_per_patient=None",
        GROUPED,
    ),
    Mutant(
        "the statement names another unit",
        TRAIN,
        "privacy_unit=config.privacy.unit,",
        'privacy_unit="report",',
        STATED,
    ),
    Mutant(
        "the statement is of a part of the run",
        TRAIN,
        "        run.plan.mechanisms(),\n",
        "        run.plan.mechanisms(0, 0),\n",
        STATED,
    ),
    Mutant(
        "the statement names another generator",
        TRAIN,
        "noise_generator(config.privacy.secure_noise)",
        "noise_generator(False)",
        STATED,
    ),
    Mutant(
        "two processes may hold one run",
        RUNDIR,
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "test_checkpoint.py::test_a_run_is_held_by_one_at_a_time",
    ),
    # Durability: what must outlast a power loss is synced, and before it is relied on.
    Mutant(
        "a ledger entry is not synced",
        LEDGER,
        "        os.fsync(file.fileno())\n    except",
        "        pass\n    except",
        LEDGER_POWER,
    ),
    Mutant(
        "a ledger's key is named before it is synced",
        LEDGER,
        "                    os.fsync(out.fileno())\n",
        "",
        LEDGER_POWER,
    ),
    Mutant(
        "a new ledger's name is not synced",
        LEDGER,
        "                    os.fsync(descriptor)\n",
        "",
        LEDGER_POWER,
    ),
    Mutant(
        "the names of a ledger's new folders are not synced",
        LEDGER,
        "(folder, *(each.parent for each in made))",
        "(folder,)",
        LEDGER_POWER,
    ),
    Mutant(
        "two write to the ledger at once",
        LEDGER,
        "fcntl.flock(file, fcntl.LOCK_EX)",
        "fcntl.flock(file, fcntl.LOCK_SH)",
        "test_ledger.py::test_an_entry_waits_for_whoever_holds_the_ledger",
    ),
    Mutant(
        "a checkpoint is named before it is synced",
        FILES,
        "            os.fsync(file.fileno())\n",
        "",
        CHECKPOINT_POWER,
    ),
    Mutant(
        "a checkpoint counts before its arrays are on disk",
        CHECKPOINT,
        "            sync_tree(path)\n            sync(self._directory)\n",
        "",
        "test_checkpoint.py::test_a_checkpoint_counts_once_all_of_it_is_on_disk",
    ),
    Mutant(
        "a checkpoint's name is not synced before its hash",
        CHECKPOINT,
        "            sync(self._directory)\n",
        "",
        "test_checkpoint.py::test_a_checkpoint_counts_once_all_of_it_is_on_disk",
    ),
    Mutant(
        "no room is left for Orbax to tell",
        CHECKPOINT,
        "            self._require_room(tensors)\n",
        "",
        "test_checkpoint.py::test_no_room_is_said_before_orbax_meets_it",
    ),
    Mutant(
        "a checkpoint is taken for that of another step",
        CHECKPOINT,
        "hashlib.blake2b(repr(tuple(position)).encode(), digest_size=32)",
        "hashlib.blake2b(digest_size=32)",
        "test_checkpoint.py::test_a_checkpoint_of_another_position_or_shape_is_refused",
    ),
    Mutant(
        "a new checkpoint's name is not synced",
        FILES,
        "        sync(path.parent)\n",
        "",
        CHECKPOINT_POWER,
    ),
    Mutant(
        "the secret is not synced",
        RUNDIR,
        "write_json(self._secret_file, self._new |",
        "(lambda file, value: file.write_text(json.dumps(value)))(self._secret_file, self._new |",
        SECRET_POWER,
    ),
    Mutant(
        "others may read the secret",
        RUNDIR,
        "mkdir(mode=0o700, exist_ok=True)",
        "mkdir(exist_ok=True)",
        SECRET_POWER,
    ),
    Mutant(
        "the old checkpoint goes before the new one is there",
        CHECKPOINT,
        "            self._require_room(tensors)\n",
        "            for old in _positions(self._directory):\n"
        "                shutil.rmtree(self._path(old))\n",
        "test_checkpoint.py::test_the_one_before_is_in_force_until_the_new_one_is_there",
    ),
    Mutant(
        "others may read a ledger's key",
        LEDGER,
        "os.O_TRUNC, 0o600)",
        "os.O_TRUNC, 0o644)",
        "test_ledger.py::test_fingerprint_is_of_the_multiset_and_keyed",
    ),
    # Reports that share a row.
    Mutant(
        "reports of a row attend to those before",
        LAYERS,
        "seen = asking[:, None] == owner",
        "seen = asking[:, None] >= owner",
        f"{ROWS}::test_attention_keeps_reports_apart",
    ),
    Mutant(
        "positions go on from the report before",
        LAYERS,
        "positions - positions[begin[jnp.where(real, owner, 0)]]",
        "positions",
        f"{ROWS}::{ROW_GRADIENTS}[roberta-first]",
    ),
    Mutant(
        "all reports of a row have one adapter",
        LORA,
        "jnp.where(mine[..., None], each, 0)",
        "each",
        f"{ROWS}::test_an_adapter_keeps_reports_apart",
    ),
    Mutant(
        "an empty place adds to its neighbour's gradient",
        TRAINER,
        "where=lengths > 0)",
        "where=lengths >= 0)",
        f"{ROWS}::{ROW_GRADIENTS}[bert-cls]",
    ),
    *(
        Mutant(f"{what} reaches neighbours", where, old, new, f"{ROWS}::{killer}")
        for what, where, old, new, killer in (
            ("NaN of a value", LAYERS, "bounded(k), bounded(v)", "bounded(k), v", ATTENTION),
            ("NaN of a key", LAYERS, "bounded(k), bounded(v)", "k, bounded(v)", ATTENTION),
            ("NaN of a query", LAYERS, "attention(bounded(q)", "attention(q", ATTENTION),
            ("NaN of attention's gradient", LAYERS, "y = bounded_back(", "y = (", ATTENTION),
            ("NaN before an adapter", LORA, "x = bounded(x)", "", ADAPTER),
            ("NaN of an adapter's gradient", LORA, "y + bounded_back(", "y + (", ADAPTER),
            (
                "NaN before what pools",
                CLASSIFIER,
                "jnp.where(real[:, None], states, 0)",
                "states",
                f"{NEIGHBOURS}[mpnet-label-attention]",
            ),
        )
    ),
    Mutant(
        "what is not finite is hidden by a row",
        LAYERS,
        "jnp.where(lost[:, None, None], jnp.nan, y)",
        "y",
        f"{ROWS}::{ATTENTION}",
    ),
    Mutant(
        "a row is filled beyond its end",
        BATCHING,
        "space -= length",
        "space -= length - 1",
        "test_batching.py::test_a_plan_of_shared_rows",
    ),
    Mutant(
        "a shared row is gathered from where another report begins",
        "data/packed.py",
        "(position[:, :, None] >= ends",
        "(position[:, :, None] > ends",
        f"{ROWS}::test_reports_are_gathered_end_to_end",
    ),
    # What a family's arithmetic promises.
    Mutant(
        "positions are counted from 0",
        LAYERS,
        "(positions + 1) * is_token + self.padding",
        "(positions + 1) * is_token",
        f"{FAMILIES}::test_float64_agrees_to_1e_10[roberta-cls]",
    ),
    Mutant(
        "a padding token inside a text is counted",
        LAYERS,
        "(positions + 1) * is_token + self.padding",
        "(positions + 1) + self.padding",
        f"{FAMILIES}::test_a_padding_token_inside_a_text_has_no_position_of_its_own[roberta]",
    ),
    Mutant(
        "one position more than there is",
        "models/bert.py",
        "else padding + 1)",
        "else padding)",
        f"{FAMILIES}::test_as_many_tokens_as_there_are_positions_and_no_more[roberta]",
    ),
    Mutant(
        "local attention ends one token early",
        LAYERS,
        "(distance <= window)",
        "(distance < window)",
        LOCAL,
    ),
    Mutant(
        "local attention reads padding",
        LAYERS,
        "(keys >= 0) & (keys < length)",
        "(keys >= 0)",
        LOCAL,
    ),
    Mutant(
        "short texts have no local attention",
        LAYERS,
        "        seen &= jnp.abs(keys - jnp.arange(queries)[:, None]) <= window\n",
        "        pass\n",
        LOCAL,
    ),
    Mutant(
        "rotary positions turn the wrong way",
        LAYERS,
        "theta ** -(np",
        "theta ** (np",
        f"{FAMILIES}::test_float64_agrees_to_1e_10[modernbert-cls]",
    ),
    Mutant(
        "the layer before the last is pooled without the last norm",
        CLASSIFIER,
        "(self.output(before) + x) / 2",
        "(before + x) / 2",
        f"{FAMILIES}::test_label_attention_runs_in_pytorch_on_what_lies_beside_the_adapter[modernbert]",
    ),
    Mutant(
        "distances before and behind are mixed up",
        "models/mpnet.py",
        "(distances > 0) * half",
        "(distances < 0) * half",
        f"{FAMILIES}::test_float64_agrees_to_1e_10[mpnet-cls]",
    ),
    # What leaves by other doors than the run's release/.
    Mutant(
        "un-noised losses are pickled",
        "estimator.py",
        'state.pop("history_", None)',
        "pass",
        "test_estimator.py::test_pickle_holds_the_release_and_nothing_else_of_the_fit",
    ),
    Mutant(
        "the exact number of units is published",
        "estimator.py",
        "return number // step * step",
        "return number",
        "test_estimator.py::test_the_number_of_units_is_rounded_down_to_two_figures",
    ),
    Mutant(
        "each text is its own patient",
        "estimator.py",
        "ids if groups is None else groups_of(groups, len(texts))",
        "ids",
        "test_estimator.py::test_units_that_are_not_given_are_taken_for_public_and_that_is_said",
    ),
    Mutant(
        "a whole run is pushed",
        "released.py",
        "upload_folder(repo_id, bundle,",
        "upload_folder(repo_id, place.parent,",
        "test_hub.py::test_a_release_goes_to_the_hub_whole_and_alone_and_comes_back",
    ),
    Mutant(
        "what fails its checks is pushed",
        "released.py",
        "        if failed:\n",
        "        if False:\n",
        "test_hub.py::test_a_release_that_is_not_sound_is_not_pushed",
    ),
    Mutant(
        "what protects nobody is pushed",
        "released.py",
        "if not protected and not unprotected",
        "if False",
        "test_hub.py::test_what_protects_nobody_is_pushed_only_on_purpose",
    ),
    Mutant(
        "float32 that a GPU rounds to TensorFloat-32",
        CLASSIFIER,
        "return jax.default_matmul_precision(self.precision)",
        "return contextlib.nullcontext()",
        "test_precision.py::test_every_product_of_a_step_is_in_what_was_asked_for"
        "[cls-lora-float32]",
    ),
    Mutant(
        "tensorfloat32 that is float32",
        "training/setup.py",
        "    model.precision = compute_dtype(config)\n",
        "",
        "test_precision.py::test_every_product_of_a_step_is_in_what_was_asked_for"
        "[cls-lora-tensorfloat32]",
    ),
    Mutant(
        "frozen weights rounded in every step",
        TRAINER,
        "(lora.rounded_once(model, frozen[0]), frozen[1])",
        "(frozen[0], frozen[1])",
        "test_precision.py::test_frozen_weights_are_rounded_once_and_not_in_every_step",
    ),
    # The query stage.
    Mutant(
        "a query stage at the price of the whole",
        STAGES,
        "share=main.query_share",
        "share=0.9",
        f"{QUERY_STAGE}::test_the_plan_spends_the_share_and_meets_the_target",
    ),
    Mutant(
        "queries turn to the public head",
        TRAIN,
        f"{TURNED}{AGAIN}",
        f"{AGAIN}{TURNED}",
        f"{QUERY_STAGE}::test_queries_turn_to_the_head_that_one_stage_finds",
    ),
    Mutant(
        "the main stage goes on from the query stage's head",
        TRAIN,
        AGAIN,
        "",
        MAIN_STAGE,
    ),
    Mutant(
        "the centre of the queries before",
        TRAIN,
        "    model.label_attention.queries[...] = queries\n    names",
        "    names",
        MAIN_STAGE,
    ),
    Mutant(
        "a resumed run with the queries before",
        TRAIN,
        "                _begin_again(model, turned)\n",
        "                index == position.stage or _begin_again(model, turned)\n",
        f"{QUERY_STAGE}::test_a_stopped_run_ends_with_the_same_adapter[in the main stage]",
    ),
    Mutant(
        "what one run's queries read is kept for all",
        "training/frozen_layers.py",
        "known, self._buckets, None, self._mesh",
        "known, self._buckets, self._folder, self._mesh",
        f"{QUERY_STAGE}::test_a_stopped_run_ends_with_the_same_adapter[in the main stage]",
    ),
    Mutant(
        "a reader's query turns to another label's head",
        READERS,
        "jnp.moveaxis(weights.reshape(len(weights), model.readers, -1), 1, 0)",
        "weights.reshape(model.readers, len(weights), -1)",
        f"{QUERY_STAGE}::test_each_query_turns_to_its_own_part_of_the_head[False-3]",
    ),
    Mutant(
        "the main stage reads the features of the queries before",
        TRAIN,
        'return model.level_of(("label_attention",)) if fits else 0',
        "return model.feature_level if fits else 0",
        MAIN_STAGE,
    ),
]
