"""Which extractor a score is measured with, from the words of a user."""

from __future__ import annotations

from pathlib import Path

import torch

from ornstein.data.info import Dataset
from ornstein.errors import ConfigError, like
from ornstein.features import classifier
from ornstein.features.base import Extractor
from ornstein.features.inception import Inception
from ornstein.features.pixels import Pixels

CPU = torch.device("cpu")


def extractor_for(
    dataset: Dataset,
    seed: int = 0,
    cache: Path | None = None,
    choice: str = "",
    device: torch.device = CPU,
) -> Extractor:
    """The extractor that scores of this data set are measured with.

    choice: "classifier", a `Classifier` trained on the data; "pixels", the values themselves; or a
    safetensors file with the weights of the FID network. Empty: a classifier for images of two
    classes or more, else pixels. A classifier is read from the folder `cache`, or made with
    `seed` and written there; the FID network runs on `device`, the others on the CPU.
    ConfigError for another choice, or one that does not go with the data; StorageError if the
    folder cannot be written.
    """
    if choice == "pixels" or (not choice and not classifier.classifiable(dataset)):
        return Pixels(dataset.info)
    if choice in ("", "classifier"):
        if cache is None:
            return classifier.train_classifier(dataset, seed)
        return classifier.cached(dataset, seed, cache)
    path = Path(choice).expanduser()
    if not path.suffix and not path.exists():
        raise ConfigError(
            f"there is no extractor {choice!r}{like(choice, ('classifier', 'pixels'))}; write "
            "--extractor classifier, pixels, or the path of a safetensors file"
        )
    return Inception.read(path, dataset.info, device)
