"""Imports go down only, and what must be quick imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ornstein"

# Each line may import from the lines above it, and from itself where it is a package.
# `autoencoders`, `data` and `diffusion` share a line: siblings, with no arrow between them.
LAYERS = [
    {"lazy", "errors", "allocator"},
    {"choice", "fsops", "yamltree", "memory", "ranks"},
    {"noise", "scores"},
    {"nats", "nn"},
    {"autoencoders", "data", "diffusion"},
    {"objectives", "sentences", "encoding"},
    {"optim", "metrics", "features", "settings", "pictures", "charts"},
    {"training", "strips", "scatter", "evaluation", "baselines", "tuned"},
    {"checkpoint", "paths", "schedules", "trackers"},
    {"averages", "recipe"},
    {"prepare", "log", "drift", "plan"},
    {"recipes"},
    {"plans", "run"},
    {
        "code_nats",
        "estimate",
        "forecast",
        "comparison",
        "disentangling",
        "interpolation",
        "latents",
        "problems",
        "tuning",
    },
    {"latent_moments"},
    {"latent_pictures", "restoration", "transcoding"},
    {"cli"},
    {"__init__", "__main__"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
# What a network or a recipe is made of may be told the shape of the data.
CONTRACTS = {"data.info"}


def part(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def arrows(path: Path) -> set[str]:
    """The modules of ornstein that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "ornstein":
                names = [f"ornstein.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.removeprefix("ornstein.") for n in names if n.startswith("ornstein.")}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.name))
def test_imports_go_down(path):
    own = part(path)
    for target in arrows(path) - CONTRACTS:
        other = target.split(".")[0]
        assert other == own or HEIGHT[other] < HEIGHT[own], f"{path.name} imports {target}"


def test_every_module_has_its_place():
    assert {part(path) for path in SOURCE.rglob("*.py")} <= set(HEIGHT)


def test_recipes_cost_no_torch():
    """Showing a recipe, and all choices behind it, imports neither torch nor numpy."""
    code = (
        "import sys, ornstein.recipe as r; [r.named(n).yaml() for n in r.names()]; "
        "sys.exit(bool({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist():
    import ornstein

    for name in ornstein.__all__:
        assert getattr(ornstein, name).__module__.startswith("ornstein")
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = ornstein.Nonsense
