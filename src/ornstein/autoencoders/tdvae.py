"""TD-VAE as it is chosen: a belief about the past, and states that are reached by jumps.

    x_t --encoder--> e_t --memory--> b_t        what is known of the past (notes fig 1-12)
    p_B(z_t|b_t), p_T(z_t₂|z_t₁), q_S(z_t₁|z_t₂, b_t₁, b_t₂)      gated maps, z in layers
    z_t --decoder--> p_D(x_t|z_t)

K. Gregor et al. 2019, "Temporal difference variational auto-encoder", arXiv:1806.03107, trained
with notes eq 14 (`autoencoders/jumps.py`). What differs from the paper:

    p_T, q_S    are told how long the jump is (`timed`), p_T with weights of its own for each
                length: jumps of random length would otherwise be predicted as a mixture
    t₁ = 0      the belief about no past at all, is among the times: sequences start from it
    b_t         has the encoding of the last frame beside the memory, which the layers of z share
    laws        of a layer are changes: q_S of the belief at t₁, p_T of z_t₁

The last two leave the mathematics as it is: they spare the memory and the maps what is known
already, so that what is left to learn is how frames follow each other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ornstein.autoencoders.likelihoods import LikelihoodChoice, Normal
from ornstein.choice import Choice, Load
from ornstein.errors import ConfigError
from ornstein.nn.codecnets import CodecNet, Dense

if TYPE_CHECKING:
    from torch import nn

    from ornstein.autoencoders.state_space_model import StateSpaceModule
    from ornstein.autoencoders.tdvae_model import TDVAEModule
    from ornstein.data.info import DataInfo
    from ornstein.nn.sequence import Memory


class Sequential(Choice):
    """What models of sequences of frames share: how a frame is seen and said, and what a state is.

    nets: of single frames. features: what the encoder tells the memory of a frame. belief: numbers
    of b_t that a memory keeps, beside the features of the last frame. layers, units: a state z is
    so many layers of so many numbers. hidden: of the gated maps. likelihood: a normal law whose std
    is learned makes it small before motion is learned, which is then lost beside what a sharper
    frame is worth; one that is about the data's own leaves the nats of motion their weight.
    """

    nets: CodecNet = Dense(hidden=(128,))
    features: int = Field(64, ge=1, le=65536, description="numbers that are told of a frame")
    memory: Literal["lstm", "gru"] = "lstm"
    belief: int = Field(64, ge=1, le=65536, description="numbers of what is known of the past")
    layers: int = Field(2, ge=1, le=16, description="of a state")
    units: int = Field(16, ge=1, le=65536, description="numbers of each layer")
    hidden: int = Field(128, ge=1, le=65536, description="width of the gated maps")
    likelihood: LikelihoodChoice = Normal(std=0.5)

    @property
    def state(self) -> int:
        """Numbers of a state."""
        return self.layers * self.units

    def parts(self, info: DataInfo) -> tuple[nn.Module, Memory, nn.Module, nn.Module]:
        """Encoder, memory, decoder and likelihood. Raises: ConfigError for data that are no
        sequences."""
        from ornstein.nn.sequence import Memory

        if info.kind != "sequence" or len(info.shape) != 4:
            raise ConfigError(
                f"data {info.name!r} are no sequences of frames, and this model is of nothing "
                "else; write --data moving_digits, or choose another recipe, such as vae"
            )
        frame = info.model_copy(update={"kind": "image", "shape": info.shape[1:]})
        encoder, decoder, latent = self.nets.build(
            frame.shape,
            self.state,
            self.features,
            self.likelihood.multiplier,
            frame.range[0] if frame.range else 0.0,
        )
        if math.prod(latent) != self.state:
            raise ConfigError(
                "a state has no layout, and so have no nets of its frames; write "
                "model.nets.flat=true"
            )
        memory = Memory(self.features, self.belief, self.memory)
        return encoder, memory, decoder, self.likelihood.build(frame)


class TDVAE(Sequential):
    """TD-VAE, a `TDVAEModule` once it is built.

    reach: J, the longest jump that is trained, in frames; what is farther is reached by several.
    timed: whether the transition and the smoothing are told how long a jump is. False is the
    paper's: a jump then is of any of these lengths.
    """

    kind: Literal["td_vae"] = "td_vae"
    reach: int = Field(4, ge=1, le=1000, description="J, the longest jump in frames")
    timed: bool = Field(True, description="whether a transition is told how far it goes")

    def build(self, info: DataInfo, load: Load) -> TDVAEModule:
        """The untrained model. Raises: ConfigError for data that are no sequences, or shorter than
        a jump."""
        from ornstein.autoencoders.states import States
        from ornstein.autoencoders.tdvae_model import TDVAEModule

        parts = self.parts(info)
        belief = parts[1].size
        if self.reach > info.shape[0]:
            raise ConfigError(
                f"sequences of {info.shape[0]} frames have no jumps of {self.reach}; write "
                f"model.reach={info.shape[0]} or less"
            )
        told = self.reach if self.timed else 0

        def states(given: int) -> States:
            return States(given, self.layers, self.units, self.hidden)

        return TDVAEModule(
            *parts,
            states(belief),
            states(self.state + 2 * belief + told),
            states(self.state + told + self.state * told),
            self.reach,
            self.timed,
        )


class StateSpace(Sequential):
    """A state-space model that goes one step at a time, a `StateSpaceModule` once it is built: the
    baseline beside `TDVAE`, with the same nets (see `autoencoders/state_space_model.py`)."""

    kind: Literal["state_space"] = "state_space"

    def build(self, info: DataInfo, load: Load) -> StateSpaceModule:
        """The untrained model. Raises: ConfigError for data that are no sequences."""
        from ornstein.autoencoders.state_space_model import StateSpaceModule
        from ornstein.autoencoders.states import States

        parts = self.parts(info)
        posterior = States(self.state + parts[1].size, self.layers, self.units, self.hidden)
        transition = States(self.state, self.layers, self.units, self.hidden)
        return StateSpaceModule(*parts, posterior, transition, self.state)
