"""The table of EDM's choices: generated as it stands in the documents, and the paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.edm_table import (
    COLUMNS,
    SIGMA_DATA,
    SIGMAS,
    cells,
    conditioning,
    levels,
    page,
    weight,
)
from tests.docs.pages import read, rows
from tests.helpers import f64

# arXiv:2206.00364, table 1, as functions of σ: c_skip, c_out, c_in, λ. VE's network sees x there.
ONE = (lambda s: 1.0, lambda s: -s, lambda s: 1 / math.sqrt(s**2 + 1), lambda s: 1 / s**2)
D = SIGMA_DATA
PAPER = {
    "VP": ONE,
    "VE": (ONE[0], lambda s: s, lambda s: 1.0, ONE[3]),
    "iDDPM + DDIM": ONE,
    "EDM": (
        lambda s: D**2 / (s**2 + D**2),
        lambda s: s * D / math.sqrt(D**2 + s**2),
        lambda s: 1 / math.sqrt(s**2 + D**2),
        lambda s: (s**2 + D**2) / (s * D) ** 2,
    ),
}


@pytest.mark.parametrize(("language", "name"), [(0, "edm-table.md"), (1, "edm-table.zh-CN.md")])
def test_the_documents_hold_what_is_generated(language, name):
    """After a change: python benchmarks/edm_table.py --write."""
    assert read(f"docs/{name}") == page(language)


def test_both_languages_have_the_same_cells():
    first, second = ([row[1:] for row in rows(page(language))] for language in (0, 1))
    assert first == second
    assert len(first) == len(cells(COLUMNS["EDM"])) + 1


@pytest.mark.parametrize("sigma", [0.03, *SIGMAS, 50.0])
@pytest.mark.parametrize("column", COLUMNS)
def test_preconditioning_and_weights_are_the_paper_s(column, sigma):
    """c_skip, c_out and λ for all four (VE says ε and not −ε); c_in for all but VE."""
    found = conditioning(COLUMNS[column], sigma)
    c_skip, c_out, c_in, lam = (function(sigma) for function in PAPER[column])
    assert found.c_skip == pytest.approx(c_skip, rel=1e-6)
    assert found.c_out == pytest.approx(-c_out if column == "VE" else c_out, rel=1e-6)
    assert found.c_in == pytest.approx(
        1 / math.sqrt(sigma**2 + 1) if column == "VE" else c_in, rel=1e-6
    )
    assert weight(COLUMNS[column], sigma) == pytest.approx(lam, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 50.0])
def test_labels_are_the_paper_s_but_for_a_linear_map(sigma):
    vp, ve, edm = (conditioning(COLUMNS[c], sigma).c_noise for c in ("VP", "VE", "EDM"))
    assert edm == pytest.approx(0.25 * math.log(sigma), rel=1e-5, abs=1e-9)
    assert 4 * ve - math.log(2) == pytest.approx(math.log(sigma / 2), rel=1e-5)
    # VP: (M − 1) σ⁻¹(σ), M = 1000, σ⁻¹(σ) = [√(β_min² + 2 β_d ln(1 + σ²)) − β_min]/β_d
    beta_d, beta_min = 19.9, 0.1
    t = (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(sigma**2)) - beta_min) / beta_d
    assert 0.999 * vp == pytest.approx(999 * t, rel=1e-5)


def u_of_iddpm(m=1000, c1=0.001, c2=0.008):
    """u_0 ... u_M: u_M = 0, u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C1) − 1)."""

    def alpha_bar(j):
        return math.sin(math.pi / 2 * j / (m * (c2 + 1))) ** 2

    u = [0.0]
    for j in range(m, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), c1) - 1))
    return list(reversed(u))


def test_iddpm_s_levels_are_the_rows_of_its_table():
    """Training levels are u_j for j = 0 ... M − 1; the label counts M − j."""
    u = u_of_iddpm()
    shares = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    found = levels(COLUMNS["iDDPM + DDIM"], shares)
    torch.testing.assert_close(found.flip(0), f64(u[:1000]), rtol=1e-6, atol=0)
    for j in (1, 400, 990):
        label = conditioning(COLUMNS["iDDPM + DDIM"], u[j]).c_noise
        assert label == pytest.approx(1000 - j, abs=1e-3)


def test_training_levels_are_the_paper_s():
    u = f64([0.1, 0.5, 0.9])
    beta_d, beta_min = 19.9, 0.1
    t = 1e-3 + (1 - 1e-3) * u
    exact = torch.sqrt(torch.expm1(0.5 * beta_d * t**2 + beta_min * t))
    torch.testing.assert_close(levels(COLUMNS["VP"], u), exact)
    ends = math.log(0.02), math.log(100.0)
    torch.testing.assert_close(
        levels(COLUMNS["VE"], u), torch.exp(ends[0] + (ends[1] - ends[0]) * u)
    )
    normal = torch.distributions.Normal(f64(-1.2), f64(1.2))
    torch.testing.assert_close(levels(COLUMNS["EDM"], u), normal.icdf(u).exp())


def test_time_steps_are_the_paper_s():
    """σ/α of the sampling grids: VP's t falls evenly to ε_s = 1e-3, VE's σ geometrically, EDM's
    by the power 7."""

    def ratios(column):
        recipe = COLUMNS[column]
        grid = recipe.generation.grid(recipe.model.process, recipe.generation.steps)
        return f64([level.sigma / level.alpha for level in grid[:-1]])

    n = 256
    i = torch.arange(n, dtype=torch.float64) / (n - 1)
    t = 1 + i * (1e-3 - 1)
    vp = torch.sqrt(torch.expm1(0.5 * 19.9 * t**2 + 0.1 * t))
    torch.testing.assert_close(ratios("VP"), vp)
    ve = torch.sqrt(100.0**2 * (0.02**2 / 100.0**2) ** i)
    torch.testing.assert_close(ratios("VE"), ve)
    i = torch.arange(18, dtype=torch.float64) / 17
    edm = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(ratios("EDM"), edm)
