"""Where data comes from, and how a word or a path on the command line names it.

A source loads into a `Dataset` with a training split and a held-out one. Which samples are held
out depends on their number alone: the first `held_out · N` of one fixed permutation, so that the
same data is split the same way in every run. A folder with splits of its own keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias, get_args

from pydantic import AfterValidator, Field, model_validator

from ornstein.choice import Choice
from ornstein.data.info import BadFile, DataInfo, Dataset, Fit, Originals, Values
from ornstein.errors import DataError, clip, nearest, printable

if TYPE_CHECKING:
    import numpy as np

    from ornstein.data.images import Images

Progress: TypeAlias = "Callable[[int, int], None]"
"""Called with (done, total) while files are read."""

ToyName = Literal[
    "swiss_roll",
    "moons",
    "circles",
    "checkerboard",
    "pinwheel",
    "eight_gaussians",
    "two_spirals",
]


def _absolute(path: str) -> str:
    try:
        path.encode()
        return str(Path(path).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a loop of links, NUL
        raise ValueError(f"{path!r} is not a path: {error}") from error


MAX_SHAPES = 2 << 30
"""The most bytes that drawn images may take: they are kept in memory."""

DEEP = 4
"""How many levels of sub-folders are searched for Parquet files that could be named instead."""

AbsolutePath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
HeldOut = Annotated[float, Field(ge=0, lt=1, description="share of the samples not trained on")]


class Digits(Choice):
    """1797 handwritten digits of 8 × 8 pixels with values 0 to 16, carried by scikit-learn."""

    kind: Literal["digits"] = "digits"
    held_out: HeldOut = 0.1

    def load(self, progress: Progress | None = None) -> Dataset:
        """The digits. DataError: scikit-learn is not there, or damaged."""
        from ornstein.data.digits import BINS, CLASSES, RANGE, digits

        x, label = digits()
        info = _info("digits", "image", x, RANGE, BINS, CLASSES, _fingerprint(x, label, CLASSES))
        return _dataset(info, x, label, self.held_out)


class Toy(Choice):
    """A distribution in the plane: `count` samples, the same for the same `seed`."""

    kind: Literal["toy"] = "toy"
    name: ToyName
    count: int = Field(50_000, ge=2, le=1_000_000)
    seed: int = Field(0, ge=0)
    held_out: HeldOut = 0.1

    def load(self, progress: Progress | None = None) -> Dataset:
        """The samples, float32 [count, 2], mean about 0 and variance about 1."""
        import hashlib

        from ornstein.data.toys import toy

        x = toy(self.name, self.count, self.seed)
        # The definition is the content: sines differ in their last bit from machine to machine.
        text = f"toy 1 {self.name} {self.count} {self.seed}"
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        info = _info(self.name, "vector", x, None, None, (), fingerprint)
        return _dataset(info, x, None, self.held_out)


class Shapes(Choice):
    """Images of plain shapes, made from known factors; see `ornstein.data.shapes`.

    `count` RGB images of `size` pixels a side, the same for the same `seed`. objects: how many
    there are in an image; where it is one, its class is its colour and shape.
    """

    kind: Literal["shapes"] = "shapes"
    size: int = Field(32, ge=16, le=128)
    count: int = Field(20_000, ge=2, le=1_000_000)
    objects: int = Field(1, ge=1, le=4)
    seed: int = Field(0, ge=0)
    held_out: HeldOut = 0.1

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        each = 3 * self.size**2
        if self.count * each > MAX_SHAPES:
            raise ValueError(
                f"{self.count:,} images of {self.size}×{self.size} take "
                f"{self.count * each / 2**30:.1f} GiB of memory and the limit is 2 GiB; "
                f"write a count of at most {MAX_SHAPES // each}, or a smaller size"
            )
        return self

    def load(self, progress: Progress | None = None) -> Dataset:
        """The images, uint8 [count, 3, size, size], drawn anew each time."""
        import hashlib

        from ornstein.data.shapes import CLASSES, VERSION, shapes

        x, label = shapes(self.count, self.size, self.objects, self.seed, progress)
        classes = () if label is None else CLASSES
        # As for toys, the definition is the content.
        text = f"shapes {VERSION} {self.size} {self.count} {self.objects} {self.seed}"
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        info = _info("shapes", "image", x, (0.0, 255.0), 256, classes, fingerprint)
        return _dataset(info, x, label, self.held_out)


MovingName = Literal["moving_digits", "moving_shapes"]


class Moving(Choice):
    """Sequences of a picture that moves left or right; see `ornstein.data.moving`.

    `count` sequences of `frames` frames of `size` pixels a side, the same for the same `seed`; the
    picture moves by `speed` pixels a frame. Classes are the digits, or the colours and shapes.
    What is held out are digits that no training sequence shows; of shapes, other sequences.
    """

    kind: Literal["moving"] = "moving"
    name: MovingName
    frames: int = Field(20, ge=2, le=1000)
    size: int = Field(16, ge=8, le=64)
    speed: int = Field(1, ge=1, le=3)
    count: int = Field(10_000, ge=2, le=1_000_000)
    seed: int = Field(0, ge=0)
    held_out: HeldOut = 0.1

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        channels = 1 if self.name == "moving_digits" else 3
        each = self.frames * channels * self.size**2
        if self.count * each > MAX_SHAPES:
            raise ValueError(
                f"{self.count:,} sequences of {self.frames} frames of {self.size}×{self.size} take "
                f"{self.count * each / 2**30:.1f} GiB of memory and the limit is 2 GiB; "
                f"write a count of at most {MAX_SHAPES // each}, fewer frames, or a smaller size"
            )
        return self

    def load(self, progress: Progress | None = None) -> Dataset:
        """The sequences, uint8 [count, frames, C, size, size], drawn anew each time.

        DataError: they are of digits, and scikit-learn is not there, or damaged.
        """
        import hashlib

        from ornstein.data.digits import CLASSES as DIGITS
        from ornstein.data.moving import VERSION, factors, moving
        from ornstein.data.shapes import CLASSES as SHAPES
        from ornstein.data.shapes import VERSION as SHAPES_VERSION

        x, label = moving(
            self.name, self.count, self.frames, self.size, self.speed, self.seed, progress
        )
        digits = self.name == "moving_digits"
        sides: float | np.ndarray = self.held_out
        if digits:
            of = factors(self.name, self.count, self.size, self.speed, self.seed).identity
            sides = apart(of, self.held_out)
        # As for shapes, the definition is the content.
        what = (VERSION, SHAPES_VERSION, self.frames, self.size, self.speed, self.count, self.seed)
        text = " ".join(map(str, (self.name, *what)))
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        classes = DIGITS if digits else SHAPES
        info = _info(self.name, "sequence", x, (0.0, 255.0), 256, classes, fingerprint)
        return _dataset(info, x, label, sides)


class Arrays(Choice):
    """A `.npy` file, or an `.npz` file with samples x and perhaps labels y."""

    kind: Literal["arrays"] = "arrays"
    path: AbsolutePath
    held_out: HeldOut = 0.1

    def load(self, progress: Progress | None = None) -> Dataset:
        """Vectors, images or sequences of images, see `ornstein.data.arrays`.

        DataError: it cannot be read or used.
        """
        from ornstein.data.arrays import read_arrays

        path = Path(self.path)
        kind, x, limits, bins, label, classes = read_arrays(path)
        fingerprint = _fingerprint(x, label, classes)
        info = _info(path.stem, kind, x, limits, bins, classes, fingerprint)
        return _dataset(info, x, label, self.held_out)


class Folder(Choice):
    """A folder of images.

    size: the side in pixels of the square that images are fitted to; None: from the data.
    fit: how, where their proportions differ: cut about the centre, padded with white, or
    stretched. channels: 1 for grey, 3 for colour; None: from the data. Classes come from
    sub-folders, and so do the splits if these are named train and test (or val).
    """

    kind: Literal["folder"] = "folder"
    path: AbsolutePath
    size: int | None = Field(None, ge=4, le=2048)
    fit: Fit = "crop"
    channels: Literal[1, 3] | None = None
    held_out: HeldOut = 0.1

    def load(self, progress: Progress | None = None) -> Dataset:
        """The images, uint8 [N, C, H, W], and the files left out; see `ornstein.data.images`.

        DataError: fewer than two readable images. StorageError: the cache cannot be written.
        """
        from ornstein.data.images import read_folder

        path = Path(self.path)
        images = read_folder(path, self.size, self.channels, progress, self.fit)
        return _of_images(path.name, images, self.held_out)


class Frames(Choice):
    """A folder whose sub-folders are sequences: each image in them is a frame.

    frames: how many make a sequence; longer ones are cut. stride: how many frames the next begins
    after the one before; None: where that ends. size, fit, channels: as for a folder of images.
    What is held out are whole folders where there are several, else the end of the only one.
    """

    kind: Literal["frames"] = "frames"
    path: AbsolutePath
    frames: int = Field(20, ge=2, le=1000)
    stride: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=4, le=2048)
    fit: Fit = "crop"
    channels: Literal[1, 3] | None = None
    held_out: HeldOut = 0.1

    def load(self, progress: Progress | None = None) -> Dataset:
        """The sequences, uint8 [N, T, C, H, W], and the files left out; see
        `ornstein.data.sequences`.

        DataError: fewer than two sequences. StorageError: the cache cannot be written.
        """
        import numpy as np

        from ornstein.data.sequences import read_frames

        path = Path(self.path)
        found = read_frames(
            path, self.frames, self.stride, self.size, self.channels, progress, self.fit
        )
        sides: float | np.ndarray = self.held_out
        if found.held_out is not None:
            sides = found.held_out
        elif found.group.max() > found.group.min():
            sides = apart(found.group, self.held_out)
        else:
            count = len(found.x)
            sides = np.arange(count) >= count - held(count, self.held_out)
        info = _info(
            path.name, "sequence", found.x, (0.0, 255.0), 256, found.classes, found.fingerprint
        )
        images = found.images
        dataset = _dataset(info, found.x, found.label, sides, images.bad, images.originals)
        return dataset._replace(names=found.names, ignored=images.ignored, common=images.common)


class Parquet(Choice):
    """A `.parquet` file of images, or a folder of such files, as the Hugging Face hub keeps them.

    size, fit, channels: as for a folder of images. Files named like train-00000-of-00003 and test
    (or validation) are splits, and so are those in folders of such names.
    """

    kind: Literal["parquet"] = "parquet"
    path: AbsolutePath
    size: int | None = Field(None, ge=4, le=2048)
    fit: Fit = "crop"
    channels: Literal[1, 3] | None = None
    held_out: HeldOut = 0.1

    def load(self, progress: Progress | None = None) -> Dataset:
        """The images, uint8 [N, C, H, W], and the rows left out; see `ornstein.data.parquet`.

        DataError: pyarrow is not installed; a file is damaged or has no images; fewer than two
        are readable. StorageError: the cache cannot be written.
        """
        from ornstein.data.parquet import read_parquet

        path = Path(self.path)
        images = read_parquet(path, self.size, self.channels, progress, self.fit)
        name = path.stem if path.suffix.lower() == ".parquet" else path.name
        return _of_images(name, images, self.held_out)


class Shards(Choice):
    """A folder of `.tar` files with images named as WebDataset does, or one; or `.parquet` files.

    Images are decoded as they are needed, and never kept: for data larger than memory and cache.
    size, fit, channels: as for a folder, but from some of the images. Files named like train-0001
    and val-0001 are splits. labels: whether `.cls` and `.json` members, or a column, give classes.
    """

    kind: Literal["shards"] = "shards"
    path: AbsolutePath
    size: int | None = Field(None, ge=4, le=2048)
    fit: Fit = "crop"
    channels: Literal[1, 3] | None = None
    labels: bool = True
    held_out: HeldOut = 0.1

    def load(self, progress: Progress | None = None) -> Dataset:
        """The images, uint8 [N, C, H, W], decoded when they are asked for; see
        `ornstein.data.shards`.

        DataError: fewer than two samples, none that can be decoded, or a Parquet file that is
        damaged. StorageError: the cache cannot be written.
        """
        from ornstein.data.shards import read_shards

        return read_shards(
            Path(self.path),
            self.size,
            self.channels,
            self.fit,
            self.held_out,
            self.labels,
            progress,
        )


Source: TypeAlias = Digits | Toy | Shapes | Moving | Arrays | Folder | Frames | Parquet | Shards
Data = Annotated[Source, Field(discriminator="kind")]

ACCEPTED = (
    "a folder of images, a .parquet or .tar file or a folder of them, a .npy or .npz file, "
    "'digits', 'shapes', 'moving_digits', 'moving_shapes' or a toy distribution"
)

# What people try, and what to do instead.
_ADVICE = {
    **dict.fromkeys(
        (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
        "an archive: unpack it and give the folder",
    ),
    **dict.fromkeys(
        (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".bin"),
        "likely a pickle, which can run any code when it is opened: save its arrays with "
        "numpy.savez, samples as x and labels as y",
    ),
    **dict.fromkeys(
        (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx"),
        "text: save its numbers with numpy.save as float32 [N, D]",
    ),
    **dict.fromkeys(
        (".arrow", ".feather", ".h5", ".hdf5", ".mat", ".lmdb", ".safetensors"),
        "a table or container: save its arrays with numpy.savez, samples as x and labels as y",
    ),
}


def recognise(text: str) -> Source:
    """The source that a word or a path names.

    `digits`, `shapes`, the two that move and the names of toys come first (a folder of such a name
    is `./digits`); then an existing folder with at least two images, else with `.tar`, else with
    `.parquet` files where `ornstein.data.parquet.files` looks for them; or a `.npy`, `.npz`,
    `.parquet` or `.tar` file. DataError for anything else: what was found, and what is accepted.
    """
    toys, moving = get_args(ToyName), get_args(MovingName)
    word = text.strip().lower().replace("-", "_")
    if word == "digits":
        return Digits()
    if word == "shapes":
        return Shapes()
    if word in toys:
        return Toy(name=word)
    if word in moving:
        return Moving(name=word)
    if not text.strip():
        raise DataError(f"no data was named: give {ACCEPTED}")
    if "://" in text:
        raise DataError(f"{clip(text)!r} is not on this machine: download it, then give its path")
    try:
        path = Path(_absolute(text))
        folder, file = path.is_dir(), path.is_file()
        exists = folder or file or path.exists()
    except (OSError, ValueError) as error:  # no permission, too long a name, NUL
        raise DataError(f"{text[:80]!r} cannot be looked up: give {ACCEPTED}") from error
    if folder:
        return _folder(path)
    if file:
        return _file(path)
    if exists:
        raise DataError(f"{path} is neither a folder nor an ordinary file: give {ACCEPTED}")
    if "/" not in text and "\\" not in text and not path.suffix:
        hint = nearest(word, ["digits", "shapes", *moving, *toys])
        if not hint.startswith("; did you mean"):
            hint = _neighbour(path) or f"{hint}; give {ACCEPTED}"
        raise DataError(
            f"{text!r} is no known data set, and no file or folder in {path.parent}{hint}"
        )
    raise DataError(f"{path} does not exist{_neighbour(path)}; give {ACCEPTED}")


def _folder(path: Path) -> Folder | Parquet | Shards:
    from ornstein.data.decode import READABLE
    from ornstein.data.images import File, walk
    from ornstein.data.parquet import below
    from ornstein.data.parquet import files as shards

    files = islice((found for found in walk(path) if isinstance(found, File)), 2)
    count = len(list(files))
    if count < 2 and shards(path, ".tar"):
        return Shards(path=str(path))
    if count < 2 and shards(path):
        return Parquet(path=str(path))
    if count < 2:
        arrays = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (".npy", ".npz"))
        deeper = [printable(str(folder)) for folder in islice(below(path, DEEP), 3)]
        hint = f"; {arrays[0]} in it can be named itself" if arrays else ""
        hint += f"; there are Parquet files in {' and '.join(deeper)}: name one" if deeper else ""
        few = "no image" if count == 0 else "only one image"
        raise DataError(f"{few} in {path}: a folder needs at least 2 {READABLE} files{hint}")
    return Folder(path=str(path))


def _file(path: Path) -> Arrays | Parquet | Shards:
    from ornstein.data.images import SUFFIXES

    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return Arrays(path=str(path))
    if suffix == ".parquet":
        return Parquet(path=str(path))
    if suffix == ".tar":
        return Shards(path=str(path))
    if suffix in SUFFIXES:
        raise DataError(f"{path} is a single image: give a folder with at least 2 images")
    advice = _ADVICE.get(suffix)
    if advice is not None:
        raise DataError(f"{path} is {advice}; accepted are {ACCEPTED}")
    raise DataError(f"{path} is not data that can be read: give {ACCEPTED}")


def _neighbour(path: Path) -> str:
    """`; did you mean X?` for an entry of the same folder that is spelt much the same."""
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f": there is no folder {path.parent}" if not path.parent.exists() else ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""


def _info(
    name: str,
    kind: Literal["image", "vector", "sequence"],
    x: Values,
    limits: tuple[float, float] | None,
    bins: int | None,
    classes: tuple[str, ...],
    fingerprint: str,
) -> DataInfo:
    return DataInfo(
        name=name or "data",
        kind=kind,
        shape=x.shape[1:],
        range=limits,
        bins=bins,
        classes=classes,
        count=len(x),
        mean=0.0,
        std=1.0,
        fingerprint=fingerprint,
    )


def _of_images(name: str, images: Images, held_out: float) -> Dataset:
    """Images that were read, with the splits that they have, else this share held out."""
    info = _info(name, "image", images.x, (0.0, 255.0), 256, images.classes, images.fingerprint)
    sides = held_out if images.held_out is None else images.held_out
    dataset = _dataset(info, images.x, images.label, sides, images.bad, images.originals)
    return dataset._replace(names=images.files, ignored=images.ignored, common=images.common)


def _dataset(
    info: DataInfo,
    x: Values,
    label: np.ndarray | None,
    held_out: float | np.ndarray,
    bad: tuple[BadFile, ...] = (),
    originals: Originals | None = None,
) -> Dataset:
    """Split, and complete `info` with the split's size and the moments of its training part.

    held_out: a share, or bool [N]. DataError: all values of the training split are the same.
    """
    import numpy as np

    train, rest = split(len(x), held_out) if isinstance(held_out, float) else _sides(held_out)
    mean, std = moments(x, train)
    if not std > 0:
        raise DataError(f"all values of {info.name} are {mean:g}: there is nothing to learn")
    info = info.model_copy(update={"held_out": len(rest), "mean": mean, "std": std})
    assert label is None or label.dtype == np.int64
    return Dataset(info, x, label, train, rest, bad, originals)


def split(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The numbers below `count`, int64 and rising, that are trained on and that are held out.

    share · count of them are held out, rounded; at least one if share > 0, never all.
    """
    from ornstein.noise import leading

    return _sides(leading(0, "held-out", 0, count, held(count, share)).numpy())


