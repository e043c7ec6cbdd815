# SPDX-License-Identifier: Apache-2.0
"""One secret, many streams: each its own, as wide as it says, and silent about the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_noise import MECHANISM

from jaxdp.dp import SecureNoise
from jaxdp.training import randomness
from jaxdp.training.randomness import RunSecret, noise_generator, seed_policy

STAGES = ("feature mean", "head stage", "main stage")
LIKE = jnp.zeros(4000)


def secret(seed: int = 0, **changes) -> RunSecret:
    return RunSecret(**{"root": np.random.default_rng(seed).bytes(32)} | changes)


@pytest.fixture
def streams(monkeypatch):
    """streams(secret): name -> the bits that each of its streams is made of."""
    keys = []

    class Noted(SecureNoise):
        def __post_init__(self):
            keys.append(self.secret)

    monkeypatch.setattr(randomness.dp, "SecureNoise", Noted)

    def streams(secret):
        found = {}
        for stage in STAGES:
            release, _ = secret.release(MECHANISM, stage, LIKE, secure=False)
            found[f"noise of {stage}"] = np.asarray(
                jax.random.key_data(release.init(LIKE).key)
            ).tobytes()
            secret.release(MECHANISM, stage, LIKE, secure=True)
            found[f"secure noise of {stage}"] = keys.pop()
            found[f"samples of {stage}"] = secret.sampling_seed(stage).to_bytes(16, "little")
            found[f"subsecret of {stage}"] = secret.subsecret(stage)
        found["initial adapters"] = secret.init_seed().to_bytes(8, "little")
        found["public id"] = bytes.fromhex(secret.public_id())
        found["fingerprint"] = bytes.fromhex(secret.fingerprint([b"report"]))
        return found

    return streams


@pytest.mark.parametrize("secure", [False, True])
def test_no_two_releases_of_a_run_or_of_two_have_the_same_noise(secure):
    noise = []
    for stage in STAGES:
        for whose in (secret(0), secret(1)):
            release, draw = whose.release(MECHANISM, stage, LIKE, secure=secure)
            state = release.init(LIKE)
            for step in range(2):
                released, state = release.update(LIKE, state, **draw(step))
                noise.append(released)
    correlations = np.corrcoef(noise) - np.eye(len(noise))
    assert len(noise) == 12 and np.abs(correlations).max() < 5 / np.sqrt(LIKE.size)


def test_every_stream_has_a_key_of_its_own_from_the_whole_secret(streams):
    here, again = streams(secret()), streams(secret())
    assert here == again  # a resumed run has the same
    changed = bytearray(secret().root)
    changed[-1] ^= 1
    everything = [*here.values(), *streams(RunSecret(bytes(changed))).values()]
    starts = {bits[:8] for bits in everything}
    assert len(starts) == len(everything) == 30


def test_every_stream_is_as_wide_as_it_says(streams):
    many = [streams(secret(seed)) for seed in range(40)]
    widths = {"noise": 8, "secure": 32, "samples": 16, "subsecret": 32, "initial": 8, "public": 16}
    for name in many[0]:
        table = np.array([list(found[name]) for found in many])
        assert table.shape[1] == widths.get(name.split()[0], 32), name
        # Every byte takes many values, and none follows another.
        assert min(len(set(column)) for column in table.T) > 25, name
        assert len({tuple(column) for column in table.T}) == table.shape[1], name


def test_no_stream_shows_a_part_of_the_secret(streams):
    root = secret().root
    for name, bits in streams(secret()).items():
        assert not any(root[i : i + 4] in bits for i in range(29)), name


def test_members_of_a_group_share_their_samples_and_nothing_else(streams):
    group = bytes(range(32))
    one, two = (streams(secret(seed, sampling_root=group)) for seed in (0, 1))
    assert {name for name in one if one[name] == two[name]} == {f"samples of {s}" for s in STAGES}
    alone = streams(secret(0))
    assert {name for name in one if one[name] != alone[name]} == {f"samples of {s}" for s in STAGES}


def test_the_secret_is_256_bits_of_the_operating_system(monkeypatch):
    given = secret().root
    monkeypatch.setattr(randomness.os, "urandom", lambda size: given[:size])
    assert RunSecret.create(None).root == given


def test_a_research_seed_is_all_there_is_to_its_secret_and_is_named():
    assert RunSecret.create(0) == RunSecret.create(0) != RunSecret.create(1)
    assert [seed_policy(seed) for seed in (None, 0, 7)] == [
        "os-entropy", "fixed-for-research", "fixed-for-research",
    ]  # fmt: skip


@pytest.mark.parametrize(("secure", "name"), [(True, "SHAKE-256"), (False, "Threefry")])
def test_the_generator_that_is_named_is_the_one_that_is_used(secure, name):
    _, draw = secret().release(MECHANISM, "main stage", LIKE, secure=secure)
    assert noise_generator(secure).startswith(name) and ("draw" in draw(0)) == secure


def test_fingerprint_is_keyed_and_of_the_records_in_their_order():
    records = [b"one", b"two"]
    found = secret().fingerprint(records)
    assert found == secret().fingerprint(iter(records)) != secret(1).fingerprint(records)
    for other in ([b"two", b"one"], [b"onetwo"], [b"on", b"etwo"], [b"one"]):
        assert secret().fingerprint(other) != found


def test_the_secret_is_not_printed():
    shown = repr(secret(sampling_root=bytes(range(32))))
    assert shown == "RunSecret()"
