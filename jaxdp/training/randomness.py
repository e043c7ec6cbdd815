# SPDX-License-Identifier: Apache-2.0
"""One secret per run, and independent streams derived from it."""

import dataclasses
import hashlib
import os

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class RunSecret:
    """256 secret bits; every random stream of a run is a keyed hash (BLAKE2b) of them.

    Streams with different names are independent, and none reveals the secret or another stream.
    Whoever knows the secret can undo sampling and noise: it lives in private/ only.
    """

    root: bytes = dataclasses.field(repr=False)

    @classmethod
    def create(cls, research_seed: int | None) -> "RunSecret":
        """From the operating system's entropy, or from a public seed for repeatable research."""
        if research_seed is None:
            return cls(os.urandom(32))
        return cls(
            hashlib.blake2b(b"jaxdp research seed %d" % research_seed, digest_size=32).digest()
        )

    def _derive(self, stream: str, size: int) -> bytes:
        return hashlib.blake2b(stream.encode(), key=self.root, digest_size=size).digest()

    def sampling_seed(self, stage: str) -> int:
        """128 bits for `dp.PoissonSampler`."""
        return int.from_bytes(self._derive(f"sampling/{stage}", 16), "little")

    def noise_key(self, stage: str) -> jax.Array:
        """Typed key for `dp.add_noise_and_average`; all 64 bits of a threefry key are used."""
        words = np.frombuffer(self._derive(f"noise/{stage}", 8), np.uint32)
        return jax.random.wrap_key_data(jax.numpy.asarray(words), impl="threefry2x32")

    def public_id(self) -> str:
        """Names the run in a ledger, and tells nothing else."""
        return self._derive("public id", 16).hex()

    def init_seed(self) -> int:
        """63 bits for the initial adapters."""
        return int.from_bytes(self._derive("init", 8), "little") >> 1


def seed_policy(research_seed: int | None) -> str:
    """How the statement names the origin of the secret."""
    return "os-entropy" if research_seed is None else "fixed-for-research"
