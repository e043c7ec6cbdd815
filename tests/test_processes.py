# SPDX-License-Identifier: Apache-2.0
"""Several processes train one run: they agree, fail and stop together, and one of them writes.

Two real processes over loopback train; what they have to agree on is also tested with two threads
that take themselves for processes.
"""

import io
import json
import re
import signal
import threading
import time

import numpy as np
import pytest
import safetensors.numpy
from helpers_training import (
    as_flags,
    smoke_config,
    smoke_settings,
    start_processes,
    write_collection,
    write_workspace,
)
from rich.console import Console

from jaxdp.config import ConfigError
from jaxdp.run import processes
from jaxdp.run.begin import shared_secret
from jaxdp.run.checkpoint import Checkpoints, Position
from jaxdp.run.directory import RunDirectory, RunError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.train import train
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import load_inputs
from jaxdp.training.step import TrainState

# Two threads.


@pytest.fixture
def both(monkeypatch):
    """both(fn): what fn(process) gives, or raises, in each of two."""
    me, barrier, board = threading.local(), threading.Barrier(2, timeout=20), [None, None]

    def exchange(value):
        board[me.index] = value
        barrier.wait()
        values = list(board)
        barrier.wait()
        return values

    utils = processes.multihost_utils
    faked = {
        (processes.jax, "process_count"): lambda: 2,
        (processes.jax, "process_index"): lambda: getattr(me, "index", 0),
        (utils, "process_allgather"): lambda x: np.stack(exchange(x)),
        (utils, "broadcast_one_to_all"): lambda x: exchange(x)[0],
    }

    def run(fn):
        outcomes = [None, None]

        def work(index):
            me.index = index
            try:
                outcomes[index] = fn(index)
            except Exception as error:
                outcomes[index] = error

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        with monkeypatch.context() as patch:
            for (module, name), fake in faked.items():
                patch.setattr(module, name, fake)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return outcomes

    return run


def test_only_process_0_does_what_is_for_the_first(both):
    done = []
    assert both(lambda i: processes.first(lambda: done.append(i) or "result")) == ["result", None]
    assert done == [0]


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_of_one_is_an_error_of_both_and_says_whose(both, culprit):
    def load(index):
        if index == culprit:
            raise FileNotFoundError("reports.csv: no such file")
        return "reports"

    errors = both(lambda i: processes.on_all(lambda: load(i)))
    assert isinstance(errors[culprit], FileNotFoundError)
    assert isinstance(errors[1 - culprit], RunError)
    assert str(errors[1 - culprit]) == f"process {culprit} failed: reports.csv: no such file"


def test_arrays_of_process_0_arrive_with_all_their_bits(both):
    def arrays(index):
        sign = 1 if index else -1
        return [np.array([sign * 0.0, np.nan, 1e-45 * sign], np.float32), np.array([[sign]])]

    for found in both(lambda i: processes.from_first(arrays(i))):
        for array, expected in zip(found, arrays(0), strict=True):
            assert array.dtype == expected.dtype and array.shape == expected.shape
            assert array.tobytes() == expected.tobytes()


def test_both_must_read_the_same(both):
    same = both(lambda i: processes.require_same({"reports": [b"a", b"b"]}))
    assert same == [None, None]
    for own in ([b"a", b"c"], [b"ab"], [b"a"], [b"a", b"b", b""]):
        parts = [
            {"settings": [b"x"], "reports": [b"a", b"b"]},
            {"settings": [b"x"], "reports": own},
        ]
        for error in both(lambda i, parts=parts: processes.require_same(parts[i])):
            assert isinstance(error, RunError)
            assert "process 1 has other reports than process 0" in str(error)


@pytest.mark.parametrize("shared", [None, bytes(range(32))], ids=["own samples", "shared samples"])
def test_one_run_has_one_secret(both, tmp_path, shared):
    write_workspace(tmp_path)
    config = smoke_config(tmp_path, run__research_seed=None)
    inputs = load_inputs(config)
    run = RunDirectory(config, resume=False)
    try:
        secrets = both(
            lambda i: shared_secret(RunSecret.create(None, shared), None if i else run, inputs)
        )
        expected = RunSecret(bytes.fromhex(run._new["secret"]), shared)
    finally:
        run.close()
    for secret in secrets:
        assert secret.root == expected.root != bytes(32)
        assert secret.sampling_seed("stage") == expected.sampling_seed("stage")


def test_process_0_reads_the_checkpoint_for_both(both, tmp_path):
    of = both(lambda i: Checkpoints(None if i else tmp_path, 2))
    like = TrainState({"w": np.zeros(3, np.float32)}, {"step": np.zeros((), np.int32)})
    like = processes.jax.tree.map(processes.jax.numpy.asarray, like)
    assert both(lambda i: of[i].latest()) == [None, None]
    saved = TrainState({"w": np.array([1, -0.0, 3], np.float32)}, {"step": np.int32(7)})
    position = Position(1, 20)
    both(lambda i: of[i].save(position, saved))
    assert both(lambda i: of[i].latest()) == [position, position]
    for state in both(lambda i: of[i].restore(position, like)):
        assert state.adapters["w"].tobytes() == saved.adapters["w"].tobytes()
        assert state.optimizer["step"] == 7
    file = tmp_path / "1-20" / "manifest.ocdbt"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    read = both(lambda i: of[i].restore(position, like))
    assert all(isinstance(error, RunError) and "1-20 is damaged" in str(error) for error in read)
    assert both(lambda i: of[i].latest()) == [None, None]


