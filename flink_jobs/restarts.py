"""How often, and how soon, Flink starts a job again that has failed."""

from __future__ import annotations

from typing import Final

from flink_jobs.settings import Settings

_BACKOFF: Final = "restart-strategy.exponential-delay"


def restart_options(settings: Settings) -> dict[str, str]:
    """Flink's restart options for a job.

    Somebody waits for a run that ends: it fails when it has failed again and again. A job that goes
    on for ever has to outlive its broker's outage, however long that is, and what has killed it
    eight times in a month: it is never given up, and `breakwater status` shows its restarts.
    """
    ends = settings.source.kind == "files" or settings.kafka.end == "latest"
    return {
        "restart-strategy.type": "exponential-delay",
        f"{_BACKOFF}.initial-backoff": "100 ms",
        f"{_BACKOFF}.max-backoff": "10 s",
        # Else a fault would pay for all those of the hour before it with a longer pause.
        f"{_BACKOFF}.reset-backoff-threshold": "1 h" if ends else "1 min",
        **({f"{_BACKOFF}.attempts-before-reset-backoff": "8"} if ends else {}),
    }
