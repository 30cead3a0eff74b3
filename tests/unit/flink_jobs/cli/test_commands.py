from __future__ import annotations

import pytest

from flink_jobs.cli.commands import repeat_option


@pytest.mark.parametrize(
    ("args", "spread"),
    [
        (["--input", "a"], ["--input", "a"]),
        (["--input", "a", "b", "--x"], ["--input", "a", "--input", "b", "--x"]),
        (["--input=a", "b"], ["--input=a", "--input", "b"]),
        (
            ["--input", "a", "--input", "b", "c"],
            [*["--input", "a"], "--input", "b", "--input", "c"],
        ),
        (["--output", "d", "--input", "a"], ["--output", "d", "--input", "a"]),
        (["--inputs", "a", "b"], ["--inputs", "a", "b"]),
        (["--input", "a", "--", "b"], ["--input", "a", "--", "b"]),
        (["--", "--input", "a", "b"], ["--", "--input", "a", "b"]),
        (["--json", "a"], ["--json", "a"]),
        ([], []),
    ],
)
def test_all_paths_up_to_the_next_option_belong_to_input(args, spread):
    assert repeat_option(args, "--input") == spread
