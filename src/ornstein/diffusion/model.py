"""The diffusion model as it is chosen: a process, a target and a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ornstein.choice import Choice, Load
from ornstein.diffusion.ncsn import rounded
from ornstein.diffusion.prediction import EDM, Eps, Target
from ornstein.diffusion.process import VE, VP, Process
from ornstein.errors import ConfigError
from ornstein.nn.networks import MLP, Network, UNet

if TYPE_CHECKING:
    from ornstein.data.info import DataInfo, Measure
    from ornstein.diffusion.denoiser import Denoiser


class Diffusion(Choice):
    """network + process + target, a `Denoiser` once it is built.

    network: null for one that suits the data's shape. label: how the network is told the level,
    `time` (1000 t), `log_sigma` (¼ ln(σ/α), as in EDM) or `none` (not at all but by the size of x,
    as in NCSNv2). variance: `learned` for a network that also predicts the variance of the reverse
    step (notes eq 35), with twice the outputs; an objective that trains it is `hybrid`.
    """

    kind: Literal["diffusion"] = "diffusion"
    process: Process = VP()
    target: Target = Eps()
    network: Network | None = None
    label: Literal["time", "log_sigma", "none"] = "time"
    variance: Literal["fixed", "learned"] = "fixed"

    def fitted(self, info: DataInfo, farthest: Measure | None = None) -> Diffusion:
        """This choice with everything that was left to the data filled in: the network, σ_d as
        measured, and σ_max, which stays open where nothing measures it.

        info: the data at the model's scale. farthest: measures the largest distance between two
        training samples at that scale; it is called only where it is needed.
        """
        process = self.process
        if isinstance(process, VE) and process.sigma_max is None and farthest is not None:
            process = _reaching(process, farthest())
        target = self.target
        if isinstance(target, EDM) and target.sigma_data is None:
            target = EDM(sigma_data=float(f"{info.std:.4g}"))
        network = self.network or network_for(info.shape)
        filled = {"process": process, "target": target, "network": network}
        return self.model_copy(update=filled)

    def build(self, info: DataInfo, load: Load) -> Denoiser:
        """The untrained model. Raises: ConfigError for a pair that cannot work."""
        from ornstein.diffusion.denoiser import Denoiser

        fitted = self.fitted(info)
        assert fitted.network is not None
        learned = self.variance == "learned"
        return Denoiser(
            fitted.network.build(info.shape, 2 if learned else 1),
            fitted.process,
            fitted.target,
            fitted.label,
            sigma_data=getattr(fitted.target, "sigma_data", 1.0),
            learn_spread=learned,
        )


def _reaching(process: VE, farthest: float) -> VE:
    """The process up to σ_max = `farthest`. Raises: ConfigError where that is too small."""
    sigma_max = rounded(farthest)
    if sigma_max <= process.sigma_min:
        raise ConfigError(
            f"the training samples are at most {farthest:.3g} apart, no more than the smallest "
            f"noise level ({process.sigma_min:g}); write model.process.sigma_max=1, say"
        )
    return process.but(sigma_max=sigma_max)


def network_for(shape: tuple[int, ...]) -> UNet | MLP:
    """A network for data of this shape with which two processor cores get somewhere in minutes.

    With a GPU, or with hours, a wider one pays: model.network.channels=[64,128,256].
    """
    if len(shape) == 1:
        return MLP()
    if len(shape) != 3:
        raise ConfigError(f"there is no network yet for data of shape {shape}")
    side = max(shape[1:])
    if side <= 16:
        return UNet(channels=(24, 48), blocks=1, middle_attention=False)
    if side <= 40:
        return UNet(channels=(16, 32, 64), blocks=1)
    return UNet(channels=(16, 32, 64, 128), blocks=1)