def apart(group: np.ndarray, share: float) -> float | np.ndarray:
    """Which samples are held out so that no group is on both sides: bool [N].

    group: int64 [N], what each sample belongs to. Groups are taken in a random order, the same
    for all data, until the share is reached; where that would be all samples, the share is
    returned, of single samples.
    """
    import numpy as np

    from ornstein.noise import permutation

    count = held(len(group), share)
    if count == 0:
        return share
    rank = np.argsort(permutation(0, "held-out", 0, int(group.max()) + 1).numpy())[group]
    found: np.ndarray = rank <= np.sort(rank)[count - 1]
    return share if found.all() else found


def held(count: int, share: float) -> int:
    """How many samples of `count` are held out if it is this share of them."""
    return min(count - 1, max(1, round(share * count))) if share > 0 else 0


def _sides(held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    return (
        np.flatnonzero(~held_out).astype(np.int64, copy=False),
        np.flatnonzero(held_out).astype(np.int64, copy=False),
    )


def moments(x: Values, ids: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all values of the samples `ids`, in float64, by parts.

    Parts are merged by T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances", 1979: no difference of large squares.
    """
    import numpy as np

    from ornstein.data.arrays import rows

    count, mean, squares = 0, 0.0, 0.0
    for _, part in rows(x, ids):
        values = part.astype(np.float64)
        middle = float(values.mean())
        total, step = count + values.size, middle - mean
        squares += float(np.square(values - middle).sum()) + step**2 * count * values.size / total
        mean += step * values.size / total
        count = total
    return mean, (squares / count) ** 0.5


def _fingerprint(x: np.ndarray, label: np.ndarray | None, classes: tuple[str, ...]) -> str:
    """SHA-256 of type, shape, values in order, labels and class names."""
    import hashlib

    import numpy as np

    from ornstein.data.arrays import rows

    digest = hashlib.sha256(f"{x.dtype.name} {x.shape} {classes}".encode())
    for _, part in rows(x):
        digest.update(np.ascontiguousarray(part).data)
    if label is not None:
        digest.update(label.tobytes())
    return digest.hexdigest()
