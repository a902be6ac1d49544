"""U-Net and MLP: published size, any image size, nothing that leaks between samples."""

import itertools
import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from ornstein.errors import ConfigError
from ornstein.nn.cond import Cond
from ornstein.nn.layers import key_dropout
from ornstein.nn.networks import MLP, Network, UNet
from ornstein.noise import Noise

TINY = UNet(channels=(8, 16), blocks=1, attention=(2,))
SMALL_MLP = MLP(width=16, depth=2)


def perturbed(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64 with no parameter left at zero."""
    generator = torch.Generator().manual_seed(seed)
    net.double()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def inputs(shape: tuple[int, ...], batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return x, 1000 * torch.rand(batch, generator=generator)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_published_parameter_count() -> None:
    choice = UNet(channels=(128, 256, 256, 256), blocks=2, attention=(2,), dropout=0.1)
    with torch.device("meta"):
        assert count(choice.build((3, 32, 32))) == 35_746_307


@pytest.mark.parametrize(
    ("choice", "shape"), [(TINY, (3, 8, 8)), (SMALL_MLP, (2,))], ids=["unet", "mlp"]
)
class TestAnyNetwork:
    def test_starts_at_zero(self, choice: UNet | MLP, shape: tuple[int, ...]) -> None:
        net = choice.build(shape, out_multiplier=2)
        x, label = inputs(shape)
        y = net(x.float(), label)
        assert y.shape == (3, 2 * shape[0], *shape[1:])
        assert torch.count_nonzero(y) == 0

    def test_samples_are_independent(self, choice: UNet | MLP, shape: tuple[int, ...]) -> None:
        net = perturbed(choice.build(shape))
        x, label = inputs(shape, batch=4)
        y = net(x, label)
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(net(x[order], label[order]), y[order])
        torch.testing.assert_close(net(x[1:2], label[1:2]), y[1:2])

    def test_gradient_reaches_every_parameter(
        self, choice: UNet | MLP, shape: tuple[int, ...]
    ) -> None:
        net = perturbed(choice.build(shape, vector=5))
        x, label = inputs(shape)
        vector = torch.randn(3, 5, dtype=torch.float64)
        net(x, label, Cond(vector=vector)).square().sum().backward()
        for name, p in net.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0, name

    def test_listens_to_label_and_vector(self, choice: UNet | MLP, shape: tuple[int, ...]) -> None:
        net = perturbed(choice.build(shape))
        x, label = inputs(shape)
        y = net(x, label)
        assert (net(x, label + 1) - y).abs().amax(dim=tuple(range(1, y.dim()))).min() > 1e-3
        nothing = torch.zeros(3, net.label_width, dtype=torch.float64)
        torch.testing.assert_close(net(x, label, Cond(vector=nothing)), y)
        assert (net(x, label, Cond(vector=nothing + 1)) - y).abs().max() > 1e-3

    def test_dropout_is_the_same_in_any_split(
        self, choice: UNet | MLP, shape: tuple[int, ...]
    ) -> None:
        net = perturbed(choice.model_copy(update={"dropout": 0.5}).build(shape))
        noise = Noise.of(0, "dropout", 4).at(3)
        x, label = inputs(shape, batch=4)
        key_dropout(net, noise)
        whole = net(x, label)
        for part in (slice(0, 1), slice(1, 4)):
            key_dropout(net, noise.of_samples(part))
            torch.testing.assert_close(net(x[part], label[part]), whole[part])
        assert (net.eval()(x, label) - whole).abs().max() > 1e-3

    def test_forward_draws_nothing_from_the_global_generator(
        self, choice: UNet | MLP, shape: tuple[int, ...]
    ) -> None:
        net = perturbed(choice.model_copy(update={"dropout": 0.5}).build(shape))
        key_dropout(net, Noise.of(0, "dropout", 3))
        before = torch.get_rng_state()
        net(*inputs(shape))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (7, 8, 8), (3, 7, 5), (2, 3, 16), (1, 1, 1), (2, 1, 9), (3, 5, 2)]
)
def test_unet_takes_any_size(shape: tuple[int, int, int]) -> None:
    net = perturbed(UNet(channels=(7, 8, 12), blocks=1, attention=(4,)).build(shape))
    x, label = inputs(shape)
    y = net(x, label)
    assert y.shape == x.shape
    assert y.isfinite().all()


def test_unet_reaches_every_pixel_of_an_odd_image() -> None:
    net = perturbed(TINY.build((1, 5, 3)))
    x, label = inputs((1, 5, 3), batch=1)
    for row, column in itertools.product(range(5), range(3)):
        moved = x.clone()
        moved[0, 0, row, column] += 1
        assert (net(moved, label) - net(x, label)).abs().min() > 1e-9  # attention mixes them all


def test_without_attention_what_a_unet_sees_is_local() -> None:
    net = perturbed(UNet(channels=(8,), blocks=1, middle_attention=False).build((1, 1, 41)))
    for module in net.modules():  # norms look at the whole image
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    x, label = inputs((1, 1, 41), batch=1)
    moved = x.clone()
    moved[..., 0] += 1
    changed = (net(moved, label) - net(x, label))[0, 0, 0].abs() > 0
    # First and last convolution, and two in each of five blocks: 12 pixels.
    assert changed[:13].all()
    assert not changed[13:].any()


def test_unet_takes_images_and_residuals() -> None:
    net = perturbed(TINY.build((3, 8, 8), image=2))
    x, label = inputs((3, 8, 8))
    image = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    y = net(x, label, Cond(image=image))
    assert (net(x, label, Cond(image=image + 1)) - y).abs().max() > 1e-3

    skips, middle = net.encode(x, net.label_maps(x, label, Cond()), Cond(image=image))
    nothing = tuple(torch.zeros_like(h) for h in (*skips, middle))
    torch.testing.assert_close(net(x, label, Cond(image=image, residuals=nothing)), y)
    for i in range(len(nothing)):
        residuals = tuple(r + (i == j) for j, r in enumerate(nothing))
        assert (net(x, label, Cond(image=image, residuals=residuals)) - y).abs().max() > 1e-3
    with pytest.raises(ConfigError, match=r"needs cond\.image"):
        net(x, label)
    with pytest.raises(ValueError, match="zip"):
        net(x, label, Cond(image=image, residuals=nothing[:-1]))


def test_conditions_that_a_network_cannot_use_are_refused() -> None:
    tokens = torch.zeros(3, 4, 8)
    unet, mlp = TINY.build((1, 8, 8)), SMALL_MLP.build((2,))
    image = torch.zeros(3, 1, 8, 8)
    with pytest.raises(ConfigError, match="tokens"):
        unet(image, torch.ones(3), Cond(tokens=tokens))
    with pytest.raises(ConfigError, match=r"takes no cond\.image"):
        unet(image, torch.ones(3), Cond(image=image))
    with pytest.raises(ConfigError, match="as a vector only"):
        mlp(torch.zeros(3, 2), torch.ones(3), Cond(tokens=tokens))


def test_networks_compile_once_and_without_graph_breaks() -> None:
    for choice, shape in (
        (TINY.model_copy(update={"dropout": 0.5}), (1, 5, 5)),
        (SMALL_MLP.model_copy(update={"dropout": 0.5}), (2,)),
    ):
        net = perturbed(choice.build(shape))
        x, label = inputs(shape)
        counter = CompileCounter()
        compiled = torch.compile(net, fullgraph=True, backend=counter)
        for step in range(3):
            key_dropout(net, Noise.of(0, "dropout", 3).at(step))
            torch.testing.assert_close(compiled(x, label), net(x, label))
        assert counter.frame_count == 1


def test_a_network_is_told_apart_by_its_kind() -> None:
    network: TypeAdapter[UNet | MLP] = TypeAdapter(Network)
    assert network.validate_python({"kind": "mlp", "width": 8}) == MLP(width=8)
    assert network.validate_python({"kind": "unet"}) == UNet()


def test_choices_that_cannot_work_say_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"\(2,\) is a vector.*write model.network=mlp"):
        UNet().build((2,))
    with pytest.raises(ConfigError, match=r"is an image.*write model.network=unet"):
        MLP().build((1, 8, 8))
    with pytest.raises(ValidationError, match=r"they are \[1, 2\]"):
        UNet(channels=(8, 8), attention=(4,))
    with pytest.raises(ValidationError, match="at least one level"):
        UNet(channels=())
    with pytest.raises(ValidationError, match="less than 1"):
        MLP(dropout=1.0)


def test_choices_do_not_import_torch() -> None:
    code = "import sys, ornstein.nn.networks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_patches_are_the_same_network_on_folded_pixels():
    """patch = 2 is the plain network on [B, 4C, H/2, W/2], unfolded again; odd sides are cut."""
    torch.manual_seed(0)
    patched = UNet(channels=(16, 32), blocks=1, patch=2).build((3, 8, 12))
    plain = UNet(channels=(16, 32), blocks=1).build((12, 4, 6))
    plain.load_state_dict(patched.state_dict())
    for net in (patched, plain):
        torch.nn.init.constant_(net.last[-1].bias, 0.5)
        torch.nn.init.ones_(net.last[-1].weight)
    x, label = torch.randn(2, 3, 8, 12), torch.tensor([1.0, 5.0])
    folded = torch.nn.functional.pixel_unshuffle(x, 2)
    expected = torch.nn.functional.pixel_shuffle(plain(folded, label), 2)
    torch.testing.assert_close(patched(x, label), expected)
    assert patched(torch.randn(2, 3, 7, 5), label).shape == (2, 3, 7, 5)
