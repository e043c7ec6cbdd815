# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and the run directory: bit for bit, or a clear refusal."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_disk import Disk

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.run import checkpoint as checkpoint_module
from jaxdp.run.checkpoint import Checkpoints, Position, furthest
from jaxdp.run.directory import RunDirectory, RunError
from jaxdp.run.give_up import give_up
from jaxdp.training.randomness import RunSecret
from jaxdp.training.stages import plan_run
from jaxdp.training.step import TrainState


def state(seed: int = 0) -> TrainState:
    """Adapters in two types, an optimizer's state, a PRNG key, a count, an empty leaf."""
    key = jax.random.key(seed)
    adapters = {
        "a": jax.random.normal(jax.random.fold_in(key, 1), (3, 5)),
        "b": jax.random.normal(jax.random.fold_in(key, 2), (7,)).astype(jnp.bfloat16),
        "none": jnp.zeros((0, 4)),
    }
    return TrainState(adapters, (optax.adam(0.1).init(adapters), jnp.copy(key), jnp.int32(seed)))


def assert_identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_state_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "deep" / "checkpoints", keep=2)
    assert checkpoints.latest() is None
    checkpoints.save(Position(0, 3), state(1))
    assert checkpoints.latest() == Position(0, 3)
    assert_identical(checkpoints.restore(Position(0, 3), state(2)), state(1))


