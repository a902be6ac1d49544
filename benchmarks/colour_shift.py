"""The colour shift of score models, with and without an average of the weights (notes eq 1.18).

    python benchmarks/colour_shift.py CHART.png [KEY=VALUE ...]

trains `ncsnv2` on 16×16 `shapes` and stops every so often to draw images with the last weights and
with their average (m = 0.999 an update; until 900,000 samples a shorter one, which forgets half in
the last twentieth of the training). It prints how far the mean colour of the images is from
the data's, channel by channel, and draws the two as curves. Y. Song, S. Ermon 2020,
arXiv:2006.09011, §3.4 and figure 4: the images that last weights draw are tinted, now in one colour
and now in another.

All images start from the same noise, and the 20 steps of the flow that draw them add none, so that
what moves from one stop to the next are the weights alone. langevin=1 draws by the recipe's own
annealed Langevin dynamics, in some twenty times as long. Settings of the recipe may follow, and
these:

    samples=60000  trained on in all      points=20  stops      images=128  drawn at each
    size=16  count=5000  of the shapes    langevin=0
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from ornstein import Run, Sampling, fsops, pictures
from ornstein.charts import Curve, Panel, chart
from ornstein.cli.request import request

CHANNELS = ("red", "green", "blue")
OWN = {
    "samples": 60_000,
    "points": 20,
    "images": 128,
    "size": 16,
    "count": 5000,
    "langevin": 0,
}
AVERAGES = {"last weights": "none", "average": ""}


def main() -> None:
    path, *words = sys.argv[1:]
    split = [word.partition("=") for word in words]
    own = OWN | {key: int(value) for key, _, value in split if key in OWN}
    settings = [word for word in words if word.partition("=")[0] not in OWN]
    with tempfile.TemporaryDirectory() as runs:
        seen, data, drawn, spread = measure(own, settings, Path(runs))
    rows = {name: np.array(colours) - data for name, colours in drawn.items()}
    print(f"data: {' '.join(f'{value:.1f}' for value in data)} of 255 in red, green and blue")
    print(f"standard error of a mean colour of {own['images']} images of the data: {spread:.1f}")
    print("samples    " + "".join(f"{name:>28}" for name in rows))
    for i, samples in enumerate(seen):
        cells = ("".join(f"{value:+8.1f}" for value in off[i]) for off in rows.values())
        print(f"{samples:<11,}" + "".join(f"{cell:>28}" for cell in cells))
    late = len(seen) // 2
    for name, off in rows.items():
        size = np.sqrt(np.square(off[late:]).mean())
        moves = np.sqrt(np.square(np.diff(off[late:], axis=0)).mean())
        print(
            f"{name}: second half, off by {size:.1f} (rms), moves by {moves:.1f} from one stop on"
        )
    panels = [
        Panel(
            [Curve(seen, off[:, c], name, markers=True) for name, off in rows.items()],
            title=f"mean {channel}, less the data's",
            x_label="samples trained on",
            y_label="of 255" if c == 0 else "",
            y_range=limits(rows),
        )
        for c, channel in enumerate(CHANNELS)
    ]
    fsops.replace(Path(path), pictures.png(chart(panels, "Colour shift")))
    print(path)


def measure(
    own: dict[str, int], settings: list[str], runs: Path
) -> tuple[list[int], np.ndarray, dict[str, list[np.ndarray]], float]:
    """The samples at each stop, the data's mean colour [3], that of the images drawn at each stop
    by name of the weights, and the standard error of the mean colour of so many of the data's."""
    words = [f"data.size={own['size']}", f"data.count={own['count']}", *settings]
    recipe = request("ncsnv2", "shapes", None, None, words).recipe
    seen: list[int] = []
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in AVERAGES}
    for point in range(1, own["points"] + 1):
        optim = recipe.optim.but(samples=point * own["samples"] // own["points"])
        run = Run.create(recipe.but(optim=optim), runs, "colour")
        for _ in run.train(previews=False, save_every=600):
            pass
        seen.append(run.samples)
        how = None if own["langevin"] else Sampling()
        for name, average in AVERAGES.items():
            x = run.generate(own["images"], seed=0, average=average, generation=how)
            drawn[name].append(x.mean(axis=(0, 2, 3)))
    colours = run.dataset.x[run.dataset.train].mean(axis=(2, 3))
    spread = float(np.sqrt(colours.var(axis=0).mean() / own["images"]))
    return seen, colours.mean(axis=0), drawn, spread


def limits(rows: dict[str, np.ndarray]) -> tuple[float, float]:
    """One scale for all channels, from what is off at all stops but the first few."""
    late = np.concatenate([off[len(off) // 5 :] for off in rows.values()])
    most = float(np.abs(late).max()) or 1.0
    return -most, most


if __name__ == "__main__":
    main()
