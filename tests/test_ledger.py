# SPDX-License-Identifier: Apache-2.0
"""The ledger: never loses an entry, notices tampering, refuses to overdraw."""

import fcntl
import math
import multiprocessing
import os
import resource
import stat
import threading

import pytest
from helpers_disk import Disk
from helpers_training import start_fork

from jaxdp.dp import Ledger, LedgerError, SubsampledGaussian, epsilon_pld

LORA = SubsampledGaussian(
    units=3000, expected_batch_size=3000, steps=100, l2_clip_norm=0.1, noise_multiplier=40.0
)
HEAD = LORA.replace(noise_multiplier=90.0, steps=50)
DELTA = 1e-5


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "deep" / "ledger.jsonl")


def test_runs_on_the_same_data_compose_and_others_do_not(ledger):
    ours, theirs = ledger.fingerprint([b"a", b"b"]), ledger.fingerprint([b"a", b"c"])
    assert ledger.epsilon(ours, DELTA) == 0.0
    ledger.plan(ours, "one", {"head": HEAD, "lora": LORA})
    ledger.plan(ours, "two", {"lora": LORA})
    ledger.plan(theirs, "three", {"lora": LORA})
    assert ledger.epsilon(ours, DELTA) == epsilon_pld([HEAD, LORA, LORA], DELTA)
    assert ledger.epsilon(theirs, DELTA) == epsilon_pld([LORA], DELTA)
    assert list(ledger.runs()[ours]) == ["one", "two"]


def test_too_little_noise_is_over_any_budget_and_can_be_added_up(ledger):
    # Such is what ten members that share samples do together, each at 0.6.
    ledger.plan("d", "sweep", {"lora": LORA.replace(noise_multiplier=0.6 / 10**0.5)})
    assert ledger.epsilon("d", DELTA) == math.inf
    with pytest.raises(LedgerError, match="to epsilon inf at delta 1e-05, over the total budget"):
        ledger.plan("d", "last", {"lora": LORA}, total_budget=(100.0, DELTA))
    ledger.plan("e", "last", {"lora": LORA}, total_budget=(100.0, DELTA))


def test_fingerprint_is_of_the_multiset_and_keyed(ledger, tmp_path):
    assert ledger.fingerprint([b"a", b"b"]) == ledger.fingerprint([b"b", b"a"])
    assert ledger.fingerprint([b"a", b"a"]) != ledger.fingerprint([b"a"])
    assert ledger.fingerprint([b"ab", b"c"]) != ledger.fingerprint([b"a", b"bc"])
    assert ledger.fingerprint([b"a"]) != Ledger(tmp_path / "other").fingerprint([b"a"])
    key = ledger.path.with_name("ledger.jsonl.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and key.stat().st_size == 32


def test_a_resumed_run_counts_once_and_must_be_the_same(ledger):
    for _ in range(3):
        ledger.plan("d", "one", {"lora": LORA})
    assert len(ledger.path.read_bytes().splitlines()) == 1
    with pytest.raises(LedgerError, match="other mechanisms"):
        ledger.plan("d", "one", {"lora": LORA.replace(noise_multiplier=20.0)})
    with pytest.raises(LedgerError, match="other mechanisms"):
        ledger.plan("d", "one", {"head": HEAD})


def test_giving_up_gives_back_steps_not_taken_and_resuming_takes_them_again(ledger):
    ledger.plan("d", "one", {"lora": LORA})
    ledger.give_up("d", "one", {"lora": LORA.replace(steps=10)})
    assert ledger.epsilon("d", DELTA) == epsilon_pld([LORA.replace(steps=10)], DELTA)
    ledger.plan("d", "one", {"lora": LORA})
    assert ledger.epsilon("d", DELTA) == epsilon_pld([LORA], DELTA)
    with pytest.raises(LedgerError, match="at least these steps"):
        ledger.give_up("d", "one", {"lora": LORA.replace(steps=101)})
    with pytest.raises(LedgerError, match="at least these steps"):
        ledger.give_up("d", "never planned", {"lora": LORA})


def test_a_run_that_would_overdraw_is_refused_and_not_recorded(ledger):
    one, two = (epsilon_pld([LORA] * n, DELTA) for n in (1, 2))
    budget = ((one + two) / 2, DELTA)
    ledger.plan("d", "one", {"lora": LORA}, total_budget=budget)
    ledger.plan("d", "one", {"lora": LORA}, total_budget=budget)  # resumed: counted once
    with pytest.raises(LedgerError, match="over the total budget"):
        ledger.plan("d", "two", {"lora": LORA}, total_budget=budget)
    assert list(ledger.runs()["d"]) == ["one"]
    ledger.plan("other data", "two", {"lora": LORA}, total_budget=budget)


def test_a_line_torn_at_any_byte_loses_nothing_else(ledger):
    ledger.plan("d", "one", {"lora": LORA})
    first = ledger.path.read_bytes()
    ledger.plan("d", "two", {"lora": LORA})
    whole = ledger.path.read_bytes()
    for cut in range(len(first), len(whole)):
        ledger.path.write_bytes(whole[:cut])
        assert list(ledger.runs()["d"]) == ["one"]
        ledger.plan("d", "two", {"lora": LORA})
        assert ledger.path.read_bytes() == whole


def test_a_whole_last_entry_is_not_taken_for_a_torn_one(ledger):
    """Its newline is the one byte that a reader of lines would look at."""
    ledger.plan("d", "one", {"lora": LORA})
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-1] + b"\v")
    with pytest.raises(LedgerError, match="line 1 is not what was written"):
        ledger.runs()
    assert len(ledger.path.read_bytes()) == len(whole)


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_plan_that_finds_no_room_is_an_error_and_is_not_recorded(ledger, room):
    ledger.plan("d", "one", {"lora": LORA})
    whole = ledger.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, limits[1]))
    try:
        with pytest.raises(OSError):
            ledger.plan("d", "two", {"lora": LORA})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(ledger.runs()["d"]) == ["one"]
    assert ledger.path.read_bytes() == whole


