"""Model families that the library does not have, to show that its engine knows none of them.

Each is what a future method would bring: a choice that builds a module, an objective, and a way
of generating. `ToyRecipe` lists them in its fields, as `Recipe` lists the library's.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from ornstein.choice import Choice, RunRef
from ornstein.data.sources import Data
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.sampling import Sampling
from ornstein.nats import Nats
from ornstein.nn.frozen import Frozen
from ornstein.objectives.base import Loss
from ornstein.objectives.denoising import Denoising
from ornstein.recipe import Recipe

# (a) A vector-quantised autoencoder: the codebook has no gradient (notes eq 11-13).


class VQModule(nn.Module):
    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(width, 2), nn.Linear(2, width)
        self.register_buffer("codebook", torch.randn(codes, 2))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codebook.clone())

    def indices(self, x):
        return torch.cdist(self.encode(x.flatten(1)), self.codebook).argmin(1)


class VQ(Choice):
    kind: Literal["vq"] = "vq"
    codes: int = 8

    def build(self, info, load):
        return VQModule(torch.Size(info.shape).numel(), self.codes)


class VQObjective(Choice):
    kind: Literal["vq"] = "vq"
    range: tuple[float, float] | None = (0.0, 1.0)
    rate: float = 0.99

    def build(self, model, info, load):
        return self

    def __call__(self, model, batch, context):
        x = batch.x.flatten(1)
        z = model.encode(x)
        one_hot = nn.functional.one_hot(model.indices(x), len(model.codebook)).float()
        q = one_hot @ model.codebook
        x_hat = model.decode(z + (q - z).detach())  # straight through
        loss = (x_hat - x).square().sum(1) + 0.25 * (z - q.detach()).square().sum(1)
        sums = {"counts": one_hot.sum(0), "sums": one_hot.T @ z.detach()}
        return Loss(loss, {"distance": ((z - q).norm(dim=1).sum(), len(x))}, sums)

    def after_step(self, model, stats, context):
        model.counts.lerp_(stats["counts"], 1 - self.rate)
        model.sums.lerp_(stats["sums"], 1 - self.rate)
        model.codebook.copy_(model.sums / model.counts.clamp(min=1e-5).unsqueeze(1))


class DecodeCodes(Choice):
    kind: Literal["decode"] = "decode"

    def __call__(self, model, info, noise):
        k = noise.integers(0, len(model.codebook))
        yield model.decode(model.codebook[k]).view(-1, *info.shape)


# (b) A prior over the codes of a trained run of (a), which it names by path and hash.


class PriorModule(nn.Module):
    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(codec.codebook)))
        self.frozen = Frozen(codec)  # another run's weights are not this run's

    @property
    def codec(self):
        return self.frozen.on(self.logits.device)


class Prior(Choice):
    kind: Literal["prior"] = "prior"
    codec: RunRef

    def build(self, info, load):
        return PriorModule(load(self.codec))


class CodeObjective(Choice):
    kind: Literal["codes"] = "codes"
    range: tuple[float, float] | None = (0.0, 1.0)

    def build(self, model, info, load):
        return self

    def __call__(self, model, batch, context):
        return Loss(-model.logits.log_softmax(0)[model.codec.indices(batch.x)])


class DecodePrior(Choice):
    kind: Literal["decode_prior"] = "decode_prior"

    @property
    def no_law(self):
        return None

    def likelihood(self, model, info, x, noise):
        nats = -model.logits.log_softmax(0)[model.codec.indices(x)]
        return Nats({"codes": nats}, exact=True)

    def __call__(self, model, info, noise):
        u = noise.uniform(0, (1,))
        k = torch.searchsorted(model.logits.softmax(0).cumsum(0), u).squeeze(1)
        codec = model.codec
        yield codec.decode(codec.codebook[k.clamp(max=len(codec.codebook) - 1)]).view(
            -1, *info.shape
        )


# (c) A student that follows a target network, which moves at a rate of its own.


class Linear(Choice):
    kind: Literal["linear"] = "linear"

    def build(self, info, load):
        return nn.Linear(info.shape[0], info.shape[0])


class FollowModule(nn.Module):
    range = None

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__()
        self.target, self.rate = copy.deepcopy(model).requires_grad_(False), rate

    def forward(self, model, batch, context):
        noisy = batch.x + 0.1 * context.noise.normal(0, batch.x.shape[1:])
        goal = 0.5 * (self.target(batch.x) + batch.x)
        return Loss((model(noisy) - goal).square().mean(1))

    def after_step(self, model, stats, context):
        for slow, fast in zip(self.target.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.rate)


class Follow(Choice):
    kind: Literal["follow"] = "follow"
    range: tuple[float, float] | None = None
    rate: float = 0.9

    def build(self, model, info, load):
        return FollowModule(model, self.rate)


class Apply(Choice):
    kind: Literal["apply"] = "apply"

    def __call__(self, model, info, noise):
        yield model(noise.normal(0, info.shape))


# (e) A sequence model, whose generation is a rollout.


class SequenceModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.mean = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x, state=None):
        h, state = self.memory(x, state)
        return self.mean(h), state


class Sequence(Choice):
    kind: Literal["sequence"] = "sequence"

    def build(self, info, load):
        return SequenceModule()


class NextValue(Choice):
    kind: Literal["next"] = "next"
    range: tuple[float, float] | None = None

    def build(self, model, info, load):
        return self

    def nats(self, model, x):
        shifted = nn.functional.pad(x.unsqueeze(-1), (0, 0, 1, 0))[:, :-1]
        error = x - model(shifted)[0].squeeze(-1)
        return 0.5 * (error.square() + torch.log(torch.tensor(2 * torch.pi))).sum(1)

    def __call__(self, model, batch, context):
        return Loss(self.nats(model, batch.x))

    def likelihood(self, model, x, scale, noise):
        return self.nats(model, x)


class Rollout(Choice):
    kind: Literal["rollout"] = "rollout"

    def __call__(self, model, info, noise):
        z = noise.normal(0, info.shape)
        value, state, x = torch.zeros(len(z), 1, 1), None, []
        for i in range(info.shape[0]):
            mean, state = model(value, state)
            value = mean + z[:, i].view(-1, 1, 1)
            x.append(value)
        yield torch.cat(x, 1).squeeze(-1)


class ToyRecipe(Recipe):
    name: str = "toy"
    data: Data
    model: Annotated[VQ | Prior | Linear | Sequence | Diffusion, Field(discriminator="kind")]
    objective: Annotated[
        VQObjective | CodeObjective | Follow | NextValue | Denoising,
        Field(discriminator="kind"),
    ]
    generation: Annotated[
        DecodeCodes | DecodePrior | Apply | Rollout | Sampling, Field(discriminator="kind")
    ]
