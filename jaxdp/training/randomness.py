# SPDX-License-Identifier: Apache-2.0
"""One secret per run, and independent streams derived from it."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax

from jaxdp import dp


@dataclasses.dataclass(frozen=True)
class RunSecret:
    """256 secret bits; every random stream of a run is a keyed hash (BLAKE2b) of them.

    Streams with different names are independent, and none reveals the secret or another stream.
    Whoever knows the secret can undo sampling and noise: it lives in private/ only.
    """

    root: bytes = dataclasses.field(repr=False)
    sampling_root: bytes | None = dataclasses.field(default=None, repr=False)
    """Shared with the other members of a sweep's group, whose steps then draw the same units; None
    is the run's own root."""

    @classmethod
    def create(cls, research_seed: int | None, sampling_root: bytes | None = None) -> "RunSecret":
        """From the operating system's entropy, or from a public seed for repeatable research."""
        if research_seed is None:
            return cls(os.urandom(32), sampling_root)
        seed = b"jaxdp research seed %d" % research_seed
        return cls(hashlib.blake2b(seed, digest_size=32).digest(), sampling_root)

    def _derive(self, stream: str, size: int, root: bytes | None = None) -> bytes:
        return hashlib.blake2b(stream.encode(), key=root or self.root, digest_size=size).digest()

    def sampling_seed(self, stage: str) -> int:
        """128 bits for `dp.PoissonSampler`."""
        return int.from_bytes(self._derive(f"sampling/{stage}", 16, self.sampling_root), "little")

    def release(
        self, mechanism: dp.SubsampledGaussian, stage: str, like: Any, *, secure: bool
    ) -> tuple[optax.GradientTransformation, Callable[[int], dict[str, Any]]]:
        """The release of a stage's clipped sums (a tree like `like`), noised from its own stream.

        Returns:
            The transform, and step -> what its `update` needs besides, as keyword arguments.
        """
        if secure:
            noise = dp.SecureNoise(mechanism, self._derive(f"secure noise/{stage}", 32), like)
            return noise.release(), lambda step: {"draw": noise.draw(step)}
        # All 64 bits of a threefry key are used.
        words = np.frombuffer(self._derive(f"noise/{stage}", 8), np.uint32)
        key = jax.random.wrap_key_data(jax.numpy.asarray(words), impl="threefry2x32")
        return dp.add_noise_and_average(mechanism, key), lambda step: {}

    def public_id(self) -> str:
        """Names the run in a ledger, and tells nothing else."""
        return self._derive("public id", 16).hex()

    def subsecret(self, name: str) -> bytes:
        """256 bits for another secret's root; the same for the same name."""
        return self._derive(f"secret/{name}", 32)

    def init_seed(self) -> int:
        """63 bits for the initial adapters."""
        return int.from_bytes(self._derive("init", 8), "little") >> 1

    def fingerprint(self, records: Iterable[bytes]) -> str:
        """A keyed hash of the records, in order; tells nothing without the secret."""
        return digest_of(records, key=self.root, person=b"fingerprint").hex()


def digest_of(records: Iterable[bytes], **keyed: bytes) -> bytes:
    """32 bytes that tell records, and where each ends; `keyed` as `hashlib.blake2b` takes it."""
    digest = hashlib.blake2b(digest_size=32, **keyed)
    for record in records:
        digest.update(len(record).to_bytes(8, "little"))
        digest.update(record)
    return digest.digest()


def seed_policy(research_seed: int | None) -> str:
    """How the statement names the origin of the secret."""
    return "os-entropy" if research_seed is None else "fixed-for-research"


def noise_generator(secure_noise: bool) -> str:
    """How the statement names what expands the secret to noise."""
    if secure_noise:
        return "SHAKE-256 with a 256-bit key on the host, rounded to a grid and added in integers"
    return "Threefry-2x32 with a 64-bit key, float32"
