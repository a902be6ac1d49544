"""Ornstein: generative models from autoencoders to diffusion, as one small algebra.

The public names, imported at their first use.
"""

import importlib
from typing import Any

_HOME = {
    "ornstein.autoencoders.bottlenecks": (
        *("FSQ", "VQ", "Gaussian", "Hierarchy", "Plain", "TopK"),
    ),
    "ornstein.autoencoders.code_drawing": ("CodeDrawing",),
    "ornstein.autoencoders.codec": ("Code", "Codec"),
    "ornstein.autoencoders.corruption": ("GaussianNoise", "Masking", "SaltAndPepper"),
    "ornstein.autoencoders.decoding": ("Decoding",),
    "ornstein.autoencoders.likelihoods": ("Bernoulli", "Logistic", "Normal"),
    "ornstein.autoencoders.model": ("Autoencoder",),
    "ornstein.autoencoders.penalties": ("Contraction", "Sparsity"),
    "ornstein.autoencoders.prior": ("CodePrior", "PixelCNN"),
    "ornstein.autoencoders.rollout": ("Rollout", "predict"),
    "ornstein.autoencoders.tdvae": ("StateSpace", "TDVAE"),
    "ornstein.choice": ("Choice", "RunRef"),
    "ornstein.data.info": ("Batch", "DataInfo", "Dataset"),
    "ornstein.data.augment": ("Augment",),
    "ornstein.data.sources": (
        *("Arrays", "Digits", "Folder", "Frames", "Moving", "Parquet", "Shapes", "Shards", "Toy"),
        "recognise",
    ),
    "ornstein.diffusion.bound": ("bound",),
    "ornstein.diffusion.denoiser": ("Denoiser", "bind"),
    "ornstein.diffusion.density": ("Flow", "flow_nats"),
    "ornstein.diffusion.flow": ("Adaptive", "decode", "encode", "slerp"),
    "ornstein.diffusion.grid": (
        *("Budget", "Explicit", "Karras", "Leading", "LogSNR", "Trailing", "Uniform"),
    ),
    "ornstein.diffusion.langevin": (
        *("Annealed", "Corrected", "Fixed", "Keep", "Langevin", "SignalToNoise"),
    ),
    "ornstein.diffusion.levels": ("CLEAN", "Level", "level_at", "level_of_log_snr"),
    "ornstein.diffusion.inverse": ("DPS", "MMPS", "PiGDM", "posterior"),
    "ornstein.diffusion.learned": ("Learned",),
    "ornstein.diffusion.measurements": (
        *("Blur", "Downsample", "Grey", "Mask", "Measurement", "Operator", "measured"),
    ),
    "ornstein.diffusion.model": ("Diffusion",),
    "ornstein.diffusion.oracle": ("Finite", "Mixture", "gaussian"),
    "ornstein.diffusion.prediction": (
        *("EDM", "Eps", "Prediction", "Score", "V", "Velocity", "X0"),
        *("Denoise", "clipped", "mix", "resolve"),
    ),
    "ornstein.diffusion.process": (
        *("VE", "VP", "Cosine", "Straight", "SubVP", "Tabulated"),
        *("drift_diffusion", "log_snr", "rates", "transition"),
    ),
    "ornstein.diffusion.repaint": ("RePaint",),
    "ornstein.diffusion.sampling": ("Sampling",),
    "ornstein.diffusion.sdedit": ("sdedit",),
    "ornstein.diffusion.multistep": ("Multistep", "Singlestep", "Suited"),
    "ornstein.diffusion.steps": ("Ancestral", "Heun", "Jump", "Renoise"),
    "ornstein.diffusion.sgld": ("Decay", "Posterior", "sgld"),
    "ornstein.diffusion.stochastic": ("EulerMaruyama", "StochasticHeun"),
    "ornstein.diffusion.walk": ("sample",),
    "ornstein.encoding": ("Encoding",),
    "ornstein.errors": ("ConfigError", "DataError", "OrnsteinError"),
    "ornstein.nats": ("Likelihood", "Nats", "bits_per_dim"),
    "ornstein.nn.codecnets": ("Conv", "Dense"),
    "ornstein.nn.cond": ("Cond",),
    "ornstein.nn.networks": ("MLP", "UNet"),
    "ornstein.noise": ("Noise",),
    "ornstein.objectives.adversarial": ("Adversarial",),
    "ornstein.objectives.autoencoding": ("Autoencoding", "Beta", "Capacity", "Constrained"),
    "ornstein.objectives.base": ("Context", "Loss"),
    "ornstein.objectives.denoising": (
        *("SNR", "VLB", "EDMWeight", "MinSNR", "Simple", "TruncatedSNR"),
        *("CosineTime", "Denoising", "Discrete", "Gridded", "LogNormal", "LogitNormal"),
        *("UniformLogSNR", "UniformTime"),
    ),
    "ornstein.objectives.codes": ("Codes",),
    "ornstein.objectives.perceptual": ("Perceptual",),
    "ornstein.objectives.score_matching": ("ScoreMatching",),
    "ornstein.objectives.temporal": ("Jumps", "WholeSequence"),
    "ornstein.objectives.variational": ("Hybrid", "Variational"),
    "ornstein.plan": ("Plan", "Stage"),
    "ornstein.optim": ("HalfLife", "Optim", "Power"),
    "ornstein.recipe": ("Recipe", "named"),
    "ornstein.run": ("Run",),
    "ornstein.training": ("Event", "Learner", "TrainState", "train"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'ornstein' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
