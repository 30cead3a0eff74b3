"""Delivery: each accepted event goes to a target before it counts as processed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext
from pyflink.datastream.state import MapState, MapStateDescriptor, ValueState, ValueStateDescriptor

from operators.batches.events import EventType
from operators.bridge.steps import BYTES
from operators.delivery.courier import Courier, Round
from operators.delivery.delivery_rules import DeliveryRules
from operators.delivery.departures import Departures
from operators.delivery.parcels import Parcel
from operators.orphan import end_when_orphaned
from operators.rules.delivery.lane import Lane
from operators.rules.delivery.lane_records import Chunk, Head, Whole
from operators.rules.poison import PoisonRules
from operators.rules.verdict import Judge

T = TypeVar("T")
_VERSION: Final = 1
_END_MS: Final = 2**63 - 1
#: While calls are out the operator comes by so often.
_COME_BY_MS: Final = 50
#: A target whose last call took no longer is waited for: what it takes at once need not be kept.
QUICK_MS: Final = 20
_SWITCH_INTERVAL_S: Final = 0.0005
#: Events that wait for later are put away, and read from the state when they are due.
_REST_MS: Final = 1_000
#: From so much of its room on a lane holds its input up.
_SOFT_LIMIT: Final = 0.5


@dataclass
class _Station:
    """A lane in this worker: its calls, and what Flink's state has of it.

    Attributes:
        number: of the lane.
        round: its calls.
        head: as last saved; b"" for none.
        kept: chunks that the state has, and how many events of each.
        timer_ms: when Flink comes by; 0 for never.
        guarded: whether the end of the input is waited for.
        patience_ms: after so long Flink comes by while calls are out.
        told: the status as last told.
    """

    number: int
    round: Round
    head: bytes = b""
    kept: dict[int, int] = field(default_factory=dict)
    timer_ms: int = 0
    guarded: bool = False
    patience_ms: int = _COME_BY_MS
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def lane(self) -> Lane:
        """The lane."""
        return self.round.lane


class Delivery(KeyedProcessFunction):  # type: ignore[misc]
    """Events to a target, by lane.

    Input: rows of `lanes.LANED`; those that `bridge.dedup` has found to be duplicates are counted,
    and that is all. Output: rows of `DELIVERED`. Side outputs as intake's: dead letters and counts;
    and rows of the fallback store's lines, only where there is one (`DeliveryRules.to_fallback`).

    Guarantee: an event that has come in leaves once: as delivered, as a dead letter or to the
    fallback store. The target is called at least once for it, after a crash again with the same
    idempotency key. What is not delivered yet is in Flink's keyed state with its attempts, as is
    the breaker; calls that are out are made again after a restart. No checkpoint, watermark or
    other lane waits for a call: an element waits `QUICK_MS` for a target that has been as quick as
    that, and a batch `slow_input_ms` where a lane is almost full. At the end of the input what is
    due within `drain_timeout_ms` is finished, and the rest leaves as `flush_at_end`.

    State, a lane: `lane.v1`, its head (breaker, numbers); `records.v1`, what is known of each
    chunk's records, without their events; `events.v1`, those, as `lanes.Laned` packs them. The
    first two are MessagePack with a version in front.
    """

    def __init__(
        self,
        rules: DeliveryRules,
        lanes: tuple[int, ...],
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        """Take what travels to the workers.

        Args:
            rules: what delivery goes by.
            lanes: the lanes' keys, see `bridge.lane_keys`.
            now_ms: the clock, for tests.
        """
        self._rules = rules
        self._lanes = lanes
        self._now_ms = now_ms or _wall_clock_ms

    def open(self, runtime_context: RuntimeContext) -> None:
        """Build what is needed once a worker, and let the target get ready."""
        end_when_orphaned()
        # The loop and Flink's thread hand over to each other all the time.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        rules = self._rules
        self._backend = runtime_context._keyed_state_backend  # see _state_of
        self._heads: ValueState = runtime_context.get_state(ValueStateDescriptor("lane.v1", BYTES))
        self._records: MapState = runtime_context.get_map_state(
            MapStateDescriptor("records.v1", Types.LONG(), BYTES)
        )
        self._parcels: MapState = runtime_context.get_map_state(
            MapStateDescriptor("events.v1", Types.LONG(), BYTES)
        )
        self._event_type = EventType(rules.contract)
        self._judge = Judge(rules.contract, PoisonRules(), rules.max_record_bytes, _END_MS // 2)
        self._stations: dict[int, _Station] = {}
        self._drain_until_ms = self._held_up_ms = self._patience_ms = 0
        self._courier = Courier(
            rules.target(),
            rules.failures,
            timeout_ms=rules.timeout_ms,
            calls=rules.calls_per_worker,
            now_ms=self._now_ms,
        )
        self._courier.open()

    def close(self) -> None:
        """End the calls."""
        if "_courier" in vars(self):  # else the target could not even be made
            self._courier.close()

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        """Take a batch's events of a lane in."""
        data, duplicates = value[1], np.frombuffer(value[2], ">i4")
        if not data:
            yield from self._woken(ctx)
            return
        output = self._output()
        parcel = self._parcel(data)
        if len(duplicates):
            output.left_out(parcel, duplicates)
            parcel = parcel.without(duplicates)
        if len(parcel):
            station = self._station(ctx.get_current_key())
            with self._courier.locked():
                brought = self._bring(station, parcel, output)
                self._courier.start(station.round)
                self._wait(station, brought)
                self._hold_up(station.lane, parcel.at_ms)
                self._settle(station, output, ctx)
        yield from output.rows(ctx.get_current_key())

    def _woken(self, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        """Look after a lane whose timers may have been lost with a checkpoint (Wake.java)."""
        station = self._station(ctx.get_current_key())
        station.timer_ms, station.guarded = 0, False
        yield from self._visit(station, ctx).rows(ctx.get_current_key())

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Any]:
        """Come by for what has become of a lane's events."""
        station = self._station(ctx.get_current_key())
        if timestamp == _END_MS:
            yield from self._drain(ctx)
            return
        if timestamp >= station.timer_ms:
            station.timer_ms = 0
        yield from self._visit(station, ctx).rows(ctx.get_current_key())

    def _visit(self, station: _Station, ctx: KeyedProcessFunction.Context) -> Departures:
        output = self._output()
        with self._courier.locked():
            self._settle(station, output, ctx)
        return output

    def _output(self) -> Departures:
        return Departures(self._rules, self._event_type, self._now_ms())

    # --- what comes in

    def _station(self, key: int) -> _Station:
        """The lane of the current key, from the state if this worker does not have it yet."""
        station = self._stations.get(key)
        if station is None:
            head = self._heads.value() or b""
            chunks = [_decode_chunk(data) for data in self._records.values()]
            lane = Lane(self._rules.policy, _decode_head(head) if head else None, chunks)
            kept = {chunk.first: len(chunk) for chunk in chunks}
            number = self._lanes.index(key)
            station = self._stations[key] = _Station(number, Round(lane), head, kept)
        return station

    def _parcel(self, data: bytes) -> Parcel:
        return Parcel.of_data(data, self._event_type, self._judge, self._now_ms())

    def _bring(self, station: _Station, parcel: Parcel, output: Departures) -> list[int]:
        """Take events into the lane, as many as there is room for; returns their chunks."""
        lane = station.lane
        sizes = parcel.sizes
        fits = lane.room(sizes)
        output.arrived(parcel)
        if fits < len(sizes):
            for row in range(fits, len(sizes)):
                output.overflow(parcel, row, lane.head.last_failure)
            if not fits:
                return []
        brought = []
        for begin, end in _parts(fits, lane.policy.batch):
            part = parcel.part(begin, end)
            part.judge()
            chunk = lane.accept(sizes[begin:end], part.event_ms, self._now_ms())
            station.round.parcels[chunk.first] = part
            brought.append(chunk.first)
        self._look(station)
        # What is quick is not to wait for what hangs.
        station.patience_ms = _COME_BY_MS // 2
        return brought

    def _look(self, station: _Station) -> None:
        """Bring what the lane wants: a chunk to look into, or events that are due."""
        lane = station.lane
        while (want := lane.wanted(self._now_ms(), station.round.has)) is not None:
            parcel = self._at_hand(station, want.chunk)
            if want.to_open:
                station.round.left += lane.open(want.chunk, parcel.keys, parcel.sizes)
                lane.changed.add(want.chunk)
            else:
                lane.loaded(want.chunk)
        station.round.left += lane.expire(self._now_ms())

    def _at_hand(self, station: _Station, first: int) -> Parcel:
        parcels = station.round.parcels
        if first not in parcels:
            parcels[first] = self._parcel(self._parcels.get(first))
        return parcels[first]

    def _wait(self, station: _Station, brought: list[int]) -> None:
        """For a target that is quick: not for a call that hangs, or a record that has failed."""
        lane = station.lane
        if station.round.took_ms > QUICK_MS or lane.breaker.state != "closed":
            return
        behind = sum(lane.held_back(first) for first in brought)

        def is_done() -> bool:
            return sum(len(lane.chunks.get(first) or ()) for first in brought) <= behind

        self._courier.wait(is_done, QUICK_MS)

    def _hold_up(self, lane: Lane, at_ms: int) -> None:
        """Hold the input up while a lane is almost full: `slow_input_ms` a batch, of all lanes.

        Which batch it is of is told by its instant, the same in all lanes; of two that come beside
        each other only the newer one is held up.
        """
        if at_ms > self._held_up_ms:
            self._held_up_ms, self._patience_ms = at_ms, self._rules.slow_input_ms
        fullness = lane.fullness
        if at_ms == self._held_up_ms and fullness > _SOFT_LIMIT and self._patience_ms > 0:
            share = min(1.0, (fullness - _SOFT_LIMIT) / (1 - _SOFT_LIMIT))
            timeout_ms = min(self._patience_ms, round(self._rules.slow_input_ms * share))
            began_s = time.monotonic()
            self._courier.wait(lambda: lane.fullness <= _SOFT_LIMIT, timeout_ms)
            self._patience_ms -= round((time.monotonic() - began_s) * 1000)

    # --- what goes out

    def _settle(
        self, station: _Station, output: Departures, ctx: KeyedProcessFunction.Context
    ) -> None:
        """Hand on what has left, bring what is wanted, save what has changed, and come by again."""
        self._courier.check()
        self._look(station)
        self._courier.start(station.round)
        left, station.round.left = station.round.left, []
        for each in left:
            parcel = self._at_hand(station, each.chunk)
            if isinstance(each, Whole):
                output.leave_whole(each, parcel)
            else:
                output.leave(each, parcel, station.lane.head.last_failure)
        self._save(station)
        self._come_by(station, ctx, has_moved=bool(left))
        status = _status(station.lane, self._now_ms())
        if status != station.told or output.has_moved:
            station.told = status
            output.tell(station.number, status)

    def _drain(self, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Any]:
        """The end of the input: what is due soon is finished, and the rest leaves as it is.

        In all lanes at once (Wake.java has just been at each of them): Flink comes to one after the
        other, and the first would have all of the time. Nor does Flink come back: a timer that is
        registered here may not fire any more.
        """
        self._drain_until_ms = self._drain_until_ms or self._now_ms() + self._rules.drain_timeout_ms
        while rest := {k: s for k, s in self._stations.items() if s.lane.count or s.round.left}:
            for key, station in rest.items():
                station.guarded = True
                with self._state_of(key):
                    rows = [*self._finish(station, ctx).rows(key)]
                yield from rows
            with self._courier.locked():
                self._courier.wait(lambda: any(_has_more(s) for s in rest.values()), _COME_BY_MS)

    def _finish(self, station: _Station, ctx: KeyedProcessFunction.OnTimerContext) -> Departures:
        """A visit to a lane at the end of the input."""
        lane, output = station.lane, self._output()
        with self._courier.locked():
            self._settle(station, output, ctx)
            next_ms = lane.next_ms()
            is_late = next_ms is None or next_ms > self._drain_until_ms
            if self._now_ms() >= self._drain_until_ms or (is_late and not lane.in_flight):
                self._courier.stop(station.round)
            if station.round.stopped and not lane.in_flight:
                self._flush(station)
                self._settle(station, output, ctx)
        return output

    @contextmanager
    def _state_of(self, key: int) -> Iterator[None]:
        """Flink's state of another lane than the one that Flink has come to.

        As PyFlink itself goes to the state of a key (StatefulOperation); in public it has no way.
        """
        before = self._backend.get_current_key()
        self._backend.set_current_key(Row(key))
        try:
            yield
        finally:
            self._backend.set_current_key(before)

    def _flush(self, station: _Station) -> None:
        """Some of what is left leaves; a chunk is looked into when all before it has left."""
        lane, left = station.lane, station.round.left
        left += lane.flush()
        unopened = (first for first, chunk in lane.chunks.items() if chunk.records is None)
        if not left and (first := next(unopened, None)) is not None:
            parcel = self._at_hand(station, first)
            left += lane.open(first, parcel.keys, parcel.sizes)
            left += lane.flush()

    # --- what is kept

    def _save(self, station: _Station) -> None:
        """Write what has changed; what nobody needs soon is no longer kept at hand."""
        lane = station.lane
        for first in sorted(lane.changed):
            chunk = lane.chunks.get(first)
            if chunk is None:
                station.round.parcels.pop(first, None)
                if station.kept.pop(first, None) is not None:
                    self._records.remove(first)
                    self._parcels.remove(first)
                continue
            self._keep_events(station, chunk)
            self._records.put(first, _encode_chunk(chunk))
        lane.saved()
        until_ms = self._now_ms() + _REST_MS
        for first in [f for f in station.round.parcels if lane.is_resting(f, until_ms)]:
            del station.round.parcels[first]
        head = b"" if lane.is_idle else _encode_head(lane.head)
        if head != station.head:
            if head:
                self._heads.update(head)
            else:
                self._heads.clear()
            station.head = head

    def _keep_events(self, station: _Station, chunk: Chunk) -> None:
        """Once; and again when less than half of them are left."""
        kept = station.kept.get(chunk.first)
        parcel = station.round.parcels.get(chunk.first)
        if parcel is None or (kept is not None and 2 * len(chunk) > kept):
            return
        if len(chunk) == len(parcel):
            data = parcel.data
        else:
            data = parcel.only(number - chunk.first for number in chunk.records or ())
        self._parcels.put(chunk.first, data)
        station.kept[chunk.first] = len(chunk)

    def _come_by(
        self, station: _Station, ctx: KeyedProcessFunction.Context, *, has_moved: bool
    ) -> None:
        """See to it that Flink comes by: one timer, and one for the end of the input."""
        lane, timers = station.lane, ctx.timer_service()
        # None is deleted: for PyFlink one that is registered, deleted and registered again in one
        # bundle is deleted. One too many costs a look.
        if lane.count and not station.guarded:
            timers.register_event_time_timer(_END_MS)
            station.guarded = True
        station.patience_ms = _COME_BY_MS if has_moved else min(2 * station.patience_ms, _REST_MS)
        now_ms = self._now_ms()
        wanted_ms = self._next_visit_ms(station, now_ms)
        if wanted_ms and not now_ms < station.timer_ms <= wanted_ms:
            timers.register_processing_time_timer(wanted_ms)
            station.timer_ms = wanted_ms

    def _next_visit_ms(self, station: _Station, now_ms: int) -> int:
        """When to come by: soon while calls are out, else when something is due; 0 for never."""
        lane = station.lane
        if not lane.count:
            return 0
        times = [lane.next_ms(), lane.hold_ends_ms(now_ms)]
        if lane.in_flight:
            times.append(now_ms + station.patience_ms)
        known = [ms for ms in times if ms is not None]
        return max(now_ms + _COME_BY_MS, min(known)) if known else 0


