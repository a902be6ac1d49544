"""Folders of images into folders of codes by a trained codec, and back.

    encode    DATA  --codec-->  folder/ shard-00001.safetensors ... names.jsonl manifest.json
    decode    folder  --codec-->  OUT/ original-name.png ...

The form of a folder of codes is that of `ornstein.data.encoded`; it says which codec it is of, by
the SHA-256 of its weights, and no other decodes it. Data of any size passes through in parts. What
is written gets its name once all of it is there, and nothing that is there already is changed.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch

from ornstein import fsops, pictures
from ornstein.autoencoders.discrete import Codebooks
from ornstein.choice import RunRef
from ornstein.data import encoded
from ornstein.data.images import SUFFIXES
from ornstein.data.info import BadFile
from ornstein.encoding import BATCH, Trained, parts
from ornstein.errors import ConfigError, DataError, StorageError, quote
from ornstein.latent_moments import latent_moments
from ornstein.run import Run, codec_of

if TYPE_CHECKING:
    from ornstein.autoencoders.moments import LatentMoments
    from ornstein.data.info import DataInfo, Dataset
    from ornstein.data.sources import Source

Form = Literal["latents", "codes"]
Progress = Callable[[int, int], None]
VERSION = 1
LONGEST = 200  # bytes of the name of a file or folder that are kept


class Encoded(NamedTuple):
    """A folder of codes: how many, the shape of one, the moments of latents as the run has them,
    files that could not be read, and whether it was there already."""

    samples: int
    shape: tuple[int, ...]
    moments: LatentMoments | None
    bad: tuple[BadFile, ...]
    there: bool


def encode(
    run: Run,
    source: Source | None,
    out: Path,
    form: Form = "latents",
    average: str = "",
    progress: Progress | None = None,
) -> Encoded:
    """Write the codes of data, in its order, to the new folder `out`.

    source: what is encoded, at the size of the run's data; None for that data itself. form:
    `latents`, z float32 as the decoder takes it, or `codes`, int32 entries of codebooks, places of
    the coarsest level first. Raises: ConfigError for a run that is no autoencoder or has no such
    codes, and for data unlike its own; DataError for data that cannot be read; StorageError where
    something else has this name.
    """
    trained = _codec(run, average)
    if form == "codes":
        _limits(trained)  # or refuse
    dataset = run.dataset if source is None else fitted(source, trained.info).load(progress)
    trained.check(dataset.info)
    about: dict[str, Any] = {
        "version": VERSION,
        "codec": trained.weights,
        "run": trained.name,
        "form": form,
        "data": dataset.info.fingerprint,
        "name": dataset.info.name,
    }
    found = None
    if form == "latents":
        with contextlib.suppress(DataError):  # the run's own data is gone
            found = latent_moments(run, average, trained)
    bad = tuple(dataset.bad)
    if out.exists():
        shards, kept = _there(out)
        different = encoded.differences({key: kept.get(key) for key in about}, about)
        if different:
            raise StorageError(
                f"{out} holds other codes: {different[0]}; write them to another folder with --out"
            )
        return Encoded(len(shards), shards.shape[1:], found, bad, True)
    if found is not None:
        about["moments"] = found._asdict()
    names = _names(dataset)
    encoded.write(out, about, parts(dataset, trained, form, progress), names=names, option="--out")
    shards, _ = encoded.read(out)
    return Encoded(len(shards), shards.shape[1:], found, bad, False)


def decode(
    run: Run, folder: Path, out: Path, average: str = "", progress: Progress | None = None
) -> int:
    """Write what a run says of a folder of codes as PNG files to the new folder `out`, under the
    names that they were encoded by; how many there are.

    Raises: ConfigError for a run that is no autoencoder of images; DataError for codes that are
    damaged, or of another codec; StorageError where `out` is there, or cannot be written.
    """
    trained = _codec(run, average)
    if trained.info.kind != "image":
        raise ConfigError(
            f"decoded codes are written as pictures, and run {trained.name} is of "
            f"{trained.info.kind} data; Run.decode gives them as numbers"
        )
    codes, about = encoded.read(folder)
    form = _checked(codes, about, trained, folder)
    if out.exists():
        raise StorageError(f"{out} exists; write to another folder with --out")
    fsops.make_folder(out.parent, "--out")
    encoded.sweep(out)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    fsops.make_inside(temporary, "--out")
    try:
        paths = file_names(codes.names(), len(codes))
        for one in _pixels(codes, run, trained, form, folder, progress):
            path = temporary / next(paths)
            fsops.make_folder(path.parent, "--out")
            image = pictures.single(one, trained.info)
            fsops.write(path, pictures.png(image), out, "--out")
        fsops.rename(temporary, out, "--out")
    except BaseException:
        with contextlib.suppress(StorageError):
            fsops.remove(temporary)
        raise
    return len(codes)


def fitted(source: Source, info: DataInfo) -> Source:
    """Data as it would be read for a codec of `info`: at its size, and with its channels."""
    fields, changed = type(source).model_fields, dict[str, Any]()
    if "channels" in fields and info.kind == "image":
        channels, height, width = info.shape
        if height == width:
            changed["size"] = height
        if channels in (1, 3):
            changed["channels"] = channels
    return source.model_copy(update=changed)


def file_names(names: Iterator[str], count: int) -> Iterator[PurePosixPath]:
    """A path below a folder for each of `count` rows, of their names or else their numbers: one
    that stays within it, ends in .png and is no other's."""
    used: set[str] = set()
    width = len(str(count - 1))
    for number in range(count):
        path = _inside(next(names, f"{number:0{width}d}"))
        name, turn = str(path), 1
        while name.casefold() in used:  # as some file systems compare them
            turn += 1
            name = str(path.with_name(f"{path.stem}-{turn}.png"))
        used.add(name.casefold())
        yield PurePosixPath(name)


