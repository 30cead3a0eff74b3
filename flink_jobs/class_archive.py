"""Java's own archive of loaded classes (CDS), made once and mapped by each later run.

Half of a short run goes into reading, checking and linking some 22,000 classes. The first run
writes down which ones; a process of low priority, which nobody waits for, makes an archive of them
(`class_archive_maker`), and the runs after that map it. An archive belongs to one Java, to its
options and to the jars of the class path: if one of them changes, another archive is made.

Java can only archive classes of its own class path. So Flink's planner, which Flink otherwise
unpacks at each start for a class loader of its own, is put on the class path beside the archive:
Flink's documented alternative to its planner loader.

Nothing here may break a run. Without a folder to write to, or with ``-Xshare`` among the user's
JVM_ARGS, Java starts as ever. Java itself does not use an archive that does not fit (-Xshare:auto).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flink_jobs import class_archive_maker as maker
from flink_jobs.java import Java

#: Java writes and reads such archives from 13 on; this way of making them is tried with 17 and 21.
_OLDEST: Final = 17
#: Part of the key: raised when what is in an archive's folder changes.
_FORMAT: Final = 1
_LOADER: Final = "flink-table-planner-loader"
_PLANNER: Final = "flink-table-planner.jar"
#: With one of these the user has an archive in mind, or none.
_OF_THE_USER: Final = (
    "-Xshare",
    "-XX:SharedArchiveFile",
    "-XX:SharedClassListFile",
    "-XX:ArchiveClassesAtExit",
    "-XX:DumpLoadedClassList",
)
#: Of Java's own warnings none goes to standard output: that is the command's.
_QUIET: Final = ("-Xlog:disable", "-Xlog:all=warning:stderr")
#: Where it was made for, and not at a random address, for which each pointer in it is changed.
_IN_PLACE: Final = ("-XX:+UnlockDiagnosticVMOptions", "-XX:ArchiveRelocationMode=0")
#: After an attempt that failed it is not tried again for so long.
_AGAIN_AFTER_S: Final = 86_400.0


@dataclass(frozen=True)
class ClassArchive:
    """How Java starts: its class path, and the archive or the list for one.

    Attributes:
        class_path: the jars, in their order.
        options: for Java.
        folder: where the archive is, or will be; None where there can be none.
        recorded: the list that this run writes for the archive to come, if it does.
    """

    class_path: tuple[Path, ...]
    options: tuple[str, ...] = ()
    folder: Path | None = None
    recorded: Path | None = None

    @property
    def in_use(self) -> bool:
        """Whether Java is started with an archive."""
        return self.folder is not None and self.recorded is None and bool(self.options)

    def without(self) -> ClassArchive:
        """The same start without the archive, which is given up."""
        self.give_up()
        return ClassArchive(self.class_path)

    def give_up(self) -> None:
        """Java has crashed with it: the next run makes another."""
        if self.folder is not None:
            with suppress(OSError):
                (self.folder / maker.STAMP).unlink(missing_ok=True)

    def make_later(self, java: Java, jvm_args: Sequence[str]) -> None:
        """Have the archive made of what the run that has ended well had loaded; does not wait."""
        if self.folder is None or self.recorded is None:
            return
        with suppress(OSError):
            _keep_list(self.recorded, self.folder / maker.CLASS_LIST)
            command = [str(java.home / "bin" / "java"), *jvm_args]
            plan = {"java": command, "class_path": _joined(self.class_path)}
            (self.folder / maker.PLAN).write_text(json.dumps(plan))
            subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-I", "-S", maker.__file__, str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
            )


def open_archive(
    java: Java,
    jars: Sequence[Path],
    jvm_args: Sequence[str],
    tmp: Path,
    environ: Mapping[str, str],
) -> ClassArchive:
    """The archive for this Java, these jars and these options, or what it takes to make it.

    Args:
        java: which one.
        jars: Flink's, and what else is on the class path.
        jvm_args: Java's options, the user's among them; none that differ from run to run.
        tmp: the run's folder for temporary files.
        environ: for the folder of caches.
    """
    plain = ClassArchive(tuple(jars))
    if java.version < _OLDEST or any(arg.startswith(_OF_THE_USER) for arg in jvm_args):
        return plain
    try:
        folder = cache_folder(environ) / f"java-{_key(java, jars, jvm_args)}"
        folder.mkdir(parents=True, exist_ok=True)
        class_path = _with_planner(jars, folder)
        with suppress(OSError):  # a folder to read from only is good enough
            os.utime(folder)  # those that were used last are kept
        if maker.is_whole(folder):
            mapped = f"-XX:SharedArchiveFile={folder / maker.ARCHIVE}"
            return ClassArchive(class_path, (mapped, *_IN_PLACE, *_QUIET), folder)
        if _failed_lately(folder):
            return ClassArchive(class_path, (), folder)
    except (OSError, KeyError, zipfile.BadZipFile, RuntimeError):
        return plain
    recorded = tmp / maker.CLASS_LIST
    return ClassArchive(class_path, (f"-XX:DumpLoadedClassList={recorded}",), folder, recorded)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where archives are kept.

    Raises:
        RuntimeError: the user has no home.
    """
    if (cache := environ.get("XDG_CACHE_HOME", "")) and Path(cache).is_absolute():
        return Path(cache) / "breakwater"
    if home := environ.get("HOME", ""):
        return Path(home) / ".cache" / "breakwater"
    return Path.home() / ".cache" / "breakwater"


def _key(java: Java, jars: Sequence[Path], jvm_args: Sequence[str]) -> str:
    """A name for all that an archive depends on."""
    java_files = (java.home / "release", java.home / "lib" / "server" / "libjvm.so")
    facts = [str(_FORMAT), str(java.home), *jvm_args]
    facts += [_stamp(file) for file in (*java_files, *jars)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _stamp(file: Path) -> str:
    """What changes when a file is replaced: Java, too, goes by its size and time."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return f"{file} is missing"
    return f"{file} {stat.st_size} {stat.st_mtime_ns}"


def _with_planner(jars: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """The class path with the planner instead of the jar that holds it packed."""
    loader = next((jar for jar in jars if jar.name.startswith(_LOADER)), None)
    if loader is None:
        return tuple(jars)
    planner = folder / _PLANNER
    if not planner.is_file():
        unpacked = folder / f"{_PLANNER}.{os.getpid()}"
        try:
            with (
                zipfile.ZipFile(loader) as outer,
                outer.open(_PLANNER) as packed,
                unpacked.open("wb") as out,
            ):
                shutil.copyfileobj(packed, out, 1 << 20)
            # The archive goes by the jar's time: it must not change when two runs unpack at once.
            os.utime(unpacked, ns=(loader.stat().st_mtime_ns,) * 2)
            unpacked.replace(planner)
        finally:
            unpacked.unlink(missing_ok=True)
    return tuple(planner if jar == loader else jar for jar in jars)


def _failed_lately(folder: Path) -> bool:
    try:
        failed_at = (folder / maker.FAILED).stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - failed_at < _AGAIN_AFTER_S


def _keep_list(recorded: Path, kept: Path) -> None:
    """Java may have been ended in the middle of a line: what stands behind the last one goes."""
    lines = recorded.read_bytes()
    written = kept.with_name(f"{kept.name}.{os.getpid()}")
    written.write_bytes(lines[: lines.rfind(b"\n") + 1])
    written.replace(kept)


def _joined(class_path: Sequence[Path]) -> str:
    return os.pathsep.join(map(str, class_path))