def _parts(count: int, batch: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the chunks that events are taken in as: a call each, if it may be so."""
    parts = -(-count // batch) if batch > 1 else 1
    for part in range(parts):
        yield part * count // parts, (part + 1) * count // parts


def _has_more(station: _Station) -> bool:
    """Whether a visit at the end of the input would find something to do at once."""
    is_done = station.round.stopped and not station.lane.in_flight
    return bool(station.round.left) or (is_done and station.lane.count > 0)


def _status(lane: Lane, now_ms: int) -> dict[str, Any]:
    """What `bridge.from_lanes` and those who watch are told of a lane."""
    return {
        "held_ms": lane.held_ms(now_ms),
        "waiting": lane.count,
        "in_flight": lane.in_flight,
        "breaker": lane.breaker.state,
    }


def _encode_head(head: Head) -> bytes:
    return msgspec.msgpack.encode((_VERSION, head))


def _decode_head(data: bytes) -> Head:
    return _of_this_version(msgspec.msgpack.decode(data, type=tuple[int, Head]))


def _encode_chunk(chunk: Chunk) -> bytes:
    return msgspec.msgpack.encode((_VERSION, chunk))


def _decode_chunk(data: bytes) -> Chunk:
    return _of_this_version(msgspec.msgpack.decode(data, type=tuple[int, Chunk]))


def _of_this_version(kept: tuple[int, T]) -> T:
    version, value = kept
    if version != _VERSION:
        raise RuntimeError(
            f"state of delivery has version {version}, this code reads {_VERSION}: a newer "
            "Breakwater has written it"
        )
    return value


def _wall_clock_ms() -> int:
    return int(time.time() * 1000)
