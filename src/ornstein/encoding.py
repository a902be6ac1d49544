"""Data seen through a trained codec: what latent models and priors over codes are trained on.

    x  --codec-->  z or k,  once for each sample, kept in the cache  --model-->  p(z) or p(k)

A run with an encoding has two views of its data. What a person sees of it, pictures, scores, the
data's name and values, are those of x. What its model sees are the codes: `latents`, numbers that
the codec's decoder takes, or `codes`, entries of its codebooks, the coarsest level first.

Codes are kept as safetensors shards in a folder of the cache that is named by the SHA-256 of all
they depend on: the codec's weights, how x is scaled on its way to the codec, and the data. Whatever
changes there is another folder; one whose own record says otherwise is stale, and refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ornstein.choice import Choice, RunRef
from ornstein.errors import ConfigError, DataError
from ornstein.lazy import numpy as np
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.autoencoders.codec import Codec
    from ornstein.autoencoders.discrete import Codebooks
    from ornstein.data.info import DataInfo, Dataset
    from ornstein.data.sources import Progress
    from ornstein.noise import Noise

VERSION = 1  # of what is kept
BATCH = 64  # samples that are encoded at a time, always: kernels round by the size of a batch


class Encoding(Choice):
    """Train on codes of the data, not on the data.

    codec: a trained autoencoder. form: `latents` are z, standardised by their own mean and standard
    deviation; `codes` are entries of codebooks, all places of the coarsest level first. A code is
    the likeliest one: no noise of the codec enters. standardise: whether latents are; without it
    they must lie in [−1, 1].
    """

    codec: RunRef
    form: Literal["latents", "codes"] = "latents"
    standardise: bool = True


class Trained(NamedTuple):
    """A codec with what one has to know to use it.

    info: the data that it was trained on, in native values. range: to which its objective takes
    them. weights: the SHA-256 of its weights. name: of its run.
    """

    codec: Codec
    info: DataInfo
    range: tuple[float, float] | None
    weights: str
    name: str

    def check(self, info: DataInfo) -> None:
        """Raises: ConfigError for data of another shape or other values than the codec's."""
        for what in ("shape", "range", "bins"):
            own, given = getattr(self.info, what), getattr(info, what)
            if own != given:
                raise ConfigError(
                    f"the codec {self.name} was trained on samples with {what} {_shown(own)}, and "
                    f"those of {info.name} have {what} {_shown(given)}; train a codec on this "
                    "data, or name data like the codec's"
                )

    def seen(self, x: np.ndarray) -> Tensor:
        """Native values [B, *shape] as the codec takes them, on its device."""
        a, b = self.info.affine(self.range)
        device = next(self.codec.parameters()).device
        return torch.from_numpy(x).to(device, torch.float32) * a + b

    def encode(self, x: np.ndarray, form: str) -> np.ndarray:
        """Codes of native values [B, *shape]: z float32 [B, *latent], or int32 [B, places]."""
        with torch.no_grad():
            code = self.codec.encode(self.seen(x))
        if form == "latents":
            return code.z.float().cpu().numpy()
        assert code.indices is not None  # `codebooks` has been asked for
        return code.indices.flatten(1).to(torch.int32).cpu().numpy()

    def law(self, x: Tensor, form: str, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Indices float32 [B, places] of x at the codec's scale, and −log p(x|z) by its parts in
        nats, each [B]: with −log p(indices), which a prior gives, a bound on −log p(x).

        Where the codec binarises, all of this is of the binary image. Raises: ConfigError for
        latents, of which no density is at hand, and for a likelihood that is none.
        """
        from ornstein.autoencoders.bounds import nats

        if form == "latents":
            raise ConfigError(
                "a model of latents has no likelihood of the data yet; write --likelihood 0"
            )
        found = nats(self.codec, self.info.scaled(self.range), x, noise, 1)
        law: Any = self.codec.likelihood
        with torch.no_grad():
            code = self.codec.encode(law.seen(x, noise.child("seen")))
        assert code.indices is not None
        given = {name: part for name, part in found.parts.items() if name != "kl"}
        return code.indices.flatten(1).to(torch.float32), given

    def decode(self, codes: Tensor, form: str) -> Tensor:
        """E[x|z] at the codec's scale, [B, *shape], of z or of indices as `encode` gives them."""
        with torch.no_grad():
            return self.codec.mean(self.latent(codes, form))

    def latent(self, codes: Tensor, form: str) -> Tensor:
        """z [B, *latent], which the decoder takes, of what `encode` gives."""
        if form == "latents":
            return codes
        from ornstein.autoencoders.discrete import split

        bottleneck = codebooks(self)
        indices = codes.round().long()
        one = len(bottleneck.levels) == 1
        return bottleneck.lookup(split(indices, bottleneck.levels)[0] if one else indices)


def codebooks(trained: Trained) -> Codebooks:
    """The bottleneck of a codec whose codes are entries of codebooks.

    Raises: ConfigError where they are not.
    """
    from ornstein.autoencoders.discrete import Codebooks

    bottleneck = trained.codec.bottleneck
    if not isinstance(bottleneck, Codebooks):
        raise ConfigError(
            f"the codes of {trained.name} are no entries of a codebook; write "
            "encoding.form=latents, or name a codec with codebooks (vq_vae, fsq_vae)"
        )
    return bottleneck


def encoded(
    dataset: Dataset,
    trained: Trained,
    how: Encoding,
    cache: Path,
    progress: Progress | None = None,
) -> Dataset:
    """The data set as its model sees it, with the splits and labels of what it was made of.

    It is read from `cache`, or made and kept there. Raises: ConfigError for data that the codec
    cannot see, DataError for a stale cache, StorageError where it cannot be written.
    """
    from ornstein.data.encoded import read, write
    from ornstein.data.sources import moments

    trained.check(dataset.info)
    entries = None
    if how.form == "codes":
        entries = max(level.codes for level in codebooks(trained).levels)
    about = {
        "version": VERSION,
        "codec": trained.weights,
        "transform": {
            "range": dataset.info.range,
            "to": trained.range,
            # What is standardised depends on the moments of the codec's data.
            "moments": None if trained.info.range else [trained.info.mean, trained.info.std],
        },
        "data": dataset.info.fingerprint,
        "form": how.form,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    folder = cache / "encoded" / key[:24]
    if not folder.is_dir():
        write(folder, about, parts(dataset, trained, how.form, progress))
    x, _ = read(folder, about)
    if len(x) != len(dataset.x):
        raise DataError(
            f"{folder} holds {len(x):,} codes of {len(dataset.x):,} samples; remove this folder "
            "of the cache, and it is made anew"
        )
    mean, std = moments(x, dataset.train)
    kind: Literal["image", "vector"] = "image" if len(x.shape) == 4 else "vector"
    info = dataset.info.model_copy(
        update={
            "kind": kind,
            "shape": x.shape[1:],
            "range": None if entries is None else (0.0, entries - 1.0),
            "bins": entries,
            "mean": mean,
            "std": max(std, 1e-12),
            "fingerprint": key,
        }
    )
    if how.form == "latents" and not how.standardise:
        info = info.model_copy(update={"range": (-1.0, 1.0)})
        _check_unit(x, trained)
    return dataset._replace(
        info=info, x=x, bad=(), originals=None, common=(), names=(), ignored=0, most=None
    )


def parts(
    dataset: Dataset, trained: Trained, form: str, progress: Progress | None
) -> Iterator[np.ndarray]:
    """The codes of all samples in order, as `Trained.encode` gives them, some at a time.

    Raises: DataError for codes that are not finite, naming the samples.
    """
    count = len(dataset.x)
    for start in range(0, count, BATCH):
        x = dataset.x[np.arange(start, min(start + BATCH, count))]
        codes = trained.encode(x, form)
        if not np.isfinite(codes).all():
            raise DataError(
                f"the codec {trained.name} gives codes that are not finite for samples "
                f"{start:,} to {start + len(x) - 1:,}; train it with a lower optim.lr"
            )
        yield codes
        if progress is not None:
            progress(start + len(x), count)


def _check_unit(x: Any, trained: Trained) -> None:
    """Raises: ConfigError for latents beyond [−1, 1], which are to be taken as they are."""
    from ornstein.data.arrays import rows

    most = max(float(np.abs(part).max()) for _, part in rows(x))
    if most > 1:
        raise ConfigError(
            f"the latents of {trained.name} reach {most:.3g}, so they must be standardised; write "
            "encoding.standardise=true"
        )


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
