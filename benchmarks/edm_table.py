"""EDM's table 1 (Karras et al. 2022, arXiv:2206.00364) in our nouns: four methods as choices.

    python benchmarks/edm_table.py [--write]

prints the table, in English and in Chinese, or writes `docs/edm-table.md` and its counterpart.
The columns are recipes with a changed setting or two, and each cell is read off them; c_skip,
c_out and c_in are computed from the target's (p, q) and the process, as what a denoiser does with
x/α at σ/α:

    x0 = (q x − σ f)/(αq − σp)   ⇒   c_skip = αq/(αq − σp),   c_out = −σ/(αq − σp)

Sampling is that of the paper's comparison: Euler or DDIM for its three forerunners.
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ornstein import Sampling
from ornstein.choice import Choice
from ornstein.diffusion.denoiser import Denoiser
from ornstein.diffusion.grid import LogSNR, Trailing, Uniform
from ornstein.diffusion.levels import Level, level_of_log_snr
from ornstein.diffusion.prediction import EDM
from ornstein.diffusion.process import VE
from ornstein.diffusion.steps import Jump
from ornstein.diffusion.stochastic import EulerMaruyama
from ornstein.objectives.variational import Hybrid
from ornstein.recipe import Recipe, named
from ornstein.settings import chosen, difference

SIGMAS = (0.1, 1.0, 10.0)  # at which functions of σ are printed
SHARES = (0.1, 0.5, 0.9)  # quantiles of the law of training levels
SIGMA_DATA = 0.5  # the paper's; the recipe measures it

EULER = EulerMaruyama(eta=0.0)
COLUMNS: dict[str, Recipe] = {
    "VP": named("vp_sde").but(generation=Sampling(step=EULER, grid=Uniform(), steps=256)),
    "VE": named("ve_sde").but(
        model=named("ve_sde").model.but(process=VE(sigma_min=0.02, sigma_max=100.0)),
        generation=Sampling(step=EULER, grid=LogSNR(), steps=256),
    ),
    "iDDPM + DDIM": named("improved_ddpm").but(
        generation=Sampling(step=Jump(eta=0.0), grid=Trailing(), steps=256)
    ),
    "EDM": named("edm"),
}


class Conditioning(NamedTuple):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise) at data scale (the paper's eq 7)."""

    c_skip: float
    c_out: float
    c_in: float
    c_noise: float


def conditioning(recipe: Recipe, sigma: float) -> Conditioning:
    """What the model of a recipe does at σ/α = sigma, from its target and its process."""
    choice = recipe.model
    target = EDM(sigma_data=SIGMA_DATA) if isinstance(choice.target, EDM) else choice.target
    sigma_data = getattr(target, "sigma_data", 1.0)
    model = Denoiser(nn.Identity(), choice.process, target, choice.label, sigma_data=sigma_data)
    level = level_of_log_snr(choice.process, -2 * math.log(sigma))
    at = model.constants(level, torch.zeros(1, 1))
    det = level.alpha * at.q - level.sigma * at.p
    return Conditioning(
        float(level.alpha * at.q / det),
        float(-level.sigma / det),
        float(level.alpha * at.scale),
        at.label.item(),
    )


def weight(recipe: Recipe, sigma: float) -> float:
    """λ(σ) of ‖x̂0 − x0‖²; for `hybrid`, of its first term."""
    choice = recipe.model
    target = EDM(sigma_data=SIGMA_DATA) if isinstance(choice.target, EDM) else choice.target
    level = level_of_log_snr(choice.process, -2 * math.log(sigma))
    p, q = target(choice.process, level)
    of_image = ((level.alpha * q - level.sigma * p) / level.sigma) ** 2
    weighting = getattr(recipe.objective, "weighting", None)
    return float(
        of_image * (1.0 if weighting is None else weighting(target, choice.process, level))
    )


def levels(recipe: Recipe, u: torch.Tensor) -> torch.Tensor:
    """σ/α of training levels at some quantiles u of their law, rising with u."""
    law, process = getattr(recipe.objective, "levels", None), recipe.model.process
    if law is None:  # the pairs of a chain, drawn evenly
        assert isinstance(recipe.objective, Hybrid)
        steps = recipe.objective.steps
        t = (torch.floor(u * steps) + 1) / steps
        level = Level(t, *process(t))
    else:
        level = law(process, u)
    return torch.as_tensor(level.sigma / level.alpha)


def said(choice: Choice) -> str:
    """A choice as one writes it: its kind and what is not left at its default."""
    kept = chosen(choice)
    return " ".join([f"`{kept.pop('kind')}`", *(f"{key}={value}" for key, value in kept.items())])


def noised(recipe: Recipe) -> str:
    alpha, sigma = recipe.model.process(torch.tensor([recipe.model.process.smallest, 1.0]).double())
    low, high = (sigma / alpha).tolist()
    return f"{low:.3g} … {high:.3g}"


