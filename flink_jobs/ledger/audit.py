"""Whether the books of a run balance: its ledger's rows added up, and no record left out.

What a checkpoint commits has its rows in the ledger. Of files, the rows say which pieces have been
read, and the plan says which there are. Of topics, they say which offsets have been counted; where
some are left out, the topic is asked whether it has records there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.ledger.recount import coverage, ledger_rows, recount
from flink_jobs.ledger.report import counts_dict
from flink_jobs.run_folder.folder import OutputFolder
from flink_jobs.run_folder.plan import load_plan
from operators.rules.ledger import Book, Counts, LedgerError, Partition, differences, read_book
from operators.rules.offsets import Finding, Gap, gaps, repeated, split_at

if TYPE_CHECKING:
    from flink_jobs.kafka.reader import Topics
    from flink_jobs.settings import Settings
    from operators.rules.splits import ReadPlan

_NAMED_HOLES: Final = 5


@dataclass
class Audit:
    """What was found.

    Attributes:
        book: the ledger's rows, added up.
        behind: offsets of a topic's partition, up to its end, that are not counted yet.
        findings: gaps in the offsets of a topic's partition, and what the topic says of them.
        problems: what is off, a sentence each.
        notes: what is worth knowing, and nothing wrong.
    """

    book: Book
    behind: dict[Partition, int] = field(default_factory=dict)
    findings: dict[Partition, list[Finding]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Whether nothing is off."""
        return not self.problems

    def partitions(self) -> list[Partition]:
        """All that there is something to say of."""
        return sorted(self.book.by_partition.keys() | self.behind.keys())

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return {
            **counts_dict(self.book.total),
            "balanced": self.balanced,
            "problems": self.problems,
            "notes": self.notes,
            "partitions": [self._partition(place) for place in self.partitions()],
            "minutes": [
                {"minute": minute, **counts_dict(counts)}
                for minute, counts in sorted(self.book.by_minute.items())
            ],
        }

    def _partition(self, place: Partition) -> dict[str, Any]:
        spans = self.book.spans.get(place, [])
        counts = self.book.by_partition.get(place, Counts())
        return {
            "source_topic": place[0],
            "source_partition": place[1],
            **counts_dict(counts),
            "first_offset": min((span.first for span in spans), default=None),
            "last_offset": max((span.last for span in spans), default=None),
            "behind": self.behind.get(place),
            "gaps": [
                {
                    "first_offset": finding.gap.first,
                    "last_offset": finding.gap.last,
                    "missing": finding.gap.missing,
                    "uncounted": None if finding.there is None else finding.uncounted,
                }
                for finding in self.findings.get(place, [])
            ],
        }


def audit_folder(output: Path) -> Audit:
    """The books of a run on files.

    Raises:
        UserError: there are none, or a row cannot be read.
    """
    folder = OutputFolder(output)
    if not folder.parts("ledger"):
        raise UserError(
            f"--dir {output}: has no committed ledger/*.jsonl; give the output folder of a run, or "
            "wait for its first checkpoint",
            WRONG_CALL,
        )
    return audit_run(folder, load_plan(folder.plan) if folder.plan.is_file() else None)


def audit_run(folder: OutputFolder, plan: ReadPlan | None) -> Audit:
    """The books of a run: of each file, of the input, and of the outputs once all are committed.

    Args:
        folder: its output.
        plan: what it had to read, if that is known.

    Raises:
        UserError: a row cannot be read.
    """
    audit = Audit(_book(ledger_rows(folder)))
    unread = coverage(folder, plan) if plan else None
    if unread:
        audit.problems += unread.problems()
    # The totals hide what one file has too few and another too many of.
    audit.problems += audit.book.imbalances()
    if unread and unread.missing and folder.newest_checkpoint() is not None:
        # Until all is read the outputs are committed at different times.
        audit.notes.append("the run is not done: go on with breakwater run ... --resume")
    else:
        audit.problems += differences(audit.book.total, recount(folder))
        has_ended = plan is not None and folder.newest_checkpoint() is None
        if has_ended and (pending := audit.book.total.pending):
            # Delivery ends before its input does: nothing may be on its way any more.
            audit.problems.append(f"the run has ended with {pending} events that are pending")
    return audit


def audit_topics(topics: Topics, ledger: str, settings: Settings) -> Audit:
    """The books of a job on topics.

    Args:
        topics: the cluster.
        ledger: the ledger's topic.
        settings: the job's, if it was told; else there is no telling where it began to read.

    Raises:
        UserError: there is no such topic, no broker answers, or a row cannot be read.
    """
    topics.admin.require([ledger], "--topic")
    audit = Audit(Book())
    cut = _read_ledger(audit, topics, ledger)
    if not audit.book.by_partition:
        audit.notes.append(f"{ledger} has no committed row{' that is whole' if cut else ''}")
    audit.problems += audit.book.imbalances()
    known = set(topics.admin.topics())
    read = _read_topics(topics, settings)
    for topic in sorted({topic for topic, _ in audit.book.spans} | read):
        began = not cut and settings.kafka.start == "earliest" and topic in read
        _look_for_holes(audit, topics, topic, began, topic in known)
    return audit


