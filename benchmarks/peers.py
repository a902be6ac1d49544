"""The networks of other projects that ours is timed beside, as they ship.

Each is built from its own package or source, which is not part of this project: a peer that is not
installed is named and left out. They live in an environment of their own, with the same torch:

    pip install torch diffusers einops ema-pytorch scipy tqdm
    pip install --no-deps denoising-diffusion-pytorch torchvision pytorch-fid
    git clone https://github.com/NVlabs/edm     (a non-commercial licence: run it, copy nothing)

A network is a function (x [B, C, H, W], time in [0, 1] [B]) -> [B, C, H, W] and its parameters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Peer(NamedTuple):
    """A network and how it is called."""

    module: Any
    call: Callable[[Any, Any], Any]


# By case: what makes each network as costly as ours, and of the same plan. 28 is for little time.
WIDTHS = {
    "32": {"diffusers": (32, 64, 64, 64), "lucidrains": (32, (1, 2, 4)), "edm": (32, (1, 2, 2, 2))},
    "28": {"diffusers": (16, 32, 64), "lucidrains": (16, (1, 2, 4)), "edm": (16, (1, 2, 4))},
    "8": {"diffusers": (16, 32), "lucidrains": (16, (1, 2)), "edm": (16, (1, 2))},
}
BLOCKS = {"32": 2, "28": 1, "8": 2}  # a level; lucidrains' networks always have two


def build(name: str, case: str, channels: int, side: int) -> Peer:
    """The network `name` for images of `channels` channels and `side` pixels. Raises ImportError
    where it is not installed."""
    return {"diffusers": _diffusers, "lucidrains": _lucidrains, "edm": _edm}[name](
        WIDTHS[case][name], BLOCKS[case], channels, side
    )


def _diffusers(widths: tuple[int, ...], blocks: int, channels: int, side: int) -> Peer:
    allow_torchvision()
    from diffusers import UNet2DModel

    attend = [side >> i == 16 for i in range(len(widths))]
    module = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=blocks,
        block_out_channels=widths,
        norm_num_groups=min(32, widths[0]),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attend),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attend[::-1]),
    )
    return Peer(module, lambda x, t: module(x, 1000 * t).sample)


def _lucidrains(widths: tuple[int, tuple[int, ...]], blocks: int, channels: int, side: int) -> Peer:
    allow_torchvision()
    from denoising_diffusion_pytorch import Unet

    dim, multiples = widths
    module = Unet(dim=dim, dim_mults=multiples, channels=channels)
    return Peer(module, lambda x, t: module(x, 1000 * t))


def _edm(widths: tuple[int, tuple[int, ...]], blocks: int, channels: int, side: int) -> Peer:
    source = os.environ.get("EDM_SOURCE", "")
    if not source:
        raise ImportError("EDM_SOURCE names no copy of NVlabs/edm")
    sys.path.insert(0, source)
    from training.networks import SongUNet

    base, multiples = widths
    module = SongUNet(
        img_resolution=side,
        in_channels=channels,
        out_channels=channels,
        model_channels=base,
        channel_mult=list(multiples),
        num_blocks=blocks,
        attn_resolutions=[16],
    )
    return Peer(module, lambda x, t: module(x, t, None))


def allow_torchvision() -> None:
    """Let torchvision be imported beside a build of torch that it was not made for: only its
    operators are missing, which no network here uses."""
    import torch

    if _kept:
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",):
        library.define(operator)
    _kept.append(library)
    original = torch.library.register_fake

    def register(name: Any, *args: Any, **options: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return original(name, *args, **options)

    torch.library.register_fake = register  # type: ignore[assignment]


_kept: list[Any] = []
