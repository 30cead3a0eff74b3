"""Makes an archive of Java's classes in the background, and throws old ones away.

It is run by its path, without site-packages: the standard library is all that it imports.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

ARCHIVE: Final = "classes.jsa"
#: Its size and time. Java looks at its head only: one that was cut off would crash it.
STAMP: Final = "classes.stamp"
CLASS_LIST: Final = "classes.lst"
PLAN: Final = "plan.json"
FAILED: Final = "failed"
_LOCK: Final = "lock"
#: An archive takes 20 s on a machine with nothing else to do.
_WITHIN_S: Final = 900.0
#: It takes 170 MB, and as much again for a moment.
_FREE_BYTES: Final = 1_000_000_000
#: Files, Kafka, and each for two versions of a jar.
_KEPT: Final = 4
_KEPT_FOR_S: Final = 30 * 86_400.0


def main(folder: Path) -> int:
    """Make the archive of a folder unless it is there, or being made."""
    os.nice(19)
    with (folder / _LOCK).open("w") as lock:
        if not _locked(lock):
            return 0
        if not is_whole(folder):
            try:
                made = _make(folder)
            except (OSError, ValueError, subprocess.SubprocessError):
                made = False
            if not made:
                (folder / FAILED).touch()
                return 1
            for done in (FAILED, CLASS_LIST):
                (folder / done).unlink(missing_ok=True)
    remove_old(folder)
    return 0


def is_whole(folder: Path) -> bool:
    """Whether the archive is there as it was made."""
    try:
        return (folder / STAMP).read_text() == _stamp(folder / ARCHIVE)
    except OSError:
        return False


def _stamp(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make(folder: Path) -> bool:
    """Have Java write it under another name, and look whether it takes it."""
    if shutil.disk_usage(folder).free < _FREE_BYTES:
        return False
    plan = json.loads((folder / PLAN).read_text())
    written = folder / f"{ARCHIVE}.new"
    written.unlink(missing_ok=True)
    archive = f"-XX:SharedArchiveFile={written}"
    class_path = ("-cp", plan["class_path"])
    try:
        listed = f"-XX:SharedClassListFile={folder / CLASS_LIST}"
        _java(*plan["java"], "-Xshare:dump", listed, archive, *class_path)
        _java(*plan["java"], "-Xshare:on", archive, *class_path, "-version")
        stamp = _stamp(written)
        written.replace(folder / ARCHIVE)
        (folder / STAMP).write_text(stamp)
    finally:
        written.unlink(missing_ok=True)
    return True


def _java(*command: str) -> None:
    subprocess.run(  # noqa: S603 - the Java that has just run the job
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_WITHIN_S,
        check=True,
    )


def remove_old(folder: Path) -> None:
    """Keep the archives that were used last; a Java that has one of the others mapped keeps it."""
    used = sorted(
        ((other.stat().st_mtime, other) for other in folder.parent.glob("java-*")), reverse=True
    )
    for place, (at, other) in enumerate(used):
        if other != folder and (place >= _KEPT or time.time() - at > _KEPT_FOR_S):
            _remove(other)


def _remove(folder: Path) -> None:
    with suppress(OSError), (folder / _LOCK).open("w") as lock:
        if _locked(lock):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
