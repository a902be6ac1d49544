"""DDIM's consistency (notes §2.4.1): one start, different numbers of steps, the same content.

    python benchmarks/ddim_consistency.py RUN [PICTURE]

draws 16 samples of a trained run from the same noise with 10, 20, 50 and 200 DDIM steps (η = 0),
and with ancestral noise (η = 1) for contrast, one row each. It prints how far each row is from 500
steps, as a share of the distance between different samples.
"""

import sys
from pathlib import Path

import numpy as np

from ornstein import Jump, Run, Sampling, pictures

COUNT = 16


def main() -> None:
    run = Run.open(sys.argv[1])
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else run.path / "ddim.png"
    grid = run.recipe.generation.grid

    def drawn(steps: int, eta: float = 0.0) -> np.ndarray:
        how = Sampling(step=Jump(eta=eta), grid=grid, steps=steps)
        return run.generate(COUNT, seed=0, generation=how)

    reference = drawn(500)
    apart = distance(reference, np.roll(reference, 1, axis=0))
    rows = {f"{steps} steps": drawn(steps) for steps in (10, 20, 50, 200)}
    rows["200 steps, η = 1"] = drawn(200, eta=1.0)
    for name, x in rows.items():
        print(f"{name:18} {distance(x, reference) / apart:.3f}")
    image = pictures.picture(np.concatenate([*rows.values()]), run.info, columns=COUNT)
    picture.write_bytes(pictures.png(image))
    print(picture)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference, in native values."""
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


if __name__ == "__main__":
    main()
