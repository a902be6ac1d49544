"""What a plain code is asked for beyond reconstruction: rarely active units, or ones that are
hardly sensitive (notes eq 3 and 4).

    sparsity      β Σ_j KL(ρ ‖ ρ̂_j),  ρ̂_j = mean of h_j over the batch and over places
    contraction   λ ‖∂z/∂x‖_F²

KL(ρ ‖ q) = ρ log ρ/q + (1 − ρ) log (1 − ρ)/(1 − q), between laws of a coin (A. Ng, "Sparse
autoencoder", CS294A lecture notes, 2011, §3). ρ̂_j makes it a function of the whole batch, and
no sum over samples. Still it has a loss for each sample, given ρ̂ as a constant from a first pass:

    ℓ_i = β Σ_j [KL(ρ ‖ ρ̂_j) + KL'(ρ ‖ ρ̂_j) (h_ij − stopped h_ij)]

Its mean over the batch is the penalty, and the mean of its gradients is the penalty's gradient,
(1/B) Σ_i Σ_j KL'(ρ ‖ ρ̂_j) ∂h_ij, however the batch is divided.

The Jacobian ∂z/∂x (S. Rifai et al., "Contractive auto-encoders: explicit invariance during
feature extraction", ICML 2011) is a row for each unit, the gradient of that unit:

    one layer, z = a(W x + b)    Σ_j a'_j² ‖W_j‖², at the cost of the layer
    any net                      a backward pass for each unit of the code
    any net, n probes            mean over v of ‖vᵀ ∂z/∂x‖², v_j = ±1 at random: a pass for each v

The last one is unbiased, as E[v vᵀ] = I (M. Hutchinson 1990, "A stochastic estimator of the trace
of the influence matrix"; of ∂z/∂x (∂z/∂x)ᵀ here).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ornstein.autoencoders.codec import Codec
    from ornstein.nn.codec import DenseEncoder
    from ornstein.noise import Noise

LEAST = 2.0**-20
"""Mean activations count as at least this far from 0 and 1. Where float32 sigmoids have all
become 0 their gradients are 0, too, and the slope must not be infinite."""


def coin_kl(rho: float, mean: Tensor) -> Tensor:
    """KL(ρ ‖ q) in nats for each q of `mean`, of any shape, 0 < q < 1."""
    q = mean.clamp(LEAST, 1 - LEAST)
    # Divided by ρ, so that at q = ρ both are exactly log 1.
    return -rho * (q / rho).log() - (1 - rho) * ((1 - q) / (1 - rho)).log()


def coin_kl_slope(rho: float, mean: Tensor) -> Tensor:
    """Its derivative by q, (q − ρ) / (q (1 − q))."""
    q = mean.clamp(LEAST, 1 - LEAST)
    return (q - rho) / (q * (1 - q))


class Sparsity(Choice):
    """weight · Σ_j KL(ρ ‖ ρ̂_j): units in (0, 1) that are active for a share ρ of what is seen.

    For each update `sums` of a first pass, added up over all of the global batch, give `mean`,
    and with it a call gives the loss of each sample.
    """

    kind: Literal["sparsity"] = "sparsity"
    rho: float = Field(0.05, gt=0, lt=1, description="ρ, mean activation that is asked for")
    weight: float = Field(3.0, ge=0, description="β of notes eq 3")

    def check(self, model: Codec) -> None:
        """Raises: ConfigError where units do not lie in (0, 1)."""
        from ornstein.autoencoders.continuous import PlainModule

        code = model.bottleneck
        if not (isinstance(code, PlainModule) and code.activation == "sigmoid"):
            raise ConfigError(
                "sparsity is of units between 0 and 1; write model.bottleneck.kind=plain and "
                "model.bottleneck.activation=sigmoid"
            )

    def sums(self, z: Tensor) -> dict[str, Tensor]:
        """What `mean` is made of, to be summed over the global batch; z [B, units, *]."""
        return {
            "sparsity/active": _over_places(z.detach()).sum(0),
            "sparsity/count": z.new_tensor(len(z), dtype=torch.float32),
        }

    def mean(self, totals: Mapping[str, Tensor]) -> Tensor:
        """ρ̂ [units] from the sums of the global batch."""
        return totals["sparsity/active"] / totals["sparsity/count"]

    def __call__(self, z: Tensor, mean: Tensor) -> Tensor:
        """The loss [B] of codes z [B, units, *], ρ̂ = mean [units]."""
        h = _over_places(z)
        tilt = ((h - h.detach()) * coin_kl_slope(self.rho, mean)).sum(1)  # 0, with a gradient
        return self.weight * (coin_kl(self.rho, mean).sum() + tilt)


class Contraction(Choice):
    """weight · ‖∂z/∂x‖_F², of the likeliest code z of x at the model's scale.

    probes: null for the norm itself. With a number, for an unbiased estimate from as many random
    directions, which is what several layers and many units can afford; one layer needs none.
    """

    kind: Literal["contraction"] = "contraction"
    weight: float = Field(0.1, ge=0, description="λ")
    probes: int | None = Field(None, ge=1, le=1024, description="null: exact")

    def check(self, model: Codec) -> None:
        """Raises: ConfigError where codes jump instead of changing with x."""
        from ornstein.autoencoders.continuous import GaussianModule, PlainModule, TopKModule

        if not isinstance(model.bottleneck, PlainModule | TopKModule | GaussianModule):
            raise ConfigError(
                "contraction is of codes that change little by little, and those of a codebook "
                "jump; write model.bottleneck.kind=plain, or leave the penalty out"
            )

    def __call__(self, model: Codec, x: Tensor, noise: Noise) -> Tensor:
        """The loss [B] of x [B, *shape]; noise: of the probes, if there are any.

        Raises: ConfigError where the encoder's weights are shared out over ranks.
        """
        from torch.distributed.fsdp import FSDPModule

        from ornstein.nn.codec import DenseEncoder

        encoder = model.encoder
        if isinstance(encoder, FSDPModule):
            raise ConfigError(
                "contraction takes second derivatives, and sharded networks have none; write "
                "optim.shard=off"
            )
        if isinstance(encoder, DenseEncoder) and len(encoder.net) == 1:
            # In all bottlenecks that `check` lets through a feature has a part in one unit only.
            norm = one_layer_norm(encoder, model.bottleneck, x)
        elif self.probes is None:
            norm = jacobian_norm(lambda x: model.encode(x).z, x)
        else:
            norm = estimated_norm(lambda x: model.encode(x).z, x, noise, self.probes)
        return self.weight * norm


def jacobian_norm(encode: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """‖∂z/∂x‖_F² of z = encode(x), [B], by one backward pass for each number of a code.

    encode: of samples [B, *] that do not see each other. The gradient by its weights is exact.
    """

    def units(z: Tensor) -> Iterable[Tensor]:
        for unit in torch.eye(math.prod(z.shape[1:]), dtype=z.dtype, device=z.device):
            yield unit.view(1, *z.shape[1:]).expand_as(z)

    return _squares(encode, x, units)


def estimated_norm(
    encode: Callable[[Tensor], Tensor], x: Tensor, noise: Noise, probes: int
) -> Tensor:
    """An unbiased estimate of `jacobian_norm`, [B], by one backward pass for each probe."""

    def signs(z: Tensor) -> Iterable[Tensor]:
        for i in range(probes):
            yield (2 * noise.integers(i, 2, z.shape[1:]) - 1).to(z.dtype)

    return _squares(encode, x, signs) / probes


def one_layer_norm(encoder: DenseEncoder, bottleneck: nn.Module, x: Tensor) -> Tensor:
    """The same in closed form, Σ_j a'_j² ‖W_j‖², for an encoder x -> W x + b, and a bottleneck in
    which each feature has a part in one unit at most."""
    kept = torch.is_grad_enabled()
    slope: Tensor
    with torch.enable_grad():
        h = encoder(x)
        h = h if h.requires_grad else h.requires_grad_()  # where weights are frozen
        (slope,) = torch.autograd.grad(bottleneck(h).z.sum(), h, create_graph=kept)
    weight = encoder.net[0].weight  # [features, D]
    assert isinstance(weight, torch.Tensor)
    return (slope.to(weight.dtype).square() * weight.square().sum(1)).sum(1)


def _squares(
    encode: Callable[[Tensor], Tensor],
    x: Tensor,
    directions: Callable[[Tensor], Iterable[Tensor]],
) -> Tensor:
    """Σ_v ‖vᵀ ∂z/∂x‖², [B], for directions v like z."""
    kept = torch.is_grad_enabled()  # else nobody asks for the gradient by the weights
    row: Tensor
    with torch.enable_grad(), _uncompiled():
        x = x.detach().requires_grad_()
        z = encode(x)
        total = x.new_zeros(len(x))
        for v in directions(z):
            (row,) = torch.autograd.grad(z, x, v, retain_graph=True, create_graph=kept)
            total = total + row.square().flatten(1).sum(1)
    return total


def _uncompiled() -> AbstractContextManager[Any]:
    """Within, networks run as they are written: compiled, they have no second derivatives."""
    # Where nothing was compiled so far, the compiler is not worth the two seconds of its import.
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


def _over_places(z: Tensor) -> Tensor:
    """Mean activations [B, units] of z [B, units, *], over places if it has any."""
    h = z.to(torch.promote_types(z.dtype, torch.float32))
    return h.flatten(2).mean(2) if z.dim() > 2 else h
