"""Checkpoints that are either whole or not there.

    ckpt/step-00001234/    model.safetensors  average-*.safetensors  optimizer.safetensors
                           state.json  manifest.json

A save writes into a hidden folder beside these, flushes each file, writes the manifest (size and
SHA-256 of every file) last, flushes it and the folder, and only then renames the folder to its
step. Where ranks share the weights out, each writes its part (`torch.distributed.checkpoint`):

    ckpt/step-00001234/model/shard-00001-*.safetensors ...    and so for averages and the optimizer

and the lead writes the manifest once all have; parts are put together when they are read, so any
number of processes can go on.

"Latest" means the newest folder whose manifest parses and whose every byte is as hashed:
safetensors notices a truncated file but not a flipped bit. Damaged folders are moved to
`quarantine/` and named; nothing is deleted but checkpoints that a newer whole one has replaced.
Averages that are set aside during training (`averages/`) have the same form, and all are kept.
No pickle: tensors are safetensors, everything else is JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import operator
import os
import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ornstein import fsops, ranks
from ornstein.errors import CheckpointError, StorageError, quote
from ornstein.training import TrainState

FORMAT = 1
KEEP = 2
ENTRY, REST = 130, 2048  # bytes of a tensor's name and shape in a file's header, and of the JSON
SUFFIX = ".safetensors"
_STEP = re.compile(r"step-(\d{8,})")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_MOMENT = re.compile(rf"([0-9]{{1,9}})\.({'|'.join(MOMENTS)})")
_WORDS = struct.Struct(">4q")  # a SHA-256 as whole numbers, which ranks can exchange

Files = dict[str, dict[str, Any]]
"""By the name of a file in a checkpoint: its bytes and its SHA-256."""


class Checkpoint(NamedTuple):
    """A verified checkpoint: its folder, its manifest and its `state.json`."""

    folder: Path
    manifest: dict[str, Any]
    state: dict[str, Any]

    @property
    def digest(self) -> str:
        """A SHA-256 of all that it holds."""
        return _digest(self.manifest)

    @property
    def names(self) -> tuple[str, ...]:
        """What it holds tensors of, such as `model`."""
        files = [Path(name) for name in self.manifest["files"] if name.endswith(SUFFIX)]
        found = (path.parent.name or path.name.removesuffix(SUFFIX) for path in files)
        return tuple(sorted(set(found)))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `name`, whole, on the CPU. Raises: CheckpointError where they are not as
        the manifest says, or are none."""
        files = self._files(name)
        try:
            if files == [f"{name}{SUFFIX}"]:
                return safetensors.torch.load(self._bytes(files[0]))
            return _joined([self._bytes(file) for file in files], self.manifest["shapes"][name])
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            # its manifest vouches for what somebody has put there
            raise CheckpointError(
                f"{self.folder / files[0]} is no safetensors file ({error}); "
                "restore it, or train afresh with --fresh"
            ) from error

    def sha256(self, name: str) -> str:
        """The SHA-256 of the file or files of `name`, by which other runs refer to these
        weights."""
        found = [str(self.manifest["files"][file]["sha256"]) for file in self._files(name)]
        return found[0] if len(found) == 1 else hashlib.sha256(repr(found).encode()).hexdigest()

    def _files(self, name: str) -> list[str]:
        """The file of `name`, or those of its parts."""
        files = self.manifest["files"]
        found = sorted(f for f in files if f == f"{name}{SUFFIX}" or f.startswith(f"{name}/"))
        if not found:
            raise CheckpointError(
                f"{self.folder} holds no {name!r}; it has {', '.join(self.names)}"
            )
        return found

    def _bytes(self, file: str) -> bytes:
        content = (self.folder / file).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.manifest["files"][file]["sha256"]:
            raise CheckpointError(f"{self.folder / file} changed while it was read")
        return content


def save(folder: Path, state: TrainState, extra: Mapping[str, Any]) -> Path:
    """Write the whole training state as a checkpoint below `folder`; older ones are pruned.

    extra: JSON values stored beside the step, the lead's. Returns the checkpoint's folder. All
    ranks save together; where each holds everything, the lead writes it.
    Raises: StorageError, on all ranks; what was there before is untouched then.
    """
    target = _write(folder, state, _tensors(state), extra)
    if ranks.leads():
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
    # One name for all ranks, that of the lead.
    token = ranks.from_lead(int.from_bytes(os.urandom(4), "big"))
    temporary = folder / f".tmp-{state.step:08d}-{token:08x}"
    leads = ranks.leads()
    there = False
    try:
        with ranks.alike():
            if leads and not (there := _verified(target) is not None):
                _begin(temporary, groups)
        if ranks.from_lead(there):
            return target
        if state.sharded:
            files = _write_parts(temporary, groups)
            shapes = {n: {k: list(t.shape) for k, t in g.items()} for n, g in groups.items()}
        with ranks.alike():
            if leads and state.sharded:
                _publish(temporary, target, state, files, extra, {"shapes": shapes})
            elif leads:
                _publish(temporary, target, state, _write_whole(temporary, groups), extra, {})
    except BaseException:
        if leads:
            with contextlib.suppress(StorageError):  # the next start removes what is left
                fsops.remove(temporary)
        raise
    return target