def _inside(name: str) -> PurePosixPath:
    """A name as a path below a folder, whatever a stranger has written there."""
    plain = "".join(c if c.isprintable() and c not in '\\:*?"<>|' else "_" for c in name)
    parts = [_short(part) for part in plain.split("/") if part.strip(" .")]
    *folders, last = parts or ["image"]
    stem, dot, suffix = last.rpartition(".")
    if dot and stem and f".{suffix.lower()}" in SUFFIXES:
        last = stem
    return PurePosixPath(*folders, f"{last}.png")


def _short(part: str) -> str:
    return part.encode()[:LONGEST].decode(errors="ignore")


def _codec(run: Run, average: str) -> Trained:
    return codec_of(RunRef(path=str(run.path), average=average), type(run.recipe))


def _limits(trained: Trained) -> np.ndarray:
    """How many entries the codebook of each place has, int64 [places].

    Raises: ConfigError where codes are no entries of a codebook.
    """
    bottleneck = trained.codec.bottleneck
    if not isinstance(bottleneck, Codebooks):
        raise ConfigError(
            f"the codes of run {trained.name} are no entries of a codebook; leave --indices out, "
            "or name a run with codebooks, such as `ornstein train autoencoder_vq` makes"
        )
    levels = bottleneck.levels
    return np.repeat([one.codes for one in levels], [math.prod(one.size) for one in levels])


def _names(dataset: Dataset) -> Sequence[str]:
    """The names of samples that files gave, where they did."""
    return dataset.names if len(dataset.names) == len(dataset.x) else ()


def _there(out: Path) -> tuple[encoded.Shards, dict[str, Any]]:
    try:
        return encoded.read(out)
    except DataError as error:
        raise StorageError(
            f"{out} exists and holds no whole codes ({error}); write to another folder with --out"
        ) from error


def _checked(codes: encoded.Shards, about: dict[str, Any], trained: Trained, folder: Path) -> Form:
    """The form of a folder of codes. Raises: DataError where they are not of this codec."""
    form, weights = about.get("form"), about.get("codec")
    if weights != trained.weights:
        of = f" of run {quote(str(about['run']))}" if "run" in about else ""
        raise DataError(
            f"{folder} was made with the codec {str(weights)[:12]}{of}, not with "
            f"{trained.weights[:12]} of run {quote(trained.name)}; decode it with the run, and the "
            "--average, that it was encoded with"
        )
    if form == "latents":
        wanted: tuple[int, ...] = trained.codec.latent
    elif form == "codes":
        wanted = _limits(trained).shape
    else:
        raise DataError(f"{folder} holds {quote(str(form))}, neither latents nor codes")
    if codes.shape[1:] != wanted or (codes.dtype.kind == "f") != (form == "latents"):
        raise DataError(
            f"{folder} holds {form} {codes.dtype} {list(codes.shape[1:])}, and those of run "
            f"{trained.name} are {list(wanted)}; encode the data anew"
        )
    return cast("Form", form)


def _pixels(
    codes: encoded.Shards,
    run: Run,
    trained: Trained,
    form: Form,
    folder: Path,
    progress: Progress | None,
) -> Iterator[np.ndarray]:
    """What the codec says of each code, in native values."""
    device = next(trained.codec.parameters()).device
    for start in range(0, len(codes), BATCH):
        part = codes[start : start + BATCH]
        if form == "codes" and not ((part >= 0) & (part < _limits(trained))).all():
            raise DataError(
                f"{folder} holds codes that no codebook of run {trained.name} has; encode the data "
                "anew"
            )
        if form == "latents" and not np.isfinite(part).all():
            raise DataError(f"{folder} holds latents that are not finite; encode the data anew")
        yield from run.native(trained.decode(torch.from_numpy(part).to(device), form))
        if progress is not None:
            progress(start + len(part), len(codes))
