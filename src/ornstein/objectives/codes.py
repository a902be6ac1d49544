"""What a prior over codes is trained with: what the codes of its level cost.

    L = −log p(k_level | coarser levels, y) = Σ_p −log p(k_p | k_<p, …)      nats per sample

the likelihood itself (A. van den Oord et al. 2016, arXiv:1606.05328; 2017, arXiv:1711.00937, §3.3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from ornstein.choice import Choice, Load
from ornstein.errors import ConfigError
from ornstein.objectives.base import Context, Loss

if TYPE_CHECKING:
    from ornstein.autoencoders.prior_model import CodePriorModule
    from ornstein.data.info import Batch, DataInfo


class Codes(Choice):
    """−log p of the codes of the model's level, whose class it is told if it knows classes.

    Metrics: `nats`, and `bits/code` of each of the level's places.
    """

    kind: Literal["codes"] = "codes"

    @property
    def range(self) -> None:
        """Codes arrive as they are: whole numbers."""
        return

    def build(self, model: CodePriorModule, info: DataInfo, load: Load) -> Codes:
        """Itself. Raises: ConfigError for data that are no codes."""
        if info.bins is None or info.range is None or info.range[0] != 0:
            raise ConfigError(
                "the data are no codes of a codebook; write encoding.form=codes, and name a codec "
                "with codebooks in encoding.codec.path"
            )
        return self

    def __call__(self, model: CodePriorModule, batch: Batch, context: Context) -> Loss:
        """The loss of one sample each; see the class."""
        nats = model.nats(batch.x, batch.label)
        total, count = nats.detach().sum(), float(len(nats))
        places = model.levels[-1].places
        metrics = {"nats": (total, count), "bits/code": (total / math.log(2), count * places)}
        return Loss(nats, metrics)