@pytest.mark.parametrize("change", ["byte", "removed", "swapped", "added"])
def test_tampering_is_noticed(ledger, change):
    for run in ("one", "two", "three"):
        ledger.plan("d", run, {"lora": LORA})
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    lines = {
        "byte": [lines[0], lines[1].replace(b'"steps": 100', b'"steps": 101'), lines[2]],
        "removed": [lines[0], lines[2]],
        "swapped": [lines[1], lines[0], lines[2]],
        "added": [*lines, lines[0]],
    }[change]
    ledger.path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match="not what was written"):
        ledger.runs()["d"]


def test_a_lost_key_is_an_error(ledger):
    ledger.plan("d", "one", {"lora": LORA})
    os.remove(ledger.path.with_name("ledger.jsonl.key"))
    with pytest.raises(LedgerError, match="key is missing"):
        ledger.runs()["d"]
    ledger.path.with_name("ledger.jsonl.key").write_bytes(b"")
    with pytest.raises(LedgerError, match="key is damaged"):
        ledger.runs()["d"]


def test_processes_take_turns(ledger):
    ready = multiprocessing.get_context("forkserver").Barrier(2)
    writers = [start_fork(write, ready, ledger.path, name) for name in "ab"]
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(ledger.runs()["d"]) == 40


def write(ready, path, name):
    ready.wait(60)  # else one would be done before the other has begun
    for i in range(20):
        Ledger(path).plan("d", f"{name} {i}", {"lora": LORA})


def test_an_entry_and_its_key_survive_a_power_loss_once_the_plan_has_returned(
    ledger, tmp_path, monkeypatch
):
    disk, key = Disk(monkeypatch, tmp_path), ledger.path.with_name("ledger.jsonl.key")
    fingerprint = ledger.fingerprint([b"report"])
    for run in ("one", "two"):
        ledger.plan(fingerprint, run, {"lora": LORA})
        assert disk.kept(ledger.path) == ledger.path.read_bytes()
        assert disk.kept(key) == key.read_bytes()
    ledger.give_up(fingerprint, "two", {"lora": LORA.replace(steps=1)})
    assert disk.kept(ledger.path) == ledger.path.read_bytes()
    assert not disk.torn


def test_names_last_though_whoever_made_them_was_stopped(ledger, monkeypatch):
    ledger.path.parent.mkdir()
    ledger.path.touch()
    key = ledger.path.with_name("ledger.jsonl.key")
    key.write_bytes(bytes(32))
    disk = Disk(monkeypatch, ledger.path.parent)
    ledger.plan("d", "one", {"lora": LORA})
    assert disk.kept(ledger.path) == ledger.path.read_bytes()


def test_an_entry_waits_for_whoever_holds_the_ledger(ledger):
    ledger.plan("d", "one", {"lora": LORA})
    waiting = threading.Thread(target=ledger.plan, args=("d", "two", {"lora": LORA}))
    with ledger.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and b"two" not in ledger.path.read_bytes()
    waiting.join(10)
    assert list(ledger.runs()["d"]) == ["one", "two"]
