"""The delivery demo: the main job delivers to a service that is not well.

    make delivery-demo

generates events with every kind of damage, starts a service on loopback that is busy, knows not
every user and is down for a while (flaky_service.py), runs the main job against it, which shows how
delivery is getting on, and stops all that it has started.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from flink_jobs.demo.generate import generate
from flink_jobs.errors import FAILED, UserError

_STARTS_WITHIN_S: Final = 20.0
_RUNS_WITHIN_S: Final = 900.0
_BAD_RATE: Final = 0.02
_START: Final = datetime(2026, 1, 1, tzinfo=timezone.utc)
_SETTINGS: Final = """\
[delivery]
target = "http"
max_records = 400          # a lane that is half full slows the input down
slow_input_ms = 1000
[http]
url = "http://127.0.0.1:{port}/events"
[retry]
base_ms = 500
[breaker]
open_ms = 2000
open_cap_ms = 4000
[source]
split_bytes = 20000        # so that there is something to slow down
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="how many are generated")
    call = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="breakwater-delivery-demo-"))
    try:
        generate(call.events, _BAD_RATE, 15, 500, 42, _START, folder / "events.jsonl")
        with _service(folder, call.events) as port:
            return _run(folder, port)
    except UserError as error:
        print(f"breakwater: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return FAILED
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _service(folder: Path, events: int) -> Iterator[int]:
    """The service's port, while it runs."""
    port_file = folder / "port"
    module = [sys.executable, "-m", "flink_jobs.demo.flaky_service"]
    process = subprocess.Popen(  # noqa: S603 # our own
        [*module, "--port-file", str(port_file), "--requests", str(events)]
    )
    try:
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError("the demo's service did not start; see what it has printed")
            time.sleep(0.05)
        yield int(port_file.read_text())
    finally:
        process.kill()
        process.wait()


def _run(folder: Path, port: int) -> int:
    """The command that everybody uses, so that what is seen is what they will see."""
    config = folder / "delivery.toml"
    config.write_text(_SETTINGS.format(port=port))
    print(
        f"a service on port {port}: 5 % busy, 1 % of the users unknown, down for 8 s on the way\n"
        f"{_SETTINGS.format(port=port)}"
    )
    breakwater = Path(sys.executable).with_name("breakwater")
    call = ["run", "--input", str(folder / "events.jsonl"), "--output", str(folder / "out")]
    process = subprocess.Popen(  # noqa: S603 # our own
        [str(breakwater), *call, "--config", str(config)], env=dict(os.environ)
    )
    try:
        return process.wait(_RUNS_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"the demo has not ended within {_RUNS_WITHIN_S:.0f} s") from None
    except KeyboardInterrupt:
        return process.wait(60)  # it got the Ctrl-C too, and ends in order
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