def _read_topics(topics: Topics, settings: Settings) -> set[str]:
    """The topics that the job of these settings reads; none where it was not told."""
    pattern = settings.kafka.topic_pattern
    return set(topics.admin.matching(pattern) if pattern else settings.kafka.topics)


def _book(rows: Iterator[bytes], after: str = "") -> Book:
    try:
        return read_book(rows, after)
    except LedgerError as error:
        raise UserError(f"{error}: is that a ledger of Breakwater?") from error


def _read_ledger(audit: Audit, topics: Topics, ledger: str) -> str:
    """Add up a ledger's rows; returns the minute up to which some of them have been deleted."""
    ends = topics.ends(ledger)
    cut = ""
    for number, (begin, end) in ends.items():
        if begin > 0:
            first = next(topics.lines(ledger, number, begin, end), None)
            cut = max(cut, _book(iter([first])).first_minute() if first else "")
    if cut:
        audit.notes.append(
            f"rows up to {cut} are left aside: {ledger} has deleted some of them (its retention)"
        )

    def rows() -> Iterator[bytes]:
        for number, (begin, end) in ends.items():
            yield from topics.lines(ledger, number, begin, end)

    audit.book = _book(rows(), cut)
    return cut


def _look_for_holes(audit: Audit, topics: Topics, topic: str, began: bool, known: bool) -> None:
    """Look into the partitions of a source topic."""
    ends = topics.ends(topic) if known else {}
    if not known:
        audit.notes.append(f"{topic} is there no more: gaps in its offsets cannot be checked")
    for place, spans in sorted(audit.book.spans.items()):
        if place[0] != topic:
            continue
        begin, end = ends.get(place[1], (0, 0))
        found = gaps(spans, begin if began and known else None)
        audit.findings[place] = _ask(topics, place, found, begin, end)
        _tell(audit, place, repeated(spans))
    for number, (begin, end) in ends.items():
        read = max((span.last + 1 for span in audit.book.spans.get((topic, number), [])), default=0)
        audit.behind[topic, number] = max(0, end - max(begin, read))


def _ask(topics: Topics, place: Partition, found: list[Gap], begin: int, end: int) -> list[Finding]:
    """What a topic that has offsets from begin to before end says of gaps."""
    gone: list[Gap] = []
    there: list[Gap] = []
    for gap in found:
        before, rest = split_at(gap, begin)
        gone += [before] if before else []
        # Beyond its end: the topic is not the one that was read.
        if rest:
            (there if rest.last < end else gone).append(rest)
    counts = topics.count(*place, there) if there else []
    asked = [Finding(gap, n) for gap, n in zip(there, counts, strict=True)]
    return sorted([*asked, *(Finding(gap, None) for gap in gone)], key=lambda each: each.gap)


def _tell(audit: Audit, place: Partition, again: list[tuple[int, int]]) -> None:
    """Say of a partition what is off, and what only looks so."""
    name, findings = f"{place[0]}/{place[1]}", audit.findings[place]
    holes = [finding for finding in findings if finding.uncounted]
    for finding in holes[:_NAMED_HOLES]:
        audit.problems.append(
            f"{name}: offsets {finding.gap.first} to {finding.gap.last}: records that the topic "
            f"has there and the ledger has not: {finding.uncounted}"
        )
    if more := holes[_NAMED_HOLES:]:
        missing = sum(finding.uncounted for finding in more)
        audit.problems.append(f"{name}: and {len(more)} more such holes, records: {missing}")
    if again:
        offsets = sum(last - first + 1 for first, last in again)
        audit.problems.append(
            f"{name}: offsets counted more than once: {offsets}, the first is {again[0][0]}; has a "
            "job begun anew on the same ledger?"
        )
    empty = [finding.gap for finding in findings if finding.there is not None]
    offsets = sum(gap.missing for gap in empty) - sum(finding.uncounted for finding in findings)
    if offsets:
        audit.notes.append(
            f"{name}: offsets without a record, which are no loss: {offsets} (markers of "
            "transactions, aborted or compacted records)"
        )
    if gone := [finding.gap for finding in findings if finding.there is None]:
        audit.notes.append(
            f"{name}: offsets that are not in the ledger and cannot be checked any more: "
            f"{sum(gap.missing for gap in gone)} (the topic has deleted what was there)"
        )
