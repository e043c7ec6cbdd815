# SPDX-License-Identifier: Apache-2.0
"""Who takes part."""

import dataclasses
from typing import Any

PHYSICAL = (16, 32, 64)
"""Reports computed at once, where the user chooses: the first, or the fastest of those."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to train, in a process of its own.

    Attributes:
        side: module of this package that the process runs.
        options: of the side that it makes.
        baseline: whose reports per second are divided by this one's.
        layers: lora.layers.
        wanted: least that this ratio should be.
    """

    side: str
    options: dict[str, Any]
    baseline: str = "ours"
    layers: str = "all"
    wanted: float | None = None

    @property
    def tunes(self) -> bool:
        """Whether its user has to choose how many reports are computed at once."""
        return "physical_batch" in self.options


PADDINGS = {
    "fixed": {"padding": "fixed"},
    "dynamic": {"padding": "dynamic"},
    "sorted": {"padding": "dynamic", "sort": True},
}
"""Of PyTorch's batches: to data.max_length; to the longest report of each physical batch, in the
order drawn; the same, of a logical batch sorted by length first."""
_PHYSICAL = {"physical_batch": PHYSICAL[0]}


def _torch(name: str, method: str, wanted: dict[str, float], **fields) -> dict[str, Contender]:
    return {
        f"{name}-{padding}": Contender(
            "torch_side",
            {"method": method} | _PHYSICAL | options,
            wanted=wanted.get(padding),
            **fields,
        )
        for padding, options in PADDINGS.items()
    }


_LAST2 = {"layers": "last:2", "baseline": "ours-last2"}
CONTENDERS = {
    "ours": Contender("jax_side", {"private": True}),
    "ours-nonprivate": Contender("jax_side", {"private": False}, wanted=1 / 1.05),
    "jax-privacy": Contender("jax_privacy_side", _PHYSICAL, wanted=1.5),
    **_torch("opacus", "hooks", {"fixed": 2.0, "dynamic": 1.7, "sorted": 1.7}),
    **_torch("ghost", "ghost", {}),
    **_torch("torch", "none", {}),
    "ours-last2": Contender("jax_side", {"private": True}, **_LAST2),
    **_torch("opacus-last2", "hooks", dict.fromkeys(PADDINGS, 4.0), **_LAST2),
}
"""jaxdp with privacy and without; `clipped_grad` of JAX-Privacy on our model, padded to
data.max_length; Opacus with hooks, with ghost clipping; PyTorch without privacy; and the same with
LoRA on the last two layers only: ours on the cached layers below, Opacus with those frozen."""
QUICK = ("ours", "ours-nonprivate", "jax-privacy", "opacus-fixed", "opacus-sorted")