def test_a_stop_is_known_one_step_later_and_keeps_its_signal(monkeypatch):
    interrupt = Interrupt()
    alone = processes.SharedInterrupt(interrupt, make_mesh(1))
    assert not alone.received()
    interrupt.received = signal.SIGINT
    assert alone.received(), "one process has nobody to wait for"

    interrupt.received = None
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    shared = processes.SharedInterrupt(interrupt, make_mesh())
    assert not shared.received()
    interrupt.received = signal.SIGTERM
    assert [shared.received(), shared.received()] == [False, True]
    assert interrupt.received == signal.SIGTERM


def test_who_takes_part_comes_from_the_environment(monkeypatch):
    calls = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **k: calls.append(k))
    monkeypatch.setattr(processes.jax.config, "update", lambda *args: None)
    for name in (*processes._VARIABLES, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    processes.join()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    processes.join()
    assert not calls
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    processes.join()
    assert "coordinator_address" not in calls[0], "JAX knows how to ask SLURM"
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID"):
        processes.join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    processes.join()
    assert calls[1]["coordinator_address"] == "host:1234"
    assert (calls[1]["num_processes"], calls[1]["process_id"]) == (3, 2)


# Two processes, which have two devices each. A head alone compiles fastest.

QUICK = dict(
    train__mode="head",
    head_stage__steps=0,
    centering__l2_clip_norm=float("inf"),  # off
    privacy__noise_multiplier=20.0,
    privacy__unit="patient",  # of reports, the statement also gives epsilon for groups
    run__devices=None,
)


def settings_of(workspace, **changes):
    return smoke_settings(workspace, **QUICK | changes)


def start(workspace, *settings, resume=False):
    resume = ["--resume"] if resume else []
    return start_processes(
        *(as_flags(s) + resume for s in settings),
        JAX_NUM_CPU_DEVICES="2",
    )


def finish(running):
    """[(exit status, stdout, stderr)]"""
    outputs = [process.communicate(timeout=240) for process in running]
    return [(p.returncode, *output) for p, output in zip(running, outputs, strict=True)]


def adapter(workspace, name):
    path = workspace / "runs" / name / "release" / "adapter" / "adapter_model.safetensors"
    return safetensors.numpy.load_file(path)


def without_gloo(output):
    # Its threads write into each other's lines.
    theirs = re.compile(r"\[Gloo\]|connected peer ranks is : \d")
    return [line for line in output.splitlines() if line.strip() and not theirs.search(line)]


@pytest.mark.slow
def test_two_processes_release_the_adapter_of_one_with_the_same_secret(workspace):
    settings = settings_of(workspace, run__name="two", run__research_seed=None)
    (status, shown, errors), (other_status, other_shown, _) = finish(
        start(workspace, settings, settings)
    )
    assert status == other_status == 0, errors
    assert "may be shared" in shown and not without_gloo(other_shown)

    # One process with the secret that process 0 drew for both.
    config = smoke_config(workspace, **QUICK | dict(run__name="one", run__research_seed=None))
    run = RunDirectory(config, resume=False)
    (workspace / "runs/one/private/secret.json").write_bytes(
        (workspace / "runs/two/private/secret.json").read_bytes()
    )
    run.close()
    train(config, resume=True, interrupt=Interrupt(), monitor=Monitor(Console(file=io.StringIO())))
    one, two = adapter(workspace, "one"), adapter(workspace, "two")
    for name in one:
        # float32 sums of microbatches in another order, through Adam
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)
    statements = [
        json.loads((workspace / "runs" / name / "release/privacy.json").read_text())
        for name in ("one", "two")
    ]
    assert statements[0] == statements[1]


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_resuming_changes_nothing(workspace):
    steps = dict(train__steps=300, train__mode="lora", run__checkpoint_every=5)
    settings = settings_of(workspace, run__name="whole", **steps)
    assert [status for status, *_ in finish(start(workspace, settings, settings))] == [0, 0]

    settings = settings_of(workspace, run__name="stopped", **steps)
    running = start(workspace, settings, settings)
    checkpoints = workspace / "runs" / "stopped" / "private" / "checkpoints"
    while running[1].poll() is None and not (checkpoints / "0-5").exists():
        time.sleep(0.005)
    running[1].send_signal(signal.SIGTERM)
    (status, _, errors), (other_status, _, other_errors) = finish(running)
    assert status == other_status == 128 + signal.SIGTERM, errors + other_errors
    assert "stopped and saved after step" in errors and "stopped" not in other_errors
    assert not (workspace / "runs" / "stopped" / "release").exists()
    ended = finish(start(workspace, settings, settings, resume=True))
    assert [status for status, *_ in ended] == [0, 0]
    whole, stopped = adapter(workspace, "whole"), adapter(workspace, "stopped")
    for name in whole:
        np.testing.assert_array_equal(stopped[name], whole[name], err_msg=name)


@pytest.mark.slow
def test_other_data_or_a_run_that_cannot_go_on_is_said_by_both(workspace):
    write_collection(workspace / "other.tgz", reports=100)
    settings = settings_of(workspace, run__name="two")
    other = settings_of(workspace, run__name="two", data__root=str(workspace / "other.tgz"))
    for status, _, errors in finish(start(workspace, settings, other)):
        assert status == 1
        assert "error: process 1 has other reports than process 0" in errors
    (workspace / "runs" / "two" / "private" / "checkpoints").mkdir(exist_ok=True)
    (workspace / "runs" / "two" / "private" / "checkpoints" / "0-1").mkdir()
    (status, _, errors), (other_status, _, other_errors) = finish(
        start(workspace, settings, settings)
    )
    assert status == other_status == 1
    assert "error: " in errors and "cannot be continued" in errors
    assert "error: process 0 failed: " in other_errors and "cannot be continued" in other_errors
