"""An image out of the bytes of a file, as a person would see it.

It is refused before it is decoded if it is larger than 64 MB, 50 million pixels or 16384 pixels a
side, or repeats itself as no camera does. It is then read like this:

    orientation  the EXIF tag is obeyed
    opacity      what is transparent shows white
    16-bit grey  0 ... 65535 becomes 0 ... 255
    CMYK         as RGB, without colour profiles
    size         resized with antialiasing; what has other proportions is fitted first:
                 crop     the largest centred part of the right proportions
                 pad      all of it, centred on white
                 stretch  all of it, each side by its own factor

Decoders are large programs in C that meet files from strangers. So this file is also a program,
which `ornstein.data.decoders` runs in processes of their own: what crashes, hangs or fills the
memory there costs one image. It imports the standard library and Pillow, and numpy for rare
images only, so that it starts in a tenth of a second. It reads requests and writes answers:

    frame    length of the header, length of the body (4 bytes each, little-endian), header, body
    request  header {"limit": seconds a file may take, "size": [H, W], or null for a look at
             headers only, "channels": 1 or 3, "fit", "items": [a path, or how many bytes of the
             body are the next one's]}
    answer   one for each item, in order, and one with an empty header at the start; header
             {"bad": why}, or {"original": [H, W]} after a look, or {"original", "sha256", "grey"}
             with pixels, uint8 [channels, H, W], as the body

Headers are JSON. A request is read whole before it is answered, so that neither side waits for
the other to read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import struct
import sys
import warnings
from typing import IO, Any, Literal, NamedTuple

from PIL import Image, UnidentifiedImageError

# Pillow knows these two only after importing all of its readers, unless they are imported.
from PIL import TiffImagePlugin as _tiff  # noqa: F401
from PIL import WebPImagePlugin as _webp  # noqa: F401

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
READABLE = "JPEG, PNG, WebP, BMP, TIFF and GIF"

MAX_FILE = 64 * 10**6
MAX_PIXELS = 50 * 10**6
MAX_SIDE = 16384

MAX_SCANS = 100
"""How many scans a JPEG may have: each is a pass over all pixels, and a camera makes ten."""

MAX_PARTS = 50_000
"""How many chunks a PNG may have: 64 MB in parts of a few bytes would take seconds to walk."""

MAX_TAGS = 5_000
"""How many entries the directory of a TIFF may have."""

MAX_EXIF = 1 << 17
"""The most bytes of metadata in which an orientation is looked for; cameras write up to 64 KB."""

MEMORY = 2 << 30
"""What the program may take beyond what it starts with, in bytes; images of 50 million pixels were
seen to take up to 0.9 GB (WebP with opacity). Held where the system can, which is on Linux."""

FRAME = struct.Struct("<II")

_SMALL = 1 << 16  # bytes of a file that is read at once even if only its header is wanted
_BAND = 1 << 20  # pixels that are converted from 32 bits at a time
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """Why an image cannot be used, in one sentence."""


class Decoded(NamedTuple):
    """An image as a person sees it, in mode L or RGB, and its size (H, W) before it was fitted."""

    image: Image.Image
    original: tuple[int, int]


def decode(
    data: bytes, size: tuple[int, int], fit: Literal["crop", "pad", "stretch"] = "crop"
) -> Decoded:
    """The image in the bytes of a file, fitted to size (H, W). Unreadable: why there is none."""
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise Unreadable(f"It is drawn in more than {MAX_SCANS} passes.")
    image = _opened(io.BytesIO(data))
    width, height = image.size
    try:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if twice the wanted size remains.
        # Orientation may swap H and W later, so the larger of them is asked for both ways.
        scale = 2 * max(size) / min(image.size)
        if scale < 1:
            image.draft(None, (int(image.width * scale), int(image.height * scale)))
        image.load()
        turn = _orientation(image)  # after loading: a TIFF has then obeyed and dropped its own
        fitted = _fitted(_plain(image), size if turn < 5 else size[::-1], fit)
        if turn in _TURN:
            fitted = fitted.transpose(_TURN[turn])
        if fitted.mode == "RGBA":
            white = Image.new("RGBA", fitted.size, "white")
            fitted = Image.alpha_composite(white, fitted)
        fitted = fitted if fitted.mode == "L" else fitted.convert("RGB")
        return Decoded(fitted, (height, width) if turn < 5 else (width, height))
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # decoders raise almost anything on damaged data
        raise Unreadable(f"The file is damaged: {cause(error)}.") from error


def seen_size(file: IO[bytes]) -> tuple[int, int]:
    """(H, W) of an image as it will be seen, by its header. Unreadable: it has none."""
    with _opened(file) as image:
        # Asking a PNG without EXIF for it decodes the image; a TIFF's size is right.
        ask = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        turned = ask and _orientation(image) >= 5
        return image.size if turned else (image.height, image.width)


def cause(error: BaseException) -> str:
    """What an error says, as the end of a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines()
    text = lines[0][:200].rstrip(". ") if lines else type(error).__name__
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _opened(file: IO[bytes]) -> Image.Image:
    """The image in `file`, its header read and within the limits."""
    try:
        _refuse_many(file)
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Unreadable(_TOO_LARGE) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(256)
        if not start:
            raise Unreadable("The file is empty.") from error
        if start.startswith(_MAGIC):
            raise Unreadable("The file is damaged: its header cannot be read.") from error
        start = start.lstrip().lower()
        what = "a web page" if start.startswith((b"<!doctype html", b"<html")) else "something else"
        raise Unreadable(f"It is {what}, not one of {READABLE}.") from error
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        raise Unreadable(f"The file is damaged: {cause(error)}.") from error
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise Unreadable(_TOO_LARGE)
    return image


