"""How a prior over codes generates: all places of all levels, one after the other.

    k ~ Π_levels Π_p p(k_p | k_<p, coarser levels, y)^(1/temperature),    y given, or ~ p(y) uniform

What the codes look like is the codec's business: the run decodes them. Their law is known exactly,
and so is what any codes cost under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.nats import Nats

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.autoencoders.prior_model import CodePriorModule
    from ornstein.data.info import DataInfo
    from ornstein.noise import Noise


class CodeDrawing(Choice):
    """Generation place by place, in raster order.

    temperature: 1 for the law that was learned; below it likely codes are drawn more often than
    they are, which looks better and varies less. label: the number of the class; null: any, each as
    often.
    """

    kind: Literal["code_drawing"] = "code_drawing"
    temperature: float = Field(1.0, gt=0, le=100)
    label: int | None = Field(None, ge=0, description="number of a class; null: any of them")

    @property
    def steps(self) -> int:
        """One: a whole pass."""
        return 1

    @property
    def evaluations(self) -> int:
        """Passes of the network for a sample: what is kept spares it one for each place."""
        return 1

    @property
    def words(self) -> str:
        """The sampler in a word or two."""
        cooled = f" at temperature {self.temperature:g}" if self.temperature != 1 else ""
        of_class = f" of class {self.label}" if self.label is not None else ""
        return f"codes{of_class}{cooled}"

    @property
    def stem(self) -> str:
        """The same, as a part of a file's name."""
        cooled = f"-t{self.temperature:g}" if self.temperature != 1 else ""
        return "codes" + (f"-class{self.label}" if self.label is not None else "") + cooled

    def __call__(self, model: CodePriorModule, info: DataInfo, noise: Noise) -> Iterator[Tensor]:
        """Yield the codes, float32 [B, P]: of all levels up to the model's. Raises: ConfigError for
        a class that the model does not know."""
        yield model.draw(noise, self.label, self.temperature).float()

    @property
    def no_law(self) -> str | None:
        """There is one."""
        return None

    def likelihood(self, model: CodePriorModule, info: DataInfo, x: Tensor, noise: Noise) -> Nats:
        """−log p(k) of codes x [B, *info.shape] with a part for each level up to the model's, by
        the law of what is drawn: of a class where one is chosen, at its temperature."""
        parts = model.parts(x, self.label, self.temperature)
        return Nats({f"codes of level {i}": part for i, part in enumerate(parts)}, exact=True)
