"""Checkpoints that are either whole or not there.

    ckpt/step-00001234/    model.safetensors  average-*.safetensors  optimizer.safetensors
                           state.json  manifest.json

A save writes into a hidden folder beside these, flushes each file, writes the manifest (size and
SHA-256 of every file) last, flushes it and the folder, and only then renames the folder to its
step. "Latest" means the newest folder whose manifest parses and whose every byte is as hashed:
safetensors notices a truncated file but not a flipped bit. Damaged folders are moved to
`quarantine/` and named; nothing is deleted but checkpoints that a newer whole one has replaced.
Averages that are set aside during training (`averages/`) have the same form, and all are kept.
No pickle: tensors are safetensors, everything else is JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ornstein import fsops
from ornstein.errors import CheckpointError, StorageError
from ornstein.training import TrainState

FORMAT = 1
KEEP = 2
ENTRY, REST = 130, 2048  # bytes of a tensor's name and shape in a file's header, and of the JSON
_STEP = re.compile(r"step-(\d{8,})")


class Checkpoint(NamedTuple):
    """A verified checkpoint: its folder, its manifest and its `state.json`."""

    folder: Path
    manifest: dict[str, Any]
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `name`.safetensors, on the CPU."""
        content = (self.folder / f"{name}.safetensors").read_bytes()
        expected = self.manifest["files"][f"{name}.safetensors"]["sha256"]
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(f"{self.folder / name}.safetensors changed while it was read")
        try:
            return safetensors.torch.load(content)
        except SafetensorError as error:  # its manifest vouches for what somebody has put there
            raise CheckpointError(
                f"{self.folder / name}.safetensors is no safetensors file ({error}); "
                "restore it, or train afresh with --fresh"
            ) from error

    def sha256(self, name: str) -> str:
        """The SHA-256 of `name`.safetensors, by which other runs refer to these weights."""
        return str(self.manifest["files"][f"{name}.safetensors"]["sha256"])


def save(folder: Path, state: TrainState, extra: Mapping[str, Any]) -> Path:
    """Write the whole training state as a checkpoint below `folder`; older ones are pruned.

    extra: JSON values stored beside the step. Returns the checkpoint's folder.
    Raises: StorageError; what was there before is untouched then.
    """
    target = _write(folder, state, _tensors(state), extra)
    _prune(folder)
    return target


def set_aside(folder: Path, state: TrainState, names: Sequence[str]) -> Path:
    """Write these averages alone, in the same form; nothing is pruned. Returns and raises as
    `save`."""
    groups = {f"average-{name}": state.averages[name].state_dict() for name in names}
    return _write(folder, state, groups, {})


def _write(
    folder: Path,
    state: TrainState,
    groups: Mapping[str, Mapping[str, Tensor]],
    extra: Mapping[str, Any],
) -> Path:
    target = folder / f"step-{state.step:08d}"
    if _verified(target) is not None:
        return target
    fsops.make_inside(folder)  # a run whose folder has gone must not come back as half a one
    temporary = folder / f".tmp-{state.step:08d}-{uuid.uuid4().hex[:8]}"
    try:
        fsops.make_inside(temporary)
        sizes = [t.nbytes + ENTRY for group in groups.values() for t in group.values()]
        needed = int(1.2 * sum(sizes)) + REST
        free = fsops.free_bytes(folder)
        if free < needed:
            raise StorageError(
                f"a checkpoint needs {needed:,} bytes in {folder} and {free:,} are free; "
                "free some space, then run the same command again"
            )
        files: dict[str, dict[str, Any]] = {}

        def write(name: str, data: bytes) -> None:
            fsops.write(temporary / name, data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

        for name, group in groups.items():  # one after another: only one is in memory twice
            write(f"{name}.safetensors", safetensors.torch.save(_separate(group)))
        scalars = {"format": FORMAT, "step": state.step, "samples": state.samples, **extra}
        write("state.json", json.dumps(scalars, indent=1).encode())
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "step": state.step,
            "torch": torch.__version__,
            "files": files,
        }
        manifest["digest"] = _digest(manifest)
        fsops.write(temporary / "manifest.json", _written(manifest))
        fsops.flush_folder(temporary)
        if target.exists():  # damaged, or it would have been returned above
            _quarantine(target)
        fsops.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(StorageError):  # the next start removes what is left
            fsops.remove(temporary)
        raise
    return target


