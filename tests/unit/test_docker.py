"""The files of docker/, as far as they can be looked at without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from flink_jobs.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
#: What a FlinkDeployment may hold: its own first lines say where it is from.
CRD = Path(__file__).with_name("flink_deployment.crd.yaml")
CHECKER = Path(sys.executable).with_name("check-jsonschema")


def compose_faults(file: Path) -> str:
    """What the schema of the Compose specification has against a file."""
    done = subprocess.run(
        [CHECKER, "--builtin-schema", "vendor.compose-spec", file],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


def load(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text())


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_the_compose_file_is_valid() -> None:
    assert compose_faults(DOCKER / "compose.yaml") == ""


def test_a_compose_file_with_a_misspelt_key_is_not(tmp_path: Path) -> None:
    """The positive control: the schema refuses what it does not know."""
    text = (DOCKER / "compose.yaml").read_text()
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(text.replace("healthcheck:", "healthchecks:", 1))
    assert "healthchecks" in compose_faults(wrong)


def test_compose_mounts_only_files_that_are_there_and_binds_to_loopback_only() -> None:
    for name, service in load("compose.yaml")["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DOCKER / source).is_file(), f"{name}: {volume}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port}"


def test_the_settings_for_compose_are_right() -> None:
    settings = load_settings(DOCKER / "breakwater.toml", environ={})
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert "9092" in str(load("compose.yaml")["services"]["kafka"]["environment"])


def test_prometheus_looks_where_flink_reports() -> None:
    services = load("compose.yaml")["services"]
    (job,) = load("prometheus.yml")["scrape_configs"]
    for target in job["static_configs"][0]["targets"]:
        name, port = target.split(":")
        assert f"metrics.reporter.prom.port: {port}" in str(services[name]["environment"])


def test_grafana_finds_its_source_and_dashboard() -> None:
    (source,) = load("grafana/datasources.yaml")["datasources"]
    dashboard = json.loads((DOCKER / "grafana/flink.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    mounts = str(load("compose.yaml")["services"]["grafana"]["volumes"])
    assert load("grafana/dashboards.yaml")["providers"][0]["options"]["path"] in mounts


def deployment_faults(spec: dict[str, Any]) -> list[str]:
    """What the operator's schema has against the spec of a FlinkDeployment."""
    schema = yaml.safe_load(CRD.read_text())
    refuse_unknown(schema)
    return [error.message for error in Draft202012Validator(schema).iter_errors(spec)]


def refuse_unknown(schema: Any) -> None:
    """Kubernetes drops a field that it does not know: here it is a fault."""
    if isinstance(schema, list):
        for each in schema:
            refuse_unknown(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema["additionalProperties"] = False
        for each in schema.values():
            refuse_unknown(each)


def test_the_flink_deployment_is_valid() -> None:
    assert deployment_faults(load("flink-deployment.yaml")["spec"]) == []


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        (("job", "jarUri"), "local:///x", "'jarUri' was unexpected"),
        (("job", "upgradeMode"), "savepoints", "'savepoints' is not one of"),
        (("flinkVersion",), "v2_9", "'v2_9' is not one of"),
        (("taskManager", "resource", "cpu"), "one", "'one' is not of type 'number'"),
        (("podTemplate", "spec", "volume"), [], "'volume' was unexpected"),
    ],
)
def test_a_flink_deployment_with_a_fault_is_not(
    path: tuple[str, ...], value: object, wanted: str
) -> None:
    """The positive control: the schema refuses what it does not know."""
    spec = load("flink-deployment.yaml")["spec"]
    table = spec
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = value
    (fault,) = deployment_faults(spec)
    assert wanted in fault


REQUIRED = {
    "apiVersion": "flink.apache.org/v1beta1",
    "kind": "FlinkDeployment",
}


def test_the_flink_deployment_runs_our_entry_with_the_images_python() -> None:
    deployment = load("flink-deployment.yaml")
    assert {name: deployment[name] for name in REQUIRED} == REQUIRED
    spec = deployment["spec"]
    assert all(isinstance(value, str) for value in spec["flinkConfiguration"].values())
    arguments = spec["job"]["args"]
    assert arguments[arguments.index("-pym") + 1] == "flink_jobs.on_cluster"
    assert arguments[arguments.index("-pyclientexec") + 1] == "/opt/breakwater/venv/bin/python"
    (mount,) = spec["podTemplate"]["spec"]["containers"][0]["volumeMounts"]
    assert arguments[arguments.index("--config") + 1].startswith(mount["mountPath"])
    assert mount["name"] in {each["name"] for each in spec["podTemplate"]["spec"]["volumes"]}


def test_versions_are_the_same_everywhere() -> None:
    flink = pinned("apache-flink")
    assert f"ARG FLINK=flink:{flink}-" in (DOCKER / "Dockerfile").read_text()
    deployment = load("flink-deployment.yaml")["spec"]
    assert deployment["job"]["jarURI"].endswith(f"flink-python-{flink}.jar")
    assert deployment["flinkVersion"] == "v" + "_".join(flink.split(".")[:2])
    assert f"-{flink}.jar" in str(deployment["podTemplate"])
    kafka = re.search(r"<kafka.version>(.*)</", (DOCKER / "pom.xml").read_text())
    assert kafka
    assert load("compose.yaml")["services"]["kafka"]["image"] == f"apache/kafka:{kafka[1]}"


def test_the_dockerfile_copies_what_the_project_is_installed_from() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    (include,) = re.findall(
        r"^include = (.*)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    for package in re.findall(r'"(\w+)\*"', include):
        assert re.search(rf"^COPY {package} {package}$", text, re.MULTILINE), package
        assert package in (DOCKER / "install.sh").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        ((), 2, "three folders are needed"),
        (("venv", "{tmp}", "{tmp}"), 1, "has no Kafka connector"),
        (("venv", "{jars}", "{tmp}"), 1, "is no Flink"),
    ],
)
def test_the_images_script_says_what_is_missing(
    tmp_path: Path, arguments: tuple[str, ...], code: int, wanted: str
) -> None:
    jars = tmp_path / "jars"
    jars.mkdir()
    (jars / "flink-sql-connector-kafka-1.jar").touch()
    given = [each.format(tmp=tmp_path, jars=jars) for each in arguments]
    done = subprocess.run(
        [DOCKER / "install.sh", *given],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, wanted in done.stderr) == (code, True), done.stderr