def test_the_newest_are_kept_in_the_order_of_stages_and_steps(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for position in [Position(0, 9), Position(0, 10), Position(1, 0), Position(1, 2)]:
        checkpoints.save(position, state())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-0", "1-2"]
    assert checkpoints.latest() == Position(1, 2)


def test_a_checkpoint_that_is_damaged_anywhere_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    position = Position(1, 4)
    checkpoints.save(position, state())
    files = [path for path in (tmp_path / "1-4").rglob("*") if path.is_file()]
    assert len(files) > 5
    rng = random.Random(0)
    for path in files:
        whole = path.read_bytes()
        damaged = [b"", whole[:-1], bytes(len(whole)), whole + b"\0", None]
        damaged += [whole[: rng.randrange(len(whole))] for _ in range(5)]
        for _ in range(15):
            changed = bytearray(whole)
            changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            damaged.append(bytes(changed))
        for content in damaged:
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(RunError, match="1-4 is damaged"):
                checkpoints.restore(position, state())
        path.write_bytes(whole)
    (tmp_path / "1-4" / "more").touch()
    with pytest.raises(RunError, match="1-4 is damaged"):
        checkpoints.restore(position, state())
    (tmp_path / "1-4" / "more").unlink()
    assert_identical(checkpoints.restore(position, state()), state())


def test_a_checkpoint_of_another_position_or_shape_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(Position(0, 1), state())
    other = TrainState({**state().adapters, "a": jnp.zeros((5, 3))}, state().optimizer)
    with pytest.raises(RunError, match="0-1 is of another kind"):
        checkpoints.restore(Position(0, 1), other)
    (tmp_path / "0-1").rename(tmp_path / "0-2")
    with pytest.raises(RunError, match="0-2 is damaged"):
        checkpoints.restore(Position(0, 2), state())


def test_damaged_ones_are_set_aside_for_the_one_before_and_count_as_how_far_it_was(tmp_path):
    told = []
    checkpoints = Checkpoints(tmp_path, 3, told.append)
    for step in (1, 2, 3):
        checkpoints.save(Position(0, step), state(step))
    assert checkpoints.latest() == Position(0, 3) and not told
    for step in (2, 3):
        (tmp_path / f"0-{step}" / "more").touch()
    assert checkpoints.latest() == Position(0, 1)
    assert told == [Position(0, 3), Position(0, 2)]
    assert furthest(tmp_path) == Position(0, 3)
    assert checkpoints.latest() == Position(0, 1) and len(told) == 2
    checkpoints.save(Position(0, 2), state(2))
    assert_identical(checkpoints.restore(Position(0, 2), state()), state(2))


def test_a_checkpoint_survives_a_power_loss_once_it_is_saved(tmp_path, monkeypatch):
    disk, checkpoints = Disk(monkeypatch, tmp_path), Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(Position(0, step), state(step))
        files = [path for path in (tmp_path / f"0-{step}").rglob("*") if path.is_file()]
        assert all(disk.kept(path) == path.read_bytes() for path in files) and len(files) > 5


def test_a_checkpoint_counts_once_all_of_it_is_on_disk(tmp_path, monkeypatch):
    disk, checkpoints = Disk(monkeypatch, tmp_path), Checkpoints(tmp_path, keep=1)
    checkpoints.save(Position(0, 1), state(1))

    def power_loss(path, content):
        assert path.parent == tmp_path / "0-2" and checkpoints.latest() == Position(0, 1)
        files = [file for file in path.parent.rglob("*") if file.is_file()]
        assert all(disk.kept(file) == file.read_bytes() for file in files) and len(files) > 5
        raise OSError

    monkeypatch.setattr(checkpoint_module, "write_whole", power_loss)
    with pytest.raises(OSError):
        checkpoints.save(Position(0, 2), state(2))
    monkeypatch.undo()
    assert_identical(Checkpoints(tmp_path, 1).restore(Position(0, 1), state()), state(1))
    # What was seen nowhere is written anew, and counts as a step that may have been taken.
    assert furthest(tmp_path) == Position(0, 2)
    checkpoints.save(Position(0, 2), state(2))
    assert_identical(checkpoints.restore(Position(0, 2), state()), state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["0-2"]


def test_the_one_before_is_in_force_until_the_new_one_is_there(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(Position(0, 1), state(1))

    def no_room(*_):
        raise OSError

    monkeypatch.setattr(checkpoint_module, "write_whole", no_room)
    with pytest.raises(OSError):
        checkpoints.save(Position(0, 2), state(2))
    assert checkpoints.latest() == Position(0, 1)
    assert_identical(checkpoints.restore(Position(0, 1), state()), state(1))


def test_no_room_is_said_before_orbax_meets_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(Position(0, 1), state(1))
    asked = []

    def full(descriptor, begin, room):
        asked.append(room)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(checkpoints._orbax, "save", lambda *_: None)
    with pytest.raises(OSError) as error:
        checkpoints.save(Position(0, 2), state(2))
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "0-2")
    saved = sum(path.stat().st_size for path in (tmp_path / "0-1").rglob("*"))
    assert asked and asked[0] > saved
    assert_identical(checkpoints.restore(Position(0, 1), state()), state(1))


def config(tmp_path, **run) -> Config:
    return Config.from_dict({"privacy": {"units": 1000}, "run": {"dir": str(tmp_path), **run}})


def fresh() -> RunSecret:
    return RunSecret.create(None)


@pytest.fixture
def open_run():
    """RunDirectory, closed in the end however the test ends."""
    opened = []

    def open_run(config, resume):
        opened.append(RunDirectory(config, resume=resume))
        return opened[-1]

    yield open_run
    for run in opened:
        run.close()


def test_the_secret_is_kept_from_the_start_and_never_replaced(tmp_path, open_run):
    run = open_run(config(tmp_path), resume=False)
    first = run.secret(fresh(), [b"report"])
    assert not run.started and run.start({}) and run.started and not run.start({})
    run.close()
    with pytest.raises(RunError, match="--resume"):
        open_run(config(tmp_path), resume=False)
    run = open_run(config(tmp_path), resume=True)
    assert run.secret(fresh(), [b"report"]) == first
    for records in ([b"report", b""], [b"repor", b"t"], []):
        with pytest.raises(RunError, match="other training reports"):
            run.secret(fresh(), records)
    run.close()


def test_a_run_is_held_by_one_at_a_time(tmp_path, open_run):
    held = open_run(config(tmp_path), resume=False)
    with pytest.raises(RunError, match="in use"):
        open_run(config(tmp_path), resume=False)
    held.close()
    open_run(config(tmp_path), resume=False)


@pytest.mark.parametrize("content", ["", "{}", '{"secret": "zz", "data": ""}', "[]"])
def test_a_damaged_secret_stops_the_run(tmp_path, open_run, content):
    run = open_run(config(tmp_path), resume=False)
    run.secret(fresh(), [])
    run.start({})
    (run.private / "secret.json").write_text(content)
    with pytest.raises(RunError, match="damaged"):
        run.secret(fresh(), [])
    run.close()


def test_damaged_settings_stop_the_run(tmp_path, open_run):
    run = open_run(config(tmp_path), resume=False)
    run.secret(fresh(), [])
    run.start({})
    run.close()
    (run.path / "config.json").write_text('{"run": {')
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        open_run(config(tmp_path), resume=True)


def test_a_secret_with_a_changed_digit_stops_the_run(tmp_path, open_run):
    run = open_run(config(tmp_path), resume=False)
    run.secret(fresh(), [])
    run.start({})
    file = run.private / "secret.json"
    content = json.loads(file.read_text())
    content["secret"] = f"{int(content['secret'], 16) ^ 1:064x}"
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match="damaged"):
        run.secret(fresh(), [])
    run.close()


def test_checkpoints_without_their_secret_are_not_continued_with_another(tmp_path, open_run):
    run = open_run(config(tmp_path), resume=False)
    Checkpoints(run.checkpoints, keep=2).save(Position(0, 1), state())
    run.close()
    with pytest.raises(RunError, match=r"secret\.json is missing"):
        open_run(config(tmp_path), resume=True)


def test_before_its_start_a_run_may_change_its_settings(tmp_path, open_run):
    open_run(config(tmp_path), resume=False).close()
    run = open_run(config(tmp_path, research_seed=3), resume=False)
    assert json.loads((run.path / "config.json").read_text())["run"]["research_seed"] == 3
    run.secret(fresh(), [])
    run.start({})
    run.unstart()
    run.close()
    open_run(config(tmp_path), resume=False).close()


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("privacy", "l2_clip_norm", 0.2),
        ("privacy", "noise_multiplier", 5.0),
        ("privacy", "secure_noise", True),
        ("privacy", "units", 999),
        ("privacy", "unit", "patient"),
        ("privacy", "ledger", "ledger.jsonl"),
        ("train", "steps", 101),
        ("train", "expected_batch_size", 511.0),
        ("train", "learning_rate", 0.1),
        ("data", "max_length", 64),
        ("lora", "rank", 4),
        ("run", "research_seed", 1),
    ],
)
def test_a_started_run_keeps_what_decides_its_result(tmp_path, open_run, section, field, value):
    before = config(tmp_path)
    run = open_run(before, resume=False)
    run.secret(fresh(), [])
    run.start({})
    run.close()
    for name in ("checkpoint_every", "keep_checkpoints", "eval_every"):
        open_run(config(tmp_path, **{name: 7}), resume=True).close()
    changed = dataclasses.replace(getattr(before, section), **{field: value})
    was = re.escape(f"config.{section}.{field} = {getattr(getattr(before, section), field)!r}")
    with pytest.raises(RunError, match=was):
        open_run(dataclasses.replace(before, **{section: changed}), resume=True)


