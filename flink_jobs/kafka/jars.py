"""The jars that come from Maven and not with PyFlink, found by name when a job starts.

`make jars` fetches them as docker/pom.xml lists them. Reading and writing files needs none.
"""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flink_jobs.errors import UserError

KAFKA: Final = "flink-sql-connector-kafka"
PROJECT_JARS: Final = Path(__file__).resolve().parents[2] / "jars"
BROKER_JARS: Final = PROJECT_JARS / "broker"

#: What Breakwater uses of a connector, to tell another version's jar, or another jar of the name.
_CLASSES: Final = {
    KAFKA: (
        "org/apache/flink/streaming/connectors/kafka/table/KafkaDynamicSource.class",
        "org/apache/flink/streaming/connectors/kafka/table/DynamicKafkaRecordSerializationSchema.class",
        "org/apache/flink/connector/kafka/sink/TransactionNamingStrategy.class",
        "org/apache/flink/kafka/shaded/org/apache/kafka/clients/admin/Admin.class",
    )
}


class JarError(UserError):
    """A jar is missing or not the right one: one line that names it and says what to do."""


@dataclass(frozen=True)
class Jar:
    """A connector's jar.

    Attributes:
        path: where it is.
        in_flink: whether it lies in Flink's own lib folder, and so is on the class path already.
    """

    path: Path
    in_flink: bool

    @property
    def url(self) -> str:
        """As Flink's options name it (trap T42)."""
        return self.path.as_uri()


def find_jar(name: str, folder: str, environ: Mapping[str, str]) -> Jar:
    """Find a connector: in the folder that the settings name, else here, else in Flink's lib.

    Args:
        name: the jar's name without its version.
        folder: the setting `jars`; "" when it is not set.
        environ: for FLINK_HOME.

    Raises:
        JarError: there is none, there are several, or it is not the one that this was made for.
    """
    places = list(_places(folder, environ))
    for place, in_flink in places:
        found = [path for path in place.glob(f"{name}-*.jar") if _is_version_of(path, name)]
        if len(found) > 1:
            names = ", ".join(sorted(path.name for path in found))
            raise JarError(f"{place} has {names}: remove all but one of them")
        if found:
            _check(found[0], name)
            return Jar(found[0].resolve(), in_flink)
    where = ", ".join(str(place) for place, _ in places)
    raise JarError(
        f"{name}-*.jar is missing in {where}: run `make jars`, or set jars to its folder"
    )


def broker_class_path(folder: Path = BROKER_JARS) -> str:
    """The class path of a Kafka broker, for the tests and the demo.

    Raises:
        JarError: it has not been fetched.
    """
    if not list(folder.glob("kafka_*.jar")):
        raise JarError(f"{folder} has no Kafka broker: run `make jars`")
    return f"{folder}/*"


def _places(folder: str, environ: Mapping[str, str]) -> Iterator[tuple[Path, bool]]:
    """Where to look, and whether Flink has its own class path there."""
    if folder:
        yield Path(folder), False
        return
    yield PROJECT_JARS, False
    if environ.get("FLINK_HOME"):
        yield Path(environ["FLINK_HOME"]) / "lib", True
        return
    spec = importlib.util.find_spec("pyflink")
    for place in (spec and spec.submodule_search_locations) or ():
        yield Path(place) / "lib", True


def _is_version_of(path: Path, name: str) -> bool:
    return re.fullmatch(r"\d.*", path.stem[len(name) + 1 :]) is not None


def _check(path: Path, name: str) -> None:
    """Look into it: Flink would take any file, and fail late and far from the cause."""
    try:
        with zipfile.ZipFile(path) as jar:
            inside = set(jar.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise JarError(f"{path} cannot be read as a jar ({error}): run `make jars`") from None
    for wanted in _CLASSES.get(name, ()):
        if wanted not in inside:
            short = wanted.rpartition("/")[2].removesuffix(".class")
            raise JarError(
                f"{path} is not the {name} that this Breakwater is made for, it lacks {short}: "
                "remove it and run `make jars`"
            )