def _prune(folder: Path) -> None:
    """Remove all but the newest `KEEP` checkpoints."""
    for old in _folders(folder)[:-KEEP]:
        with contextlib.suppress(StorageError):  # one too many does no harm
            # Half a deleted checkpoint must not look like a damaged one.
            doomed = folder / f".tmp-{old.name}-{uuid.uuid4().hex[:8]}"
            fsops.rename(old, doomed)
            fsops.remove(doomed)


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`, or None if there never was one.

    It only reads, so that a run can be looked at while another process trains it.
    Raises: CheckpointError if there are checkpoints and none is whole.
    """
    candidates = _folders(folder)
    for candidate in reversed(candidates):
        checkpoint = _verified(candidate)
        if checkpoint is not None:
            return checkpoint
    if _folders(folder) != candidates:  # a process that trains this run has saved meanwhile
        return latest(folder)
    if candidates or any((folder / "quarantine").glob("step-*")):
        raise CheckpointError(
            f"no whole checkpoint is left in {folder}; look at what is there, or train afresh "
            "with --fresh"
        )
    return None


def whole(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints below `folder`, oldest first."""
    found = map(_verified, _folders(folder))
    return [checkpoint for checkpoint in found if checkpoint is not None]


def newest(folder: Path) -> str | None:
    """The name of the newest checkpoint, whole or not."""
    folders = _folders(folder)
    return folders[-1].name if folders else None


def repair(folder: Path) -> tuple[str, ...]:
    """Remove what interrupted saves left, and move damaged checkpoints to `quarantine/`.

    For the one process that holds the run. Returns a sentence for each damaged checkpoint.
    """
    for leftover in folder.glob(".tmp-*"):
        fsops.remove(leftover)
    return tuple(
        f"checkpoint {candidate.name} is damaged and was moved to {_quarantine(candidate)}"
        for candidate in _folders(folder)
        if _verified(candidate) is None
    )


def restore(checkpoint: Checkpoint, state: TrainState) -> None:
    """Put a training state back exactly as it was saved.

    Raises: CheckpointError where the weights do not belong to this architecture.
    """
    load_weights(checkpoint, "model", state.learner)
    for name, copies in state.averages.items():
        load_weights(checkpoint, f"average-{name}", copies)
    tensors = checkpoint.tensors("optimizer")
    per_parameter: dict[int, dict[str, Tensor]] = {}
    groups = state.optimizer.state_dict()["param_groups"]
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if not (index.isdigit() and int(index) < len(parameters)):
            raise CheckpointError(f"{checkpoint.folder}: the optimizer's {key!r} fits no weight")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # As it lies in memory, too: the fused update takes all its tensors to lie alike.
            value = torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)
        per_parameter.setdefault(int(index), {})[name] = value
    state.optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})
    state.step = int(checkpoint.state["step"])
    state.samples = int(checkpoint.state["samples"])


def load_weights(checkpoint: Checkpoint, name: str, module: torch.nn.Module) -> None:
    """Load `name`.safetensors into a module, strictly."""
    if f"{name}.safetensors" not in checkpoint.manifest["files"]:
        known = [n.removesuffix(".safetensors") for n in checkpoint.manifest["files"]]
        raise CheckpointError(
            f"{checkpoint.folder} holds no {name!r}; it has {', '.join(sorted(known))}"
        )
    try:
        module.load_state_dict(checkpoint.tensors(name))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip().rstrip(".")
        raise CheckpointError(
            f"the weights in {checkpoint.folder} do not fit this model ({first}); "
            "its recipe has changed since they were saved: put the old recipe.yaml back"
        ) from error


def _tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {"model": state.learner.state_dict()}
    for name, copies in state.averages.items():
        groups[f"average-{name}"] = copies.state_dict()
    optimizer = state.optimizer.state_dict()["state"]
    groups["optimizer"] = {
        f"{index}.{name}": value
        for index, values in optimizer.items()
        for name, value in values.items()
    }
    return groups


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same on the CPU, in the usual order of dimensions, and each in memory of its own, since
    tensors that share some cannot be stored under two names. Copied only where that needs it."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and _STEP.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def _verified(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder` if every byte of it is as its manifest says."""
    try:
        content = fsops.small(folder / "manifest.json")
        manifest = json.loads(content)
        # A flipped bit must not pass for a newer format, so the digest comes first in all of them;
        # bytes that are not part of the text are damage too.
        if content != _written(manifest) or manifest.pop("digest") != _digest(manifest):
            return None
        if "state.json" not in manifest["files"]:
            return None
        if manifest["format"] > FORMAT:
            raise CheckpointError(
                f"{folder} was written by a newer version (format {manifest['format']}, this one "
                f"reads {FORMAT}); upgrade ornstein"
            )
        for name, expected in manifest["files"].items():
            path = folder / name
            if path.parent != folder or path.stat().st_size != expected["bytes"]:
                return None
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return None
        state = json.loads(fsops.small(folder / "state.json"))
        if state["step"] != manifest["step"] or folder.name != f"step-{state['step']:08d}":
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Checkpoint(folder, manifest, state)


def _written(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1).encode()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _quarantine(folder: Path) -> Path:
    place = folder.parent / "quarantine"
    fsops.make_inside(place)
    target = place / f"{folder.name}-{uuid.uuid4().hex[:8]}"
    fsops.rename(folder, target)
    return target
