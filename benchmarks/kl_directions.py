"""Forward and reverse KL divergence, computed (notes §1.2, fig 1-6).

    python benchmarks/kl_directions.py OUT.png

p is a mixture of two Gaussians, q a Gaussian that stands for it. On the left the q of the smallest
KL(p ‖ q), in the middle those where KL(q ‖ p) has a minimum; on the right the best of each as the
modes of p move apart, by the divergence that it was fitted to. While they are near, q covers both
either way. Then the reverse divergence lets go of the lighter one: KL(q ‖ p) stays below log 1/0.6,
what q pays for the heavier mode alone. It prints the fits with both of their divergences.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

from ornstein import pictures
from ornstein.autoencoders.directions import Fit, Modes, covering, seeking
from ornstein.charts import Curve, Panel, chart

WEIGHTS = (0.6, 0.4)
HALF = 2.8  # half the distance of the modes that are drawn, in their standard deviations
SIZE = (240, 190)


def main() -> None:
    out = Path(sys.argv[1])
    law = apart(HALF)
    cover, sought = covering(law), seeking(law)
    for name, fit in [("forward", cover), *(("reverse", fit) for fit in sought)]:
        print(
            f"{name}  N({fit.mean:6.3f}, {fit.std:.3f}^2)  KL(p|q) {fit.forward:8.4f}  "
            f"KL(q|p) {fit.reverse:.4f}"
        )
    x = np.linspace(-10, 10, 600)
    p = Curve(x, law.log_density(torch.from_numpy(x)).exp().numpy(), "p")
    covers = Curve(x, density(cover, x), "q of the smallest KL(p || q)")
    seeks = [Curve(x, density(fit, x), "q where KL(q || p) is smallest") for fit in sought[:1]]
    seeks += [Curve(x, density(fit, x), "other minima") for fit in sought[1:]]
    halves = np.linspace(0, 4, 41)
    forward, reverse = [], []
    for half in halves:
        forward.append(covering(apart(half)).forward)
        reverse.append(seeking(apart(half))[0].reverse)
    values = ", ".join(f"{fit.reverse:.3f}" for fit in sought)
    frame = {"x_range": (-10, 10), "y_range": (0, 0.4)}
    panels = [
        Panel([p, covers], f"forward: KL(p || q) = {cover.forward:.3f}", "x", **frame),
        Panel([p, *seeks], f"reverse: KL(q || p) = {values}", "x", **frame),
        Panel(
            [
                Curve(2 * halves, forward, covers.label),
                Curve(2 * halves, reverse, seeks[0].label),
                Curve([0, 8], [-math.log(WEIGHTS[0])] * 2, "log 1/0.6"),
            ],
            "the divergence that each was fitted to",
            "distance of the modes",
            "nats",
            y_range=(0, 1),
        ),
    ]
    out.write_bytes(pictures.png(chart(panels, size=SIZE)))
    print(out)


def apart(half: float) -> Modes:
    """Two modes of standard deviation 1 this far from 0."""
    return Modes(WEIGHTS, (-half, half), (1.0, 1.0))


def density(fit: Fit, x: np.ndarray) -> np.ndarray:
    """N(x; mean, std²)."""
    found: np.ndarray = np.exp(-0.5 * ((x - fit.mean) / fit.std) ** 2)
    return found / (fit.std * math.sqrt(2 * math.pi))


if __name__ == "__main__":
    main()
