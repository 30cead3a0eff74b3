from __future__ import annotations

import pytest
from py4j.protocol import Py4JNetworkError

from flink_jobs.errors import UserError
from flink_jobs.machine.faults import one_line, reason

JAVA = """An error occurred while calling o1.get.
: java.util.concurrent.ExecutionException: Job execution failed.
\tat org.apache.flink.Some.method(Some.java:1)
Caused by: org.apache.flink.runtime.JobException: Recovery is suppressed by X
\tat org.apache.flink.Some.method(Some.java:1)
Caused by: java.io.IOException: No space left on device
\tat java.base/Some.method(Some.java:1)
"""
PYTHON = (
    JAVA
    + """Caused by: java.lang.RuntimeException: Error received from SDK harness: Traceback
  File "x.py", line 1, in <module>
operators.sources.files.SourceFileError: input file /a has shrunk: put it back
"""
)
ENDED = """Java gateway process exited before sending its port number.
Stderr:
Error: Could not find or load main class x
Caused by something
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (JAVA, "IOException: No space left on device"),
        (PYTHON, "input file /a has shrunk: put it back"),
        (ENDED, "Error: Could not find or load main class x"),
        ("\n\none\ntwo", "one"),
        ("", "ValueError"),
    ],
)
def test_the_line_that_tells_what_happened_is_found(text, told):
    assert reason(ValueError(text)) == told


def test_whatever_goes_wrong_becomes_one_line_with_advice():
    with pytest.raises(UserError) as caught, one_line("the run failed", "; resume it"):
        raise ValueError(PYTHON)
    assert str(caught.value) == ("the run failed: input file /a has shrunk: put it back; resume it")
    assert caught.value.exit_code == 1


def test_a_fault_that_is_one_line_already_stays_as_it_is():
    fault = UserError("as it is", 2)
    with pytest.raises(UserError) as caught, one_line("the run failed"):
        raise fault
    assert caught.value is fault


def test_a_java_process_that_has_died_is_called_so():
    with (
        pytest.raises(UserError, match="the run failed: the Java process has died"),
        one_line("the run failed"),
    ):
        raise Py4JNetworkError("Answer from Java side is empty")