def numbers(values: list[float]) -> str:
    return ", ".join(f"{round(value, 9) + 0.0:.3g}" for value in values)


def written(recipe: Recipe) -> str:
    """The recipe's name, and a star where settings are changed."""
    return f"`{recipe.name}`" + (" *" if difference(named(recipe.name), recipe) else "")


LINES = (
    ("recipe", "配方"),
    ("process", "过程"),
    ("σ/α, least to most", "σ/α，最小到最大"),
    ("sampling: grid", "采样：网格"),
    ("sampling: step", "采样：步"),
    ("sampling: evaluations", "采样：求值次数"),
    ("target", "目标"),
    ("c_skip at σ = 0.1, 1, 10", "c_skip，σ = 0.1、1、10"),
    ("c_out", "c_out"),
    ("c_in", "c_in"),
    ("c_noise: label", "c_noise：标签"),
    ("training: objective", "训练：目标函数"),
    ("training: levels", "训练：噪声水平"),
    ("training: σ/α at quantiles 0.1, 0.5, 0.9", "训练：σ/α 的 0.1、0.5、0.9 分位数"),
    ("training: weighting", "训练：权重"),
    ("training: λ(σ) on x̂0 at σ = 0.1, 1, 10", "训练：x̂0 上的 λ(σ)，σ = 0.1、1、10"),
)
ENGLISH = """\
# EDM's table, in our nouns

Table 1 of Karras et al. 2022 (arXiv:2206.00364), read off recipes by `benchmarks/edm_table.py`.
A star: the recipe with the sampling of the paper's comparison, and for VE its noise levels.

Where we differ from the paper: VE's network sees c_in x where theirs sees x, and says ε where
theirs says −ε, so that c_out has the other sign; its Euler goes in t and not in σ². Labels
are 1000 t for 999 t of VP, ¼ ln σ for ln ½σ of VE, and of iDDPM the row counted from 1 and not from
0; the strides of DDIM are even and begin at the last row.
"""
CHINESE = """\
# EDM 的表，用我们的名词

Karras et al. 2022（arXiv:2206.00364）的表 1，由 `benchmarks/edm_table.py` 从配方中读出。
星号：采样按论文的比较设定，VE 的噪声水平也是。

与论文不同之处：VE 的网络看到的是 c_in x 而不是 x，预测的是 ε 而不是 −ε，所以 c_out 的符号相反；
VE 的 Euler 法沿 t 而不是沿 σ² 取步。VP 的标签是 1000 t 而不是 999 t，VE 的是 ¼ ln σ 而不是 ln ½σ，
iDDPM 的行号从 1 而不是从 0 数起；DDIM 的步距相等，从最后一行开始。
"""


def cells(recipe: Recipe) -> list[str]:
    """A column of the table, one text for each of `LINES`."""
    at = [conditioning(recipe, sigma) for sigma in SIGMAS]
    objective, generation = recipe.objective, recipe.generation
    law = getattr(objective, "levels", None)
    weighting = getattr(objective, "weighting", None)
    quantiles = levels(recipe, torch.tensor(SHARES, dtype=torch.float64))
    return [
        written(recipe),
        said(recipe.model.process),
        noised(recipe),
        said(generation.grid),
        said(generation.step),
        str(generation.evaluations),
        said(recipe.model.target),
        numbers([c.c_skip for c in at]),
        numbers([c.c_out for c in at]),
        numbers([c.c_in for c in at]),
        f"`{recipe.model.label}`: {numbers([c.c_noise for c in at])}",
        f"`{objective.kind}`",
        said(law) if law is not None else f"t = i/{getattr(objective, 'steps', 0)}",
        numbers(quantiles.tolist()),
        said(weighting) if weighting is not None else "`simple` + 0.001 L_vlb",
        numbers([weight(recipe, sigma) for sigma in SIGMAS]),
    ]


def page(language: int = 0) -> str:
    """The page of documentation: 0 in English, 1 in Chinese."""
    columns = [cells(recipe) for recipe in COLUMNS.values()]
    head = "| | " + " | ".join(COLUMNS) + " |"
    rule = "|---" * (len(COLUMNS) + 1) + "|"
    body = [
        f"| {line[language]} | " + " | ".join(column[i] for column in columns) + " |"
        for i, line in enumerate(LINES)
    ]
    return "\n".join([(ENGLISH, CHINESE)[language], head, rule, *body, ""])


def main() -> None:
    docs = Path(__file__).parents[1] / "docs"
    for language, name in enumerate(("edm-table.md", "edm-table.zh-CN.md")):
        if "--write" in sys.argv[1:]:
            (docs / name).write_text(page(language), encoding="utf-8")
            print(docs / name)
        else:
            print(page(language))


if __name__ == "__main__":
    main()
