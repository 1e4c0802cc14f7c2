"""A recorded host in one file: exactly what the rules read, already scrubbed, to be replayed with `--sysroot`."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perilune.errors import ConfigError
from perilune.host.doctor import diagnose
from perilune.host.rule import Target
from perilune.host.sysroot import UNREADABLE, Sysroot, place_of

_MOST_FILES, _MOST_BYTES = 20_000, 64 << 20  # of a foreign snapshot; a host with eight GPUs has some 300 files


def record(root: Sysroot, file: Path) -> int:
    """Writes what every target's rules read of `root` to `file`, a .tar.gz, and returns how many readings it has.

    Raises ConfigError if the file cannot be written.
    """
    for target in (None, *Target):
        diagnose(root, target)
    texts, folders, unreadable = _contents(root)
    texts[UNREADABLE] = "".join(f"{place}\t{problem}\n" for place, problem in sorted(unreadable.items()))
    try:
        with tarfile.open(file, "w:gz", format=tarfile.PAX_FORMAT) as archive:
            for place in sorted(folders):
                entry = tarfile.TarInfo(place)  # no owner, no time: TarInfo's own are zero
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            for place, text in sorted(texts.items()):
                entry = tarfile.TarInfo(place)
                data = text.encode()
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written.", str(error), "Name a file in a folder you may write to."
        ) from None
    return len(texts) - 1


def _contents(root: Sysroot) -> tuple[dict[str, str], set[str], dict[str, str]]:
    """(text per place, folders, problem per place). What is absent is left out: so it is absent in the replay."""
    texts: dict[str, str] = {}
    folders: set[str] = set()
    unreadable: dict[str, str] = {}
    for reading in root.readings:
        place = place_of(reading.kind, reading.name)
        if reading.text is not None:
            texts[place] = reading.text
        elif not reading.absent:
            unreadable[place] = reading.problem
    for listing in root.listings:
        place = place_of("file", listing.path)
        if not listing.problem:
            folders.add(place)
            # A name is all that is known of most; those that were read as files are files.
            folders |= {f"{place}/{name}" for name in listing.names if f"{place}/{name}" not in texts}
        elif not listing.absent:
            unreadable[place] = listing.problem
    return texts, {folder for folder in folders if folder not in unreadable}, unreadable


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder to read a recorded host from: `path` itself, or what a snapshot holds for as long as it is open.

    Raises ConfigError for what is neither a folder nor a snapshot.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="perilune-host-") as folder:
        try:
            with tarfile.open(path, "r:gz") as archive:
                members = archive.getmembers()
                if len(members) > _MOST_FILES or sum(member.size for member in members) > _MOST_BYTES:
                    raise ConfigError(f"{path} is too large for a recorded host.")
                archive.extractall(folder, members, filter="data")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise ConfigError(
                f"{path} is no recorded host.",
                str(error),
                "Give a folder, or a file that `perilune doctor snapshot FILE.tar.gz` wrote.",
            ) from None
        yield Path(folder)