def _refuse_many(file: IO[bytes]) -> None:
    """Refuse a PNG or a TIFF of more parts than it takes little time to walk through."""
    start = file.read(16)
    if start.startswith(b"\x89PNG\r\n"):
        place, parts = 8, 0
        while True:
            file.seek(place)
            head = file.read(8)
            if len(head) < 8 or head.endswith(b"IEND"):
                break
            place, parts = place + 12 + int.from_bytes(head[:4], "big"), parts + 1
            if parts > MAX_PARTS:
                raise Unreadable(f"It is made of more than {MAX_PARTS:,} parts.")
    order: Literal["little", "big"] = "little" if start.startswith(b"II") else "big"
    if start[:2] in (b"II", b"MM") and 42 <= int.from_bytes(start[2:4], order) <= 43:
        wide = int.from_bytes(start[2:4], order) == 43  # BigTIFF, with sizes of 64 bits
        file.seek(int.from_bytes(start[8:16] if wide else start[4:8], order) & (1 << 62) - 1)
        if int.from_bytes(file.read(8 if wide else 2), order) > MAX_TAGS:
            raise Unreadable(f"It is made of more than {MAX_TAGS:,} parts.")
    file.seek(0)


_TOO_LARGE = f"It has more than {MAX_PIXELS // 10**6} million pixels or {MAX_SIDE} a side."
_HUNGRY = f"Decoding it takes more than {MEMORY >> 30} GiB of memory."


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    raw = image.info.get("exif") or image.info.get("Raw profile type exif") or b""
    if len(raw) > MAX_EXIF:
        return 1
    try:
        turn = image.getexif().get(0x0112, 1)
    except Exception:  # the picture is worth more than its metadata
        return 1
    return turn if turn in _TURN else 1


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        import numpy as np  # only where it is needed: importing it takes longer than all else here

        tones = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(tones[np.asarray(image)])
    if image.mode in ("I", "F"):
        return _from_32_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _from_32_bits(image: Image.Image) -> Image.Image:
    """Grey of 32-bit integers or floats in 8 bits, a band at a time: 64 bits take much memory."""
    import numpy as np

    rows = max(1, _BAND // image.width)
    starts = range(0, image.height, rows)

    def band(start: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        box = (0, start, image.width, min(start + rows, image.height))
        return np.asarray(image.crop(box)).astype(np.float64)

    extremes = np.array([(part.min(), part.max()) for part in map(band, starts)])  # NaN shows
    low, high = float(extremes[:, 0].min()), float(extremes[:, 1].max())
    top = next((t for t in ((65535,) if image.mode == "I" else (1, 255)) if high <= t), None)
    if not np.isfinite(extremes).all() or low < 0 or top is None:
        raise Unreadable("Its pixels are neither 8-bit nor 16-bit, nor between 0 and 1.")
    grey = np.empty((image.height, image.width), np.uint8)
    for start in starts:
        grey[start : start + rows] = np.rint(band(start) * (255 / top))
    return Image.fromarray(grey)


def _fitted(
    image: Image.Image, size: tuple[int, int], fit: Literal["crop", "pad", "stretch"]
) -> Image.Image:
    """The image with the size (H, W)."""
    (h, w), (width, height) = size, image.size
    if (width, height) == (w, h):
        return image
    if fit == "stretch":
        return image.resize((w, h), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if fit == "pad":
        scale = min(w / width, h / height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        canvas = Image.new(image.mode, (w, h), "white")
        canvas.paste(
            image.resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0),
            ((w - inner[0]) // 2, (h - inner[1]) // 2),
        )
        return canvas
    scale = max(w / width, h / height)
    # Half of what is cut away on each side; rounding must not leave the image.
    x, y = max(0.0, (width - w / scale) / 2), max(0.0, (height - h / scale) / 2)
    box = (x, y, width - x, height - y)
    return image.resize((w, h), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


# --- the program ----------------------------------------------------------------------------------


def answer(request: dict[str, Any], content: str | bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the body of the answer to one item, a path or the bytes of a file."""
    try:
        if request["size"] is None:
            with _stream(content) as stream:
                return {"original": seen_size(stream)}, b""
        data = content if isinstance(content, bytes) else _contents(content)
        image, original = decode(data, tuple(request["size"]), request["fit"])
    except Unreadable as reason:
        return {"bad": str(reason)}, b""
    except MemoryError:
        return {"bad": _HUNGRY}, b""
    except OSError as error:
        return {"bad": f"It cannot be opened: {cause(error)}."}, b""
    planes = [plane.tobytes() for plane in image.split()]
    grey = len(set(planes)) == 1
    if grey:
        planes = planes[:1] * int(request["channels"])
    elif request["channels"] == 1:
        planes = [image.convert("L").tobytes()]
    digest = hashlib.sha256(data).hexdigest()
    return {"original": original, "sha256": digest, "grey": grey}, b"".join(planes)


def _stream(content: str | bytes) -> IO[bytes]:
    """The bytes, or a file; read at once if it is small, which takes fewer calls."""
    if isinstance(content, bytes):
        return io.BytesIO(content)
    file = io.BufferedReader(io.FileIO(content), _SMALL)
    start = file.peek(_SMALL)
    if len(start) >= _SMALL:
        return file
    with file:
        return io.BytesIO(file.read(MAX_FILE))


def _contents(path: str) -> bytes:
    with io.FileIO(path) as file:
        data = file.read(MAX_FILE + 1)
        while len(data) <= MAX_FILE and (more := file.read(MAX_FILE + 1 - len(data))):
            data += more
    if len(data) > MAX_FILE:  # it has grown since it was listed
        raise Unreadable(too_big())
    return data


def too_big() -> str:
    """Why a file of more than `MAX_FILE` bytes is left out."""
    return f"It is larger than {MAX_FILE // 10**6} MB."


def write_frame(out: IO[bytes], header: dict[str, Any], *bodies: bytes) -> None:
    """Write a frame. BrokenPipeError: nobody reads any more."""
    text = json.dumps(header).encode()
    head = FRAME.pack(len(text), sum(map(len, bodies))) + text
    if sum(map(len, bodies)) <= _SMALL:
        out.write(b"".join((head, *bodies)))
    else:
        out.write(head)
        for body in bodies:
            out.write(body)
    out.flush()


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:  # whoever asks has gone
        raise EOFError
    return data


def serve(requests: IO[bytes], out: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    write_frame(out, {})
    while True:
        try:
            length, _ = FRAME.unpack(_exactly(requests, FRAME.size))
            request = json.loads(_exactly(requests, length))
            items = [i if isinstance(i, str) else _exactly(requests, i) for i in request["items"]]
        except EOFError:
            return
        for item in items:
            _alarm(request["limit"])
            header, body = answer(request, item)
            _alarm(0)
            write_frame(out, header, body)


def _alarm(seconds: float) -> None:
    """End this process in that time, whatever it is at; 0 to call it off.

    Whoever asks has ended it before that, unless he has been killed himself.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds and seconds + 2)


def _confine() -> None:
    """Limits of the system on this process, where there are any."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            now = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = now + MEMORY
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    except (ImportError, OSError, ValueError):
        pass  # not Linux: the limits on sizes remain


def main() -> None:
    """Serve standard input on standard output, which nothing else may then write to."""
    out = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)  # libraries complain there of each odd file
    # Pillow warns of large images, where our own limit decides, and of odd metadata.
    warnings.simplefilter("ignore")
    _confine()
    try:
        serve(sys.stdin.buffer, out)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
