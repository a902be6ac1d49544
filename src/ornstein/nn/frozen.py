"""A trained model that another model or objective uses and does not own: a teacher, a codec."""

from __future__ import annotations

import torch
from torch import nn


class Frozen:
    """Holds a module outside the tree of the one that uses it.

    So its weights are neither trained nor averaged, and are not in the checkpoints of a run that
    refers to them by path and hash. It stays in eval mode, is never copied, and moves to a device
    when it is asked for there.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module.requires_grad_(False).eval()

    def on(self, device: torch.device) -> nn.Module:
        """The module, on this device."""
        return self._module.to(device)

    def __deepcopy__(self, memo: object) -> Frozen:
        return self
