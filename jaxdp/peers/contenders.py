# SPDX-License-Identifier: Apache-2.0
"""Who takes part, and how on which platform."""

from typing import Any, NamedTuple

from .machine import torch_device

OURS, TORCH = "jax_side.OurTrainer", "torch_side.TorchTrainer"


class Contender(NamedTuple):
    """One way to train, in a process of its own."""

    side: str
    """What the process runs, see `side.begin`."""
    options: dict[str, Any]
    """Of the side, beside those of `options_on`."""
    baseline: str = "ours"
    """Whose reports per second are divided by this one's."""
    layers: str = "all"
    """lora.layers."""
    wanted: float | None = None
    """Least that this ratio should be, on a CPU."""

    @property
    def tunes(self) -> bool:
        """Whether its user has to choose how many reports are computed at once."""
        return self.side != OURS

    def options_on(self, platform: str) -> dict[str, Any]:
        """All options of the side."""
        options = {"physical_batch": USUAL[platform].at_once[0]} if self.tunes else {}
        if self.side == TORCH:
            dtype = "float32" if platform == "cpu" else "tensorfloat32"
            options |= {"device": torch_device(platform), "dtype": dtype}
        return options | self.options


PADDINGS = ("fixed", "dynamic", "sorted")
"""Of PyTorch's batches, see `TorchTrainer`."""


def _torch(name: str, method: str, wanted: dict[str, float], **fields) -> dict[str, Contender]:
    return {
        f"{name}-{padding}": Contender(
            TORCH, {"method": method, "padding": padding}, wanted=wanted.get(padding), **fields
        )
        for padding in PADDINGS
    }


_LAST2 = {"layers": "last:2", "baseline": "ours-last2"}
_FLOAT32 = {
    "ours": Contender(OURS, {"private": True}),
    "ours-nonprivate": Contender(OURS, {"private": False}, wanted=1 / 1.05),
    "jax-privacy": Contender("jax_privacy_side.JaxPrivacy", {}, wanted=1.5),
    **_torch("opacus", "hooks", {"fixed": 2.0, "dynamic": 1.7, "sorted": 1.7}),
    **_torch("ghost", "ghost", {}),
    **_torch("torch", "none", {}),
    "ours-last2": Contender(OURS, {"private": True}, **_LAST2),
    **_torch("opacus-last2", "hooks", dict.fromkeys(PADDINGS, 4.0), **_LAST2),
}
CONTENDERS = _FLOAT32 | {
    "ours-tf32": Contender(OURS, {"private": True, "dtype": "tensorfloat32"}),
    "opacus-bf16": Contender(TORCH, {"method": "hooks", "padding": "sorted", "dtype": "bfloat16"}),
    "torch-bf16": Contender(TORCH, {"method": "none", "padding": "sorted", "dtype": "autocast"}),
}
"""What they are: `jaxdp benchmark --help`. With LoRA on the last two layers only, ours trains on
the cached layers below, and Opacus with those frozen. The last three say what they multiply in, for
the others the platform does: float32 on a CPU; on a GPU bfloat16 for ours and JAX-Privacy,
TensorFloat-32 for PyTorch."""


class Usual(NamedTuple):
    """What is measured where no flag says otherwise, and with --quick."""

    batch: float
    names: tuple[str, ...]
    quick_batch: float
    quick_names: tuple[str, ...]
    at_once: tuple[int, ...]
    """Reports computed at once, where the user chooses: the first, or the fastest of those."""


_QUICK = ("ours", "ours-nonprivate", "jax-privacy", "opacus-fixed", "opacus-sorted")
_QUICK_GPU = ("ours", "ours-nonprivate", "opacus-sorted", "opacus-bf16", "torch-bf16")
USUAL = {
    "cpu": Usual(256.0, tuple(_FLOAT32), 32.0, _QUICK, (16, 32, 64)),
    "gpu": Usual(2048.0, tuple(CONTENDERS), 2048.0, _QUICK_GPU, (512, 256, 1024)),
    # One process at a time has a TPU, and PyTorch has none.
    "tpu": Usual(2048.0, ("ours",), 2048.0, ("ours",), (512, 256, 1024)),
}
