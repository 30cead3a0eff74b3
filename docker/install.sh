#!/usr/bin/env bash
# The image's own work: a virtual environment with this project (no sources, no tests, no tools),
# and the connectors' jars on Flink's class path. It is run by docker/Dockerfile, and outside of a
# container by `make image-steps`.
#
#   docker/install.sh VENV JARS FLINK_HOME
set -euo pipefail

if [[ $# -ne 3 ]]; then
  echo "docker/install.sh: three folders are needed: VENV JARS FLINK_HOME" >&2
  exit 2
fi
venv=$1 jars=$2 flink_home=$3
project="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-python3}"

if ! compgen -G "$jars/flink-sql-connector-kafka-*.jar" >/dev/null; then
  echo "docker/install.sh: $jars has no Kafka connector: run make jars" >&2
  exit 1
fi
if [[ ! -d "$flink_home/lib" ]]; then
  echo "docker/install.sh: $flink_home is no Flink, it has no lib folder" >&2
  exit 1
fi

"$python" -m venv "$venv"
venv="$(cd "$venv" && pwd)"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check
     --constraint "$project/constraints.txt")
"${pip[@]}" setuptools wheel
# From a copy: a build leaves its own folders beside the sources.
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
cp -r "$project"/{pyproject.toml,README.md,flink_jobs,operators,udfs,sql} "$build"
"${pip[@]}" --no-build-isolation "$build"

cp "$jars"/*.jar "$flink_home/lib/"

# Seen from elsewhere: what is installed must not lean on the sources.
cd /
"$venv/bin/breakwater" --version
"$venv/bin/python" -c 'import flink_jobs.on_cluster, operators.bridge.steps as b; assert b._source("Marks"); from sql import statement'
