"""Pages and states as files: private, checked, and never half written. Imports no torch.

One file per page or state, named by the hash of everything it depends on. A file is written under a temporary name,
flushed to the disk and renamed, so a crash leaves either the whole file or a temporary one, which the next start
removes. Its header repeats model, key and a checksum of the payload: what is torn, foreign or corrupt is counted and
deleted, never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perilune.cache.tier import KINDS, Kind, Payload
from perilune.errors import ConfigError
from perilune.units import format_bytes

log = logging.getLogger(__name__)

LAYOUT_VERSION = 1
_MAGIC = b"perilune cache\x00\x01"
_HEADER = struct.Struct("<16s32s32s32sQ")  # magic, model, key, checksum of the payload, its length
_TEMPORARY = ".writing-"


@dataclass(frozen=True)
class Entry:
    """One file of a cache folder."""

    path: Path
    kind: Kind
    size: int
    used: float


def entries(folder: Path) -> list[Entry]:
    """All files of all models under `folder`, the longest unused first. Other files are not looked at."""
    return sorted(_scan(folder), key=lambda entry: (entry.used, entry.path.name))


def _scan(folder: Path) -> Iterator[Entry]:
    for path in folder.glob("*/*"):
        kind = next((kind for kind in KINDS if path.suffix == f".{kind}"), None)
        if kind is not None:
            with contextlib.suppress(FileNotFoundError):  # another process made room
                stat = path.stat()
                yield Entry(path, kind, stat.st_size, stat.st_mtime)


def payload_of(path: Path, model: bytes | None = None) -> Payload | None:
    """What the file holds, or None if it is torn, foreign (of another model, or renamed) or corrupt."""
    try:
        with path.open("rb", buffering=0) as file:
            header = file.read(_HEADER.size)
            payload = bytearray(max(0, os.fstat(file.fileno()).st_size - _HEADER.size))
            filled = file.readinto(payload)
    except OSError:
        return None
    if len(header) < _HEADER.size or filled != len(payload):
        return None
    magic, owner, key, checksum, length = _HEADER.unpack(header)
    whole = magic == _MAGIC and len(payload) == length and hashlib.sha256(payload).digest() == checksum
    named = path.stem == key.hex() and path.parent.name == owner.hex()[:32] and model in (None, owner)
    return payload if whole and named else None


def prune(folder: Path, limit: int) -> tuple[int, int]:
    """Delete the longest unused files until at most `limit` bytes are left; returns (files, bytes) deleted."""
    kept = entries(folder)
    total, files, freed = sum(entry.size for entry in kept), 0, 0
    for entry in kept:
        if total - freed <= limit:
            break
        with contextlib.suppress(FileNotFoundError):
            entry.path.unlink()
        files, freed = files + 1, freed + entry.size
    return files, freed


def verify(folder: Path) -> tuple[int, list[Path]]:
    """Read every file under `folder` and delete the broken ones; returns (whole ones, broken ones)."""
    whole, broken = 0, []
    for entry in entries(folder):
        if payload_of(entry.path) is not None:
            whole += 1
        elif entry.path.exists():
            broken.append(entry.path)
            entry.path.unlink(missing_ok=True)
    return whole, broken


class Store:
    """One model's files under `folder`, which may serve several models; `limit` bounds the bytes of all of them.

    One thread may read while another writes. A disk that refuses to take more turns the store off, with one warning.
    Raises ConfigError if the folder cannot be made.
    """

    def __init__(self, folder: Path, model: bytes, limit: int) -> None:
        self._root, self._model, self._limit = folder, model, limit
        self._folder = folder / model.hex()[:32]
        self._books = threading.Lock()  # of bytes and names, never held while a payload is read or written
        self.corrupt = self.written_bytes = self.read_bytes = 0
        self.full = False
        try:
            for path in (folder, self._folder):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"The cache folder {folder} cannot be used.", f"The system says: {error}.", "Choose another cache_dir."
            ) from error
        self._remove_leftovers()
        self._bytes = sum(entry.size for entry in entries(folder))
        self._known = {(entry.kind, bytes.fromhex(entry.path.stem)) for entry in self._own()}

    def _own(self) -> Iterator[Entry]:
        for entry in entries(self._root):
            if entry.path.parent == self._folder and len(entry.path.stem) == 64:
                with contextlib.suppress(ValueError):
                    bytes.fromhex(entry.path.stem)
                    yield entry

    @property
    def held_bytes(self) -> int:
        """Bytes of all models' files, as far as this process knows."""
        return self._bytes

    @property
    def largest(self) -> int:
        """The most bytes that can be kept together: making room frees a tenth more than is needed."""
        return self._limit - self._limit // 10

    def has(self, kind: Kind, key: bytes) -> bool:
        return (kind, key) in self._known

    def read(self, kind: Kind, key: bytes, length: int) -> Payload | None:
        """The payload of `length` bytes, or None if it is not there or not to be trusted; then it is deleted."""
        path = self._path(kind, key)
        payload = payload_of(path, self._model)
        if payload is not None and len(payload) == length:
            self.read_bytes += length
            self.touch(kind, key)
            return payload
        with self._books:
            self._known.discard((kind, key))
        if path.exists():
            self.corrupt += 1
            log.warning("%s is torn, foreign or corrupt; deleted", path)
            self._delete(path)
        return None

    def touch(self, kind: Kind, key: bytes) -> None:
        """It was of use: among the last to make room."""
        if self.has(kind, key):
            with contextlib.suppress(OSError):
                os.utime(self._path(kind, key))

    def write(self, kind: Kind, key: bytes, payload: bytes | Payload) -> bool:
        """Keep `payload`; False if it does not fit or the disk refuses. What is there already is left alone."""
        if self.has(kind, key):
            return True
        size = _HEADER.size + len(payload)
        with self._books:
            if self.full or not self._make_room(size):
                return False
        header = _HEADER.pack(_MAGIC, self._model, key, hashlib.sha256(payload).digest(), len(payload))
        try:
            self._write(self._path(kind, key), header, payload)
        except OSError as error:
            self.full = True
            log.warning("The cache folder takes no more: %s. Prefixes are kept in memory only from now on.", error)
            return False
        with self._books:
            self._known.add((kind, key))
            self._bytes += size
        self.written_bytes += len(payload)
        return True

    def _write(self, path: Path, header: bytes, payload: bytes | Payload) -> None:
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(header)
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _make_room(self, size: int) -> bool:
        if size > self._limit:
            return False
        if self._bytes + size > self._limit:
            # a tenth more than needed, so that a full folder is not listed again for every file
            prune(self._root, max(0, self._limit - size - self._limit // 10))
            self._bytes = sum(entry.size for entry in entries(self._root))
            self._known = {(entry.kind, bytes.fromhex(entry.path.stem)) for entry in self._own()}
            log.debug("cache folder pruned to %s", format_bytes(self._bytes))
        return self._bytes + size <= self._limit

    def _remove_leftovers(self) -> None:
        """Temporary files of processes that are gone."""
        for path in self._folder.glob(f"{_TEMPORARY}*"):
            owner = path.name.removeprefix(_TEMPORARY).split("-")[0]
            if not owner.isdigit() or int(owner) == os.getpid() or not Path(f"/proc/{owner}").exists():
                path.unlink(missing_ok=True)

    def _delete(self, path: Path) -> None:
        with self._books, contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self._bytes -= size

    def _path(self, kind: Kind, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.{kind}"
