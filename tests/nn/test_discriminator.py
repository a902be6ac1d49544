"""The patch discriminator is the published one, and judges patches of the size that it says."""

from __future__ import annotations

import pytest
import torch

from ornstein.errors import ConfigError
from ornstein.nn.discriminator import PatchDiscriminator, reach


def test_the_paper_s_discriminator():
    """70 × 70 patches; weights of its five convolutions (Isola et al. 2017, appendix 6.1.2)."""
    assert [reach(count) for count in (2, 3, 4)] == [16, 34, 70]
    net = PatchDiscriminator((3, 256, 256), (64, 128, 256, 512))
    weights = [p for name, p in net.named_parameters() if p.dim() == 4]
    assert [tuple(w.shape[:2]) for w in weights] == [
        (64, 3),
        (128, 64),
        (256, 128),
        (512, 256),
        (1, 512),
    ]
    # 2.765 million in the authors' CycleGAN, whose norms have no weights; ours have two a channel.
    assert sum(p.numel() for p in net.parameters()) == 2_764_737 + 2 * (128 + 256 + 512)
    assert net(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert float(weights[3].detach().std()) == pytest.approx(0.02, rel=0.01)


def test_a_patch_is_all_that_a_number_sees():
    """The derivative of one output by the pixels, without norms, covers reach × reach pixels."""
    net = PatchDiscriminator((1, 64, 64), (4, 8))
    inside = [layer for layer in net.net if not isinstance(layer, torch.nn.GroupNorm)]
    plain = torch.nn.Sequential(*inside)
    x = torch.randn(1, 1, 64, 64, requires_grad=True)
    plain(x)[0, 0, 15, 15].backward()
    rows, columns = (x.grad[0, 0].abs().sum(dim).nonzero().flatten() for dim in (1, 0))
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == reach(2)


def test_samples_are_judged_alone():
    net = PatchDiscriminator((3, 32, 32), (8, 16, 16))
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ConfigError, match="8 x 8 pixels nothing is left after 4 convolutions"):
        PatchDiscriminator((1, 8, 8), (4, 4, 4))