def _begin(temporary: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Make the folder of a checkpoint. Raises: StorageError where it would have no room."""
    folder = temporary.parent
    fsops.make_inside(folder)  # a run whose folder has gone must not come back as half a one
    fsops.make_inside(temporary)
    sizes = [t.nbytes + ENTRY for group in groups.values() for t in group.values()]
    needed = int(1.2 * sum(sizes)) + REST
    free = fsops.free_bytes(folder)
    if free < needed:
        raise StorageError(
            f"a checkpoint needs {needed:,} bytes in {folder} and {free:,} are free; "
            "free some space, then run the same command again"
        )


def _write_whole(temporary: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> Files:
    """Write a file for each group, one after another: only one is in memory twice."""
    files: Files = {}
    for name, group in groups.items():
        data = safetensors.torch.save(_separate(group))
        fsops.write(temporary / f"{name}{SUFFIX}", data)
        files[f"{name}{SUFFIX}"] = _entry(len(data), hashlib.sha256(data).digest())
    return files


def _write_parts(temporary: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> Files:
    """Write, with all ranks, a folder for each group, in which each rank has a file."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_together

    with ranks.alike():
        if ranks.leads():
            for name in groups:
                fsops.make_inside(temporary / name)
    for name, group in groups.items():
        writer = HuggingFaceStorageWriter(str(temporary / name), save_distributed=True)
        try:
            with ranks.watching():
                save_together(dict(group), storage_writer=writer)
        except CheckpointException as error:  # on all ranks
            cause = next(iter(error.failures.values()))[0]
            raise ranks.told_by_lead(
                StorageError(f"cannot write {temporary / name}: {cause}; check the disk")
            ) from error
    # Each rank hashes some of the files, whoever has written them: of one list, the lead's.
    listed = ""
    with ranks.alike():
        if ranks.leads():
            listed = "\n".join(_complete(temporary, groups))
    paths = [temporary / line for line in ranks.text_from_lead(listed).splitlines()]
    rows = []
    with ranks.alike():
        for index in range(ranks.rank(), len(paths), ranks.world()):
            with fsops.explained(paths[index]), paths[index].open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
                rows.append([index, os.fstat(file.fileno()).st_size, *_WORDS.unpack(digest)])
    table = ranks.gathered(torch.tensor(rows, dtype=torch.int64).view(len(rows), 6))
    return {
        paths[index].relative_to(temporary).as_posix(): _entry(size, _WORDS.pack(*words))
        for index, size, *words in sorted(table.tolist())
    }


def _complete(temporary: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """The files of all parts. Raises: StorageError where some are missing."""
    names = []
    for group, tensors in groups.items():
        size = 0
        for path in sorted((temporary / group).glob(f"*{SUFFIX}")):
            with fsops.explained(path), path.open("rb") as file:
                header = int.from_bytes(file.read(8), "little")
                size += os.fstat(file.fileno()).st_size - 8 - header
            names.append(path.relative_to(temporary).as_posix())
        wanted = sum(t.numel() * t.element_size() for t in tensors.values())
        if size != wanted:
            raise StorageError(
                f"of the parts of {group!r} that processes have written {size:,} of {wanted:,} "
                "bytes are seen; the folder of runs must be shared: choose another with --runs"
            )
    return names


def _publish(
    temporary: Path,
    target: Path,
    state: TrainState,
    files: Files,
    extra: Mapping[str, Any],
    more: Mapping[str, Any],
) -> None:
    """Write what makes a checkpoint of the files in a folder, and give it its name."""
    scalars = {"format": FORMAT, "step": state.step, "samples": state.samples, **extra}
    content = json.dumps(scalars, indent=1).encode()
    fsops.write(temporary / "state.json", content)
    files["state.json"] = _entry(len(content), hashlib.sha256(content).digest())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "step": state.step,
        "torch": torch.__version__,
        "files": files,
        **more,
    }
    manifest["digest"] = _digest(manifest)
    fsops.write(temporary / "manifest.json", _written(manifest))
    for inside in sorted({(temporary / name).parent for name in files} - {temporary}):
        fsops.flush_folder(inside)
    fsops.flush_folder(temporary)
    if target.exists():  # damaged, or there would have been nothing to write
        _quarantine(target)
    fsops.rename(temporary, target)


def _entry(size: int, digest: bytes) -> dict[str, Any]:
    return {"bytes": size, "sha256": digest.hex()}


def _joined(contents: list[bytes], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """The whole tensors, of these shapes, of files that hold parts of them; `contents` is emptied.

    Raises: ValueError, LookupError or TypeError where parts are missing, overlap or lie outside, so
    that what a file says cannot take more memory than it has bytes.
    """
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    while contents:
        content = contents.pop()
        raw = content[8 : 8 + int.from_bytes(content[:8], "little")]
        if raw.count(b"[") + raw.count(b"{") > fsops.MAX_LISTS:
            raise ValueError("its header is too large")
        try:
            places = json.loads(json.loads(raw)["__metadata__"]["DCP_SHARDING_INFO"])
        except RecursionError as error:
            raise ValueError("its header is too deep") from error
        for name, part in safetensors.torch.load(content).items():
            parts.setdefault(name, []).append((places[name]["saved_offsets"], part))
    if parts.keys() != shapes.keys():
        raise ValueError("tensors are missing")
    return {name: _whole(name, parts.pop(name), shape) for name, shape in shapes.items()}


def _whole(name: str, parts: list[tuple[list[int], Tensor]], shape: list[int]) -> Tensor:
    """A tensor of its parts and their places."""
    if math.prod(shape) != sum(part.numel() for _, part in parts):
        raise ValueError(f"parts of {name} are missing")
    whole = torch.empty(shape, dtype=parts[0][1].dtype)
    filled = torch.zeros(shape, dtype=torch.bool)
    for at, part in parts:
        ends = [o + n for o, n in zip(at, part.shape, strict=True)]
        if any(type(o) is not int or o < 0 for o in at) or any(map(operator.gt, ends, shape)):
            raise ValueError(f"a part of {name} lies outside of it")
        place = tuple(map(slice, at, ends))
        whole[place], filled[place] = part, True
    if not filled.all():
        raise ValueError(f"parts of {name} overlap")
    return whole


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
        named = _MOMENT.fullmatch(key)
        index, name = (int(named[1]), named[2]) if named else (len(parameters), "")
        wanted = parameters[index].shape if index < len(parameters) else None
        # The fused update would read beyond a tensor that is too small.
        if wanted is None or value.shape != (() if name == "step" else wanted):
            raise CheckpointError(
                f"{checkpoint.folder}: the optimizer's {quote(key)} fits no weight; restore it, or "
                "train afresh with --fresh"
            )
        parameter = parameters[index]
        if value.shape == parameter.shape and isinstance(parameter, DTensor):
            value = _part(value, parameter)
        elif value.shape == parameter.shape:
            # As it lies in memory, too: the fused update takes all its tensors to lie alike.
            value = torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)
        per_parameter.setdefault(index, {})[name] = value
    if any(len(values) != len(MOMENTS) for values in per_parameter.values()):
        raise CheckpointError(
            f"{checkpoint.folder}: the optimizer's state is not whole; restore it, or train afresh "
            "with --fresh"
        )
    state.optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})
    state.step = int(checkpoint.state["step"])
    state.samples = int(checkpoint.state["samples"])


def load_weights(checkpoint: Checkpoint, name: str, module: torch.nn.Module) -> None:
    """Load `name`.safetensors into a module, strictly."""
    tensors = checkpoint.tensors(name)
    own = module.state_dict()
    try:
        module.load_state_dict({key: _part(t, own.get(key)) for key, t in tensors.items()})
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip().rstrip(".")
        raise CheckpointError(
            f"the weights in {checkpoint.folder} do not fit this model ({first}); "
            "its recipe has changed since they were saved: put the old recipe.yaml back"
        ) from error


def _part(whole: Tensor, like: Tensor | None) -> Tensor:
    """A tensor that every rank has, as another one is: whole, or this rank's part of it."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    given = whole.to(like.device)
    return distribute_tensor(given, like.device_mesh, like.placements, src_data_rank=None)


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
            inside = Path(name)
            if (
                inside.is_absolute()
                or ".." in inside.parts
                or not path.is_file()
                or path.stat().st_size != expected["bytes"]
            ):
                return None
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return None
        state = json.loads(fsops.small(folder / "state.json"))
        if type(state["samples"]) is not int or state["samples"] < 0:
            return None
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