def test_a_secret_survives_a_power_loss_from_the_start_and_is_nobody_elses(
    tmp_path, open_run, monkeypatch
):
    run = open_run(config(tmp_path), resume=False)
    disk = Disk(monkeypatch, run.private)
    run.secret(fresh(), [])
    run.start({})
    file = run.private / "secret.json"
    assert disk.kept(file) == file.read_bytes() and not disk.torn
    assert run.private.stat().st_mode & 0o077 == 0


def test_a_run_that_is_given_up_counts_with_the_furthest_step_that_was_saved(tmp_path, open_run):
    privacy = {"units": 1000, "noise_multiplier": 60.0}
    settings = Config.from_dict({"privacy": privacy, "run": {"dir": str(tmp_path)}})
    run, ledger = open_run(settings, resume=False), dp.Ledger(tmp_path / "ledger")
    secret = run.secret(fresh(), [])
    run.start({})
    planned = plan_run(settings).mechanisms()
    ledger.plan("data", secret.public_id(), planned)
    run.close()

    def counted():
        return ledger.runs()["data"][secret.public_id()]

    checkpoints = Checkpoints(run.checkpoints, keep=2)
    for step in (3, 5):
        checkpoints.save(Position(0, step), state())
    (run.checkpoints / "0-5" / "more").touch()  # damaged, but it has been seen all the same
    assert checkpoints.latest() == Position(0, 3)
    assert give_up(run.path, ledger) == Position(0, 5)
    assert counted() == {"main stage": planned["main stage"].replace(steps=5)}

    moved = run.path.rename(tmp_path / "renamed")
    assert give_up(moved, ledger) == Position(0, 5) and not run.path.exists()
    shutil.rmtree(moved / "private" / "checkpoints")
    assert give_up(moved, ledger) is None, "no step was saved, so none was seen"
    (moved / "private" / "tensorboard").mkdir()
    with pytest.raises(RunError, match="checkpoints are gone, so it counts in full"):
        give_up(moved, ledger)


def test_what_is_finished_keeps_its_settings_though_private_is_gone(tmp_path, open_run):
    run = open_run(config(tmp_path), resume=False)
    run.close()
    (run.path / "metrics.json").write_text("{}")
    shutil.rmtree(run.private)
    again = open_run(config(tmp_path, research_seed=3), resume=False)
    assert again.finished
    assert json.loads((run.path / "config.json").read_text())["run"]["research_seed"] != 3
