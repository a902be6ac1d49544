"""Tensors in the cache: a file that is there whole or not at all, and is what it says.

safetensors notices a short file but not a flipped bit, so the file holds the SHA-256 of its
tensors, and what they were made from. One that is damaged or another's is as good as none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ornstein import fsops
from ornstein.errors import StorageError


class Stored(NamedTuple):
    """Tensors by name, and the numbers and words that go with them."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def kept(
    cache: Path | None, kind: str, about: dict[str, Any], make: Callable[[], Stored]
) -> Stored:
    """What is made from `about`: read from the folder `cache`, or made, and written there.

    Its file is `<kind>-<hash of about>.safetensors`; without a cache it is made each time.
    Raises: StorageError if the folder cannot be written.
    """
    if cache is None:
        return make()
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    path = cache / f"{kind}-{key}.safetensors"
    found = _load(path, about)
    if found is not None:
        return found
    try:
        fsops.make_folder(cache)  # before the work: fail early
        made = make()
        _save(path, made, about)
    except StorageError as error:
        raise StorageError(
            f"the feature cache {cache} cannot be written ({error.__cause__ or error}); free some "
            "space, or name another folder by ORNSTEIN_CACHE"
        ) from error
    return made


def _save(path: Path, stored: Stored, about: dict[str, Any]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in stored.tensors.items()}
    described = {"about": about, "values": stored.values, "sha256": digest(tensors)}
    fsops.replace(path, safetensors.torch.save(tensors, {"ornstein": json.dumps(described)}))


def _load(path: Path, about: dict[str, Any]) -> Stored | None:
    """What `_save` wrote; None if there is none, or it is damaged or made from something else."""
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        described = json.loads(header["__metadata__"]["ornstein"])
        tensors = safetensors.torch.load(content)
        if described["about"] != about or described["sha256"] != digest(tensors):
            return None
        return Stored(tensors, dict(described["values"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
