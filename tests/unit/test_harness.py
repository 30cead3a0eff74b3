"""Each strictness of the harness, seen to catch the fault it is there for.

Every function here is small; the first of each section is right, and is the positive control for
the wrong ones after it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pyflink.common import Row, Time, Types
from pyflink.datastream import KeyedProcessFunction, OutputTag, ProcessFunction
from pyflink.datastream.functions import AggregateFunction
from pyflink.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)

from tests.harness import MAX_TIME, MIN_TIME, Harness, HarnessError, Record

NOON = 1_767_268_800_000
MINUTE = 60_000
EVENT = Types.ROW_NAMED(["user", "price"], [Types.STRING(), Types.DOUBLE()])
TOTAL = Types.ROW_NAMED(["user", "count"], [Types.STRING(), Types.LONG()])
REJECTED = OutputTag("rejected", Types.STRING())
BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())


@pytest.fixture(autouse=True)
def no_jvm(monkeypatch):
    """Asking for a Java type would start a JVM without a word, and take seconds."""
    monkeypatch.setattr("pyflink.common.typeinfo.get_gateway", lambda: pytest.fail("a JVM"))


def event(user: str = "ann", price: float = 1.5) -> Row:
    return Row(user=user, price=price)


def user_of(value: Any) -> str:
    return value.user


def keyed(function: Any, **changes: Any) -> Harness:
    options = {"key_by": user_of, "key_type": Types.STRING()}
    return Harness(function, **{**options, "input_type": EVENT, "output_type": TOTAL, **changes})


def plain(function: Any, **changes: Any) -> Harness:
    return Harness(function, **{"input_type": Types.STRING(), "output_type": BYTES, **changes})


class CountPerMinute(KeyedProcessFunction):
    """Counts a user's events, reports the count a minute after the first, and cleans up."""

    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count", Types.LONG()))
        self.seen = runtime_context.get_metrics_group().add_group("counting").counter("seen")

    def process_element(self, value, ctx):
        self.seen.inc()
        count = self.count.value() or 0
        if count == 0:
            ctx.timer_service().register_event_time_timer(ctx.timestamp() + MINUTE)
        self.count.update(count + 1)
        if value.price < 0:
            yield REJECTED, value.user

    def on_timer(self, timestamp, ctx):
        yield Row(user=ctx.get_current_key(), count=self.count.value())
        self.count.clear()


class Scripted(KeyedProcessFunction):
    """Runs whatever the test gives it, with one state of each kind."""

    def __init__(self, on_element=None, on_time=None, on_open=None):
        self.on_element = on_element or (lambda _self, _value, _ctx: iter(()))
        self.on_time = on_time or (lambda _self, _timestamp, _ctx: iter(()))
        self.on_open = on_open or (lambda _self, _context: None)

    def open(self, runtime_context):
        context = runtime_context
        self.value = context.get_state(ValueStateDescriptor("value", Types.STRING()))
        self.items = context.get_list_state(ListStateDescriptor("items", Types.STRING()))
        self.table = context.get_map_state(
            MapStateDescriptor("table", Types.STRING(), Types.LONG())
        )
        self.boxes = context.get_state(ValueStateDescriptor("boxes", Types.LIST(Types.STRING())))
        self.on_open(self, context)

    def process_element(self, value, ctx):
        return self.on_element(self, value, ctx)

    def on_timer(self, timestamp, ctx):
        return self.on_time(self, timestamp, ctx)


class ScriptedPlain(ProcessFunction):
    def __init__(self, on_element, on_open=None):
        self.on_element = on_element
        self.on_open = on_open or (lambda _context: None)

    def open(self, runtime_context):
        self.on_open(runtime_context)

    def process_element(self, value, ctx):
        return self.on_element(value, ctx)


def emits(*values: Any) -> ScriptedPlain:
    return ScriptedPlain(lambda _value, _ctx: iter(values))


def act(action: Any) -> Scripted:
    """A function that does something with its state at each element, and emits nothing."""

    def on_element(self: Scripted, value: Any, ctx: Any) -> Iterator[Any]:
        action(self, value, ctx)
        yield from ()

    return Scripted(on_element)


class TestRightFunction:
    def test_it_counts_reports_and_leaves_nothing(self):
        with keyed(CountPerMinute(), side_outputs=[REJECTED]) as harness:
            harness.process(event("ann"), NOON)
            harness.process(event("bob", price=-1.0), NOON + 1)
            harness.process(event("ann"), NOON + 2)
            assert (harness.num_state_entries(), harness.num_timers()) == (2, 2)
            harness.advance_watermark(NOON + MINUTE - 1)
            assert harness.output == []
            harness.advance_watermark(NOON + MINUTE)
            assert harness.records == [Record(Row(user="ann", count=2), NOON + MINUTE)]
            harness.end_of_input()
            assert harness.output[1:] == [Row(user="bob", count=1)]
            assert harness.side_records(REJECTED) == [Record("bob", NOON + 1)]
            assert harness.metric("counting.seen") == 3
            harness.assert_no_leaks()

    def test_a_stateless_function_needs_no_key(self):
        function = ScriptedPlain(lambda value, _ctx: iter([value.encode(), (REJECTED, value)]))
        harness = plain(function, side_outputs=[REJECTED])
        harness.process_all(["a", "b"], NOON)
        assert harness.output == [b"a", b"b"]
        assert harness.side_output(REJECTED) == ["a", "b"]
        harness.clear_output()
        assert (harness.output, harness.side_output(REJECTED)) == ([], [])

    def test_open_sees_the_context_and_close_is_called_once(self):
        calls = []

        class Lifecycle(ScriptedPlain):
            def close(self):
                calls.append("close")

        def on_open(context):
            calls.append(context.get_job_parameter("mode", "none"))
            calls.append(context.get_task_name_with_subtasks())

        function = Lifecycle(lambda _value, _ctx: iter(()), on_open)
        settings = {"job_parameters": {"mode": "test"}, "parallelism": 4, "subtask": 1}
        with plain(function, ship=False, **settings) as harness:
            harness.close()
        assert calls == ["test", "harness (2/4)", "close"]


class TestTypes:
    @pytest.mark.parametrize(
        ("declared", "value", "seen"),
        [
            (EVENT, Row(price=1.0, user="ann"), "Row(user='ann', price=1.0)"),
            (EVENT, Row(user=None, price=math.nan), "Row(user=None, price=nan)"),
            (Types.ROW([Types.STRING()]), Row("positional"), "Row(f0='positional')"),
            (Types.ROW_NAMED(["in"], [EVENT]), Row(**{"in": event()}), "Row(in=Row("),
            (Types.DOUBLE(), 3, "3.0"),
            (Types.TUPLE([Types.STRING(), Types.LONG()]), ("a", 1), "('a', 1)"),
            (Types.LIST(Types.STRING()), ["a", "b"], "['a', 'b']"),
            (Types.MAP(Types.STRING(), Types.LONG()), {"a": 1, "b": None}, "{'a': 1, 'b': None}"),
            (BYTES, b"\x00\xff", r"b'\x00\xff'"),
        ],
    )
    def test_a_value_of_the_declared_type_comes_through(self, declared, value, seen):
        harness = plain(emits(value), output_type=declared)
        harness.process("x")
        assert repr(harness.output[0]).startswith(seen)

    @pytest.mark.parametrize(
        ("declared", "value", "reason"),
        [
            (Types.LONG(), 1.9, "Long expected, not float"),
            (Types.LONG(), "1", "Long expected, not str"),
            (Types.LONG(), True, "Long expected, not bool"),
            (Types.LONG(), 2**63, "OverflowError"),
            (Types.INT(), 2**31, "OverflowError"),
            (Types.BOOLEAN(), 2, "Boolean expected, not int"),
            (Types.FLOAT(), 0.1, "silently become"),
            (Types.STRING(), None, "String expected, not NoneType"),
            (Types.STRING(), b"a", "String expected, not bytes"),
            (Types.STRING(), "\ud800", "UnicodeEncodeError"),
            (BYTES, "a", "bytes expected, not str"),
            (BYTES, None, "bytes expected, not NoneType"),
            (Types.LIST(Types.STRING()), "ab", "list expected, not str"),
            (Types.LIST(Types.LONG()), [1, "a"], "item 1: Long expected"),
            (Types.LIST(Types.LONG()), [None], "item 0: Long expected"),
            (Types.MAP(Types.STRING(), Types.LONG()), {"a": "b"}, "Long expected"),
            (Types.TUPLE([Types.LONG(), Types.LONG()]), [1, 2], "tuple expected, not list"),
            (EVENT, {"user": "ann", "price": 1.0}, "Row expected, not dict"),
            (EVENT, ("ann", 1.0), "Row expected, not tuple"),
            (EVENT, None, "Row expected, not NoneType"),
            (EVENT, Row("ann", 1.0), "build the Row with keywords"),
            (EVENT, Row(user="ann", price="1"), "field price: Double expected"),
            (EVENT, Row(user="ann", cost=1.0), "are not the declared"),
        ],
    )
    def test_a_value_of_another_type_fails_at_the_yield(self, declared, value, reason):
        harness = plain(emits(value), output_type=declared)
        with pytest.raises(HarnessError, match=reason):
            harness.process("x")

    @pytest.mark.parametrize(
        ("declared", "value"),
        [
            (EVENT, Row(user="ann")),
            (EVENT, Row(user="ann", price=1.0, more=1)),
            (Types.ROW([Types.STRING(), Types.LONG()]), Row("a")),
            (Types.TUPLE([Types.LONG(), Types.LONG()]), (1,)),
            (Types.TUPLE([Types.LONG()]), (1, 2)),
        ],
    )
    def test_a_missing_field_does_not_reach_the_coder_that_would_crash(self, declared, value):
        harness = plain(emits(value), output_type=declared)
        with pytest.raises(HarnessError, match=r"are not the declared|1 fields, not 2|items, not"):
            harness.process("x")

    def test_the_message_names_the_line_of_the_yield(self):
        def inner() -> Iterator[Any]:
            yield b"fine"
            yield "wrong"

        def outer(_value: Any, _ctx: Any) -> Iterator[Any]:
            yield from inner()

        harness = plain(ScriptedPlain(outer))
        line = inner.__code__.co_firstlineno + 2
        with pytest.raises(HarnessError, match=rf"test_harness\.py:{line}\)"):
            harness.process("x")
        assert harness.output == [b"fine"]

    @pytest.mark.parametrize(
        "untyped",
        [None, "STRING", Types.PICKLED_BYTE_ARRAY(), Types.LIST(Types.PICKLED_BYTE_ARRAY())],
    )
    @pytest.mark.parametrize("place", ["input_type", "output_type", "key_type"])
    def test_an_untyped_stream_or_key_is_refused(self, place, untyped):
        with pytest.raises(HarnessError, match="T10"):
            keyed(CountPerMinute(), **{place: untyped})

    def test_an_untyped_tag_is_refused(self):
        with pytest.raises(HarnessError, match="side output 'loose': a pickled type"):
            plain(emits(), side_outputs=[OutputTag("loose")])

    def test_an_untyped_state_is_refused(self):
        def on_open(_self, context):
            context.get_state(ValueStateDescriptor("loose", Types.PICKLED_BYTE_ARRAY()))

        with pytest.raises(HarnessError, match="state 'loose': a pickled type"):
            keyed(Scripted(on_open=on_open))

    def test_an_input_that_the_stream_could_not_carry_is_refused(self):
        with pytest.raises(HarnessError, match=r"input: .* Row expected"):
            keyed(CountPerMinute()).process({"user": "ann", "price": 1.0}, NOON)

    def test_a_key_of_another_type_is_refused(self):
        harness = keyed(CountPerMinute(), key_by=lambda value: value.price)
        with pytest.raises(HarnessError, match=r"key: 1\.5 does not fit String"):
            harness.process(event(), NOON)

    def test_output_is_a_copy(self):
        kept = ["a"]
        harness = plain(emits(kept), output_type=Types.LIST(Types.STRING()), ship=False)
        harness.process("x")
        kept.append("b")
        assert harness.output == [["a"]]


class TestHooks:
    @pytest.mark.parametrize("returned", ["abc", ["a"], ("a",), {"a": 1}, event(), b"a", 1])
    def test_process_element_that_returns_instead_of_yielding_is_caught(self, returned):
        harness = plain(ScriptedPlain(lambda _value, _ctx: returned))
        with pytest.raises(HarnessError, match=r"process_element returned .*T14"):
            harness.process("x")

    def test_process_element_may_return_nothing(self):
        harness = plain(ScriptedPlain(lambda _value, _ctx: None))
        harness.process("x")
        assert harness.output == []

    def test_on_timer_must_be_a_generator(self):
        def arm(_self, _value, ctx):
            ctx.timer_service().register_event_time_timer(NOON)
            yield from ()

        right = keyed(Scripted(arm))
        wrong = keyed(Scripted(arm, on_time=lambda _self, _timestamp, _ctx: None))
        for harness in (right, wrong):
            harness.process(event(), NOON)
        right.advance_watermark(NOON)
        with pytest.raises(HarnessError, match="on_timer returned None"):
            wrong.advance_watermark(NOON)

    def test_an_error_of_the_function_comes_through_and_ends_it(self):
        def boom(_value: Any, _ctx: Any) -> Iterator[Any]:
            yield b"before"
            raise KeyError("boom")

        harness = plain(ScriptedPlain(boom))
        with pytest.raises(KeyError):
            harness.process("x")
        with pytest.raises(HarnessError, match="the function has failed"):
            harness.process("x")

    def test_a_fault_that_the_function_swallows_is_reported_all_the_same(self):
        def swallow(self, _value, _ctx):
            with contextlib.suppress(Exception):
                self.value.update(None)

        with pytest.raises(HarnessError, match="state 'value'"):
            keyed(act(swallow)).process(event())

    def test_a_function_that_cannot_be_shipped_is_refused(self):
        class Locked(ScriptedPlain):
            def __init__(self):
                super().__init__(None)
                self.lock = threading.Lock()

        with pytest.raises(HarnessError, match="cannot ship Locked"):
            plain(Locked())
        assert plain(Locked(), ship=False).output == []

    def test_a_function_that_changes_its_original_changes_a_copy(self):
        original = CountPerMinute()
        harness = keyed(original)
        assert not hasattr(original, "count")
        assert harness.function is not original

    def test_the_kind_of_function_must_fit(self):
        with pytest.raises(HarnessError, match="with key_by a KeyedProcessFunction is needed"):
            keyed(emits())
        with pytest.raises(HarnessError, match="without key_by a ProcessFunction is needed"):
            plain(CountPerMinute())


class TestSideOutputs:
    def test_a_tag_that_nobody_asked_for_is_caught(self):
        with pytest.raises(HarnessError, match="nobody asked for side output 'rejected'"):
            plain(emits((REJECTED, "x"))).process("x")

    def test_a_tag_that_nobody_asked_for_is_caught_where_another_is_active(self):
        other = OutputTag("other", Types.STRING())
        with pytest.raises(HarnessError, match="nobody asked for side output 'rejected'"):
            plain(emits((REJECTED, "x")), side_outputs=[other]).process("x")

    def test_a_value_of_another_type_than_the_tags_is_caught(self):
        with pytest.raises(HarnessError, match="side output 'rejected': 5 does not fit String"):
            plain(emits((REJECTED, 5)), side_outputs=[REJECTED]).process("x")

    def test_a_tag_of_the_same_name_and_another_type_is_caught(self):
        twin = OutputTag("rejected", Types.LONG())
        with pytest.raises(HarnessError, match="two tags 'rejected'"):
            plain(emits((twin, 5)), side_outputs=[REJECTED]).process("x")
        with pytest.raises(HarnessError, match="two side outputs are called 'rejected'"):
            plain(emits(), side_outputs=[REJECTED, twin])

    @pytest.mark.parametrize("emitted", [(REJECTED, "x", "lost"), (REJECTED,), ()])
    def test_a_tuple_that_flink_would_cut_or_choke_on_is_caught(self, emitted):
        output_type = Types.TUPLE([])
        with pytest.raises(HarnessError, match=r"some get lost|empty tuple"):
            plain(emits(emitted), output_type=output_type, side_outputs=[REJECTED]).process("x")

    def test_asking_the_harness_for_an_unknown_tag_is_an_error(self):
        with pytest.raises(HarnessError, match="not in side_outputs"):
            plain(emits()).side_output(REJECTED)


class TestState:
    def test_each_kind_keeps_what_it_is_given_by_key(self):
        def remember(self, value, _ctx):
            self.value.update(f"{self.value.value()}+")
            self.items.add_all(["a", "b"])
            self.table.put("n", (self.table.get("n") or 0) + 1)

        def look(self, _timestamp, ctx):
            yield Row(user=str(self.value.value()), count=self.table.get("n"))
            self.items.update([f"{len(list(self.items.get()))}"])
            yield Row(user=next(iter(self.items)), count=len(list(self.table.items())))
            self.value.clear(), self.items.clear(), self.table.clear()

        def script(self, value, ctx):
            remember(self, value, ctx)
            ctx.timer_service().register_event_time_timer(NOON)
            yield from ()

        harness = keyed(Scripted(script, look))
        harness.process_all([event("ann"), event("bob"), event("ann")])
        assert harness.num_state_entries() == 6
        assert harness.num_state_entries("table") == 2
        harness.advance_watermark(NOON)
        assert sorted(row.user for row in harness.output) == ["2", "4", "None+", "None++"]
        harness.assert_no_leaks()

    def test_changing_a_value_without_update_is_lost(self):
        def mutate(self, _value, _ctx):
            boxes = self.boxes.value() or []
            if not boxes:
                self.boxes.update(boxes)
            boxes.append("x")  # looks fine in Flink as long as the value is cached (T24)

        harness = keyed(act(mutate))
        harness.process_all([event(), event()])
        [(_, cells)] = harness.backend.live_rows("boxes")
        assert harness.function.boxes._wire.decode(cells[b""].data) == []

    @pytest.mark.parametrize(
        ("action", "reason"),
        [
            (lambda self: self.value.update(None), "state 'value': None"),
            (lambda self: self.value.update(5), "state 'value': 5"),
            (lambda self: self.items.add(5), "state 'items': 5"),
            (lambda self: self.items.add_all(["a", None]), "state 'items': None"),
            (lambda self: self.table.put("a", None), "state 'table': None"),
            (lambda self: self.table.put(5, 5), "key of state 'table': 5"),
            (lambda self: self.table.get(5), "key of state 'table': 5"),
            (lambda self: self.table.put_all({"ab": 1}), r"put_all\(\) of a dict is broken"),
        ],
    )
    def test_what_state_cannot_hold_is_refused(self, action, reason):
        with pytest.raises(HarnessError, match=reason):
            keyed(act(lambda self, _value, _ctx: action(self))).process(event())

    def test_two_descriptors_of_one_name_are_refused(self):
        def on_open(_self, context):
            context.get_state(ValueStateDescriptor("items", Types.STRING()))

        with pytest.raises(HarnessError, match="state 'items' is declared twice"):
            keyed(Scripted(on_open=on_open))

    def test_state_without_a_key_is_refused(self):
        descriptor = ValueStateDescriptor("value", Types.STRING())
        with pytest.raises(HarnessError, match="only keyed streams have state"):
            plain(ScriptedPlain(lambda _v, _c: None, lambda context: context.get_state(descriptor)))

    def test_state_is_not_readable_in_open_nor_outside_a_call(self):
        with pytest.raises(HarnessError, match="without a current key"):
            keyed(Scripted(on_open=lambda self, _context: self.value.value()))
        with pytest.raises(HarnessError, match="without a current key"):
            keyed(Scripted()).function.value.value()

    def test_the_result_of_a_list_state_has_no_length_and_no_truth(self):
        with pytest.raises(HarnessError, match="always true in Flink"):
            keyed(act(lambda self, _v, _c: not self.items.get())).process(event())
        with pytest.raises(TypeError):
            keyed(act(lambda self, _v, _c: len(self.items.get()))).process(event())

    def test_a_map_is_not_changed_while_it_is_iterated(self):
        def fill(self):
            for name in "cab":
                self.table.put(name, 1)

        def right(self, _value, _ctx):
            fill(self)
            for name in list(self.table.keys()):
                self.table.remove(name)

        def wrong(self, _value, _ctx):
            fill(self)
            for name in self.table:
                self.table.remove(name)

        harness = keyed(act(right))
        harness.process(event())
        harness.assert_no_leaks()
        with pytest.raises(HarnessError, match="changed while it was iterated"):
            keyed(act(wrong)).process(event())

    def test_a_map_does_not_remember_the_order_of_its_entries(self):
        def on_element(self, _value, _ctx):
            for name in "cab":
                self.table.put(name, 1)
            yield Row(user="".join(self.table.keys()), count=sum(self.table.values()))

        harness = keyed(Scripted(on_element))
        harness.process(event())
        assert harness.output == [Row(user="abc", count=3)]

    def test_removing_an_absent_entry_after_clear_is_refused_within_a_bundle(self):
        def on_element(self, value, _ctx):
            if value.price > 0:
                self.table.clear()
                self.table.put("a", 1)
            if value.price != 1:
                self.table.remove("b")

        harness = keyed(act(on_element))
        harness.process_all([event(price=1.0), event(price=0.0)])
        with pytest.raises(HarnessError, match=r"KeyError\('b'\)"):
            harness.process(event(price=2.0))

    def test_reducing_and_aggregating_state_go_through_their_types(self):
        class Mean(AggregateFunction):
            def create_accumulator(self):
                return (0, 0)

            def add(self, value, accumulator):
                return (accumulator[0] + value, accumulator[1] + 1)

            def get_result(self, accumulator):
                return accumulator[0] // accumulator[1]

            def merge(self, a, b):
                return (a[0] + b[0], a[1] + b[1])

        def on_open(self, context):
            pair = Types.TUPLE([Types.LONG(), Types.LONG()])
            self.best = context.get_reducing_state(
                ReducingStateDescriptor("best", max, Types.LONG())
            )
            self.mean = context.get_aggregating_state(
                AggregatingStateDescriptor("mean", Mean(), pair)
            )

        def on_element(self, value, _ctx):
            self.best.add(int(value.price))
            self.mean.add(int(value.price))
            yield Row(user="best", count=self.best.get())
            yield Row(user="mean", count=self.mean.get())
            self.mean.add(None) if value.price == 7 else None

        harness = keyed(Scripted(on_element, on_open=on_open))
        harness.process_all([event(price=1.0), event(price=7.0), event(price=4.0)])
        assert [row.count for row in harness.output] == [1, 1, 7, 4, 7, 4]

    def test_a_leak_is_named(self):
        class Leaky(CountPerMinute):
            def on_timer(self, timestamp, ctx):
                yield Row(user=ctx.get_current_key(), count=self.count.value())

        harness = keyed(Leaky())
        harness.process(event("ann"), NOON)
        harness.advance_watermark(NOON + MINUTE)
        with pytest.raises(HarnessError, match="left behind: state 'count' of 1 keys, as 'ann'"):
            harness.assert_no_leaks()

    def test_a_timer_left_is_a_leak(self):
        harness = keyed(CountPerMinute())
        harness.process(event("ann"), NOON)
        with pytest.raises(HarnessError, match="1 event-time and 0 processing-time timers"):
            harness.assert_no_leaks()


class TestTimeToLive:
    SECOND = 1000

    def harness(self, configure: Any) -> Harness:
        config = configure(StateTtlConfig.new_builder(Time.seconds(10))).build()

        def on_open(self, context):
            descriptor = ValueStateDescriptor("short", Types.STRING())
            descriptor.enable_time_to_live(config)
            self.short = context.get_state(descriptor)

        def on_element(self, value, _ctx):
            if value.price > 0:
                self.short.update("here")
            yield Row(user=self.short.value() or "gone", count=0)

        return keyed(Scripted(on_element, on_open=on_open))

    def seen(self, harness: Harness, *seconds: int) -> list[str]:
        harness.process(event(price=1.0))
        for second in seconds:
            harness.advance_processing_time(second * self.SECOND)
            harness.process(event(price=0.0))
        return [row.user for row in harness.output[1:]]

    def test_a_value_expires_after_its_last_write(self):
        harness = self.harness(lambda builder: builder)
        assert self.seen(harness, 9, 10) == ["here", "gone"]
        harness.assert_no_leaks()

    def test_reading_prolongs_it_where_asked(self):
        harness = self.harness(lambda builder: builder.update_ttl_on_read_and_write())
        assert self.seen(harness, 9, 18, 28) == ["here", "here", "gone"]

    def test_an_expired_value_may_be_returned_once_where_asked(self):
        harness = self.harness(lambda builder: builder.return_expired_if_not_cleaned_up())
        assert self.seen(harness, 10, 11) == ["here", "gone"]

    def test_what_has_expired_is_not_counted_nor_in_a_snapshot(self):
        harness = self.harness(lambda builder: builder)
        harness.process(event(price=1.0))
        restored = harness.restore(harness.snapshot(), processing_time=9 * self.SECOND)
        assert restored.num_state_entries() == 1
        restored.advance_processing_time(10 * self.SECOND)
        assert restored.num_state_entries() == 0


class Ticking(KeyedProcessFunction):
    """Re-arms a processing-time timer every 20 ms; flushes at the end of input if it is careful."""

    def __init__(self, careful: bool):
        self.careful = careful

    def open(self, runtime_context):
        self.ticks = runtime_context.get_state(ValueStateDescriptor("ticks", Types.LONG()))

    def process_element(self, value, ctx):
        self.ticks.update(0)
        self.arm(ctx)
        if self.careful:
            ctx.timer_service().register_event_time_timer(MAX_TIME)
        yield from ()

    def arm(self, ctx):
        now = ctx.timer_service().current_processing_time()
        ctx.timer_service().register_processing_time_timer(now + 20)

    def on_timer(self, timestamp, ctx):
        ticks = self.ticks.value() + 1
        if timestamp == MAX_TIME or ticks == 100:
            self.ticks.clear()
        else:
            self.ticks.update(ticks)
            self.arm(ctx)
        yield Row(user=f"{ctx.time_domain().name} {timestamp}", count=ticks)


class TestTimers:
    def test_a_timer_exists_once_per_key_and_time(self):
        def arm(_self, _value, ctx):
            for time in (NOON, NOON, NOON + 1):
                ctx.timer_service().register_event_time_timer(time)
                ctx.timer_service().register_processing_time_timer(time)
            ctx.timer_service().delete_event_time_timer(NOON + 1)

        harness = keyed(act(arm))
        harness.process_all([event("ann"), event("ann"), event("bob")])
        assert (harness.num_event_time_timers(), harness.num_processing_time_timers()) == (2, 4)

    def test_processing_time_stops_at_each_timer_on_the_way(self):
        harness = keyed(Ticking(careful=False), processing_time=1000)
        harness.process(event())
        harness.advance_processing_time(1065)
        names = [row.user for row in harness.output]
        assert names == [f"PROCESSING_TIME {time}" for time in (1020, 1040, 1060)]
        assert harness.processing_time == 1065

    @pytest.mark.parametrize(("careful", "left"), [(True, 0), (False, 1)])
    def test_the_end_of_input_shows_who_loses_processing_time_timers(self, careful, left):
        harness = keyed(Ticking(careful))
        harness.process(event())
        harness.end_of_input()
        assert harness.dropped_timers == 1
        assert len(harness.output) == (1 if careful else 0)
        assert harness.num_state_entries() == left
        if careful:
            harness.assert_no_leaks()
        else:
            with pytest.raises(HarnessError, match="1 processing-time timers were dropped"):
                harness.assert_no_leaks()
        with pytest.raises(HarnessError, match="the input has ended"):
            harness.process(event())

    def test_an_event_time_timer_in_the_past_waits_for_the_next_watermark(self):
        harness = keyed(CountPerMinute())
        harness.advance_watermark(NOON)
        harness.process(event(), NOON - 2 * MINUTE)
        assert harness.output == []
        harness.advance_watermark(NOON)
        assert harness.output == [Row(user="ann", count=1)]

    def test_a_function_that_re_arms_for_ever_is_caught(self):
        def arm(_self, _value, ctx):
            ctx.timer_service().register_processing_time_timer(0)
            yield from ()

        with pytest.raises(HarnessError, match="re-armed for ever"):
            keyed(Scripted(arm, arm)).process(event())

    @pytest.mark.parametrize("time", [1.5, "1", None, True, MAX_TIME + 1, MIN_TIME - 1])
    def test_a_time_that_is_no_java_long_is_refused(self, time):
        def arm(_self, _value, ctx):
            ctx.timer_service().register_event_time_timer(time)

        with pytest.raises(HarnessError, match=r"whole milliseconds|overflows"):
            keyed(act(arm)).process(event())

    def test_timers_without_a_key_are_refused(self):
        def arm(_value: Any, ctx: Any) -> None:
            ctx.timer_service().register_processing_time_timer(1)

        with pytest.raises(HarnessError, match="timers exist on keyed streams only"):
            plain(ScriptedPlain(arm)).process("x")

    def test_a_timer_outside_a_call_is_refused(self):
        kept = []
        harness = keyed(act(lambda _self, _value, ctx: kept.append(ctx)), ship=False)
        harness.process(event())
        with pytest.raises(HarnessError, match="where no key is current"):
            kept[0].timer_service().register_event_time_timer(NOON)

    def test_the_key_is_there_for_elements_and_timers(self):
        def arm(_self, _value, ctx):
            ctx.timer_service().register_event_time_timer(NOON)
            yield Row(user=f"element of {ctx.get_current_key()}", count=0)

        def fire(_self, _timestamp, ctx):
            yield Row(user=f"timer of {ctx.get_current_key()}", count=0)

        harness = keyed(Scripted(arm, fire))
        harness.process_all([event("bob"), event("ann")])
        harness.advance_watermark(NOON)
        emitted = [row.user for row in harness.output]
        assert emitted == ["element of bob", "element of ann", "timer of ann", "timer of bob"]

    def test_an_absent_timestamp_or_watermark_is_the_least_long(self):
        def look(_self, _value, ctx):
            yield Row(user="timestamp", count=ctx.timestamp())
            yield Row(user="watermark", count=ctx.timer_service().current_watermark())

        harness = keyed(Scripted(look))
        harness.process(event())
        assert [row.count for row in harness.output] == [MIN_TIME, MIN_TIME]

    def test_time_does_not_go_back(self):
        harness = keyed(CountPerMinute(), processing_time=5)
        harness.advance_watermark(NOON)
        with pytest.raises(ValueError, match="behind the present"):
            harness.advance_watermark(NOON - 1)
        with pytest.raises(ValueError, match="behind the present"):
            harness.advance_processing_time(4)


class TestBundles:
    def test_in_an_open_bundle_watermark_and_timers_wait(self):
        harness = keyed(CountPerMinute(), bundle=True)
        harness.process(event(), NOON)
        harness.advance_watermark(NOON + 5 * MINUTE)
        harness.process(event(), NOON + 5 * MINUTE)  # before the timer that is due
        assert (harness.output, harness.watermark) == ([], MIN_TIME)
        harness.finish_bundle()
        assert harness.output == [Row(user="ann", count=2)]
        assert harness.watermark == NOON + 5 * MINUTE

    def test_only_the_last_watermark_of_a_bundle_is_seen(self):
        def rearm(_self, timestamp, ctx):
            yield Row(user="at", count=ctx.timer_service().current_watermark())

        def arm(_self, _value, ctx):
            ctx.timer_service().register_event_time_timer(NOON)
            yield from ()

        harness = keyed(Scripted(arm, rearm), bundle=True)
        harness.process(event(), NOON)
        harness.advance_watermark(NOON)
        harness.advance_watermark(NOON + MINUTE)
        harness.finish_bundle()
        assert harness.output == [Row(user="at", count=NOON + MINUTE)]

    def test_a_processing_time_timer_of_the_open_bundle_does_not_fire(self):
        held, flushed = keyed(Ticking(False), bundle=True), keyed(Ticking(False), bundle=True)
        for harness in (held, flushed):
            harness.process(event())
        flushed.finish_bundle()
        for harness in (held, flushed):
            harness.advance_processing_time(50)
        assert (len(held.output), len(flushed.output)) == (0, 1)
        held.finish_bundle()
        assert len(held.output) == 1

    def test_deleting_a_timer_that_is_due_in_the_same_round_comes_too_late(self):
        def arm(_self, _value, ctx):
            for time in (NOON, NOON + 1):
                ctx.timer_service().register_event_time_timer(time)
            yield from ()

        def disarm(_self, timestamp, ctx):
            ctx.timer_service().delete_event_time_timer(NOON + 1)
            yield Row(user="fired", count=timestamp)

        fired = {}
        for bundle in (False, True):
            harness = keyed(Scripted(arm, disarm), bundle=bundle)
            harness.process(event(), NOON)
            harness.finish_bundle()
            harness.advance_watermark(NOON + MINUTE)
            fired[bundle] = [row.count - NOON for row in harness.output]
        assert fired == {False: [0], True: [0, 1]}

    def test_a_snapshot_finishes_the_bundle(self):
        harness = keyed(CountPerMinute(), bundle=True)
        harness.process(event(), NOON)
        harness.advance_watermark(NOON + MINUTE)
        harness.snapshot()
        assert harness.output == [Row(user="ann", count=1)]


class Renamed(CountPerMinute):
    def open(self, runtime_context):
        super().open(_WithDescriptor(runtime_context, ValueStateDescriptor("counts", Types.LONG())))


class Retyped(CountPerMinute):
    def open(self, runtime_context):
        super().open(_WithDescriptor(runtime_context, ValueStateDescriptor("count", Types.INT())))


class _WithDescriptor:
    def __init__(self, context: Any, descriptor: Any) -> None:
        self._context = context
        self._descriptor = descriptor

    def get_state(self, _descriptor: Any) -> Any:
        return self._context.get_state(self._descriptor)

    def get_metrics_group(self) -> Any:
        return self._context.get_metrics_group()


class TestSnapshots:
    def harness(self) -> Harness:
        harness = keyed(CountPerMinute())
        harness.process(event("ann"), NOON)
        harness.process(event("bob"), NOON + MINUTE)
        return harness

    def test_a_fresh_function_goes_on_where_the_snapshot_was_taken(self):
        harness = self.harness()
        saved = harness.snapshot()
        assert isinstance(saved, bytes)
        harness.process(event("ann"), NOON)  # after the checkpoint: lost in the crash
        restored = harness.restore(saved)
        assert restored.function is not harness.function
        assert (restored.attempt, restored.watermark, restored.output) == (1, MIN_TIME, [])
        restored.process(event("bob"), NOON + MINUTE)
        restored.end_of_input()
        assert sorted(row.user + str(row.count) for row in restored.output) == ["ann1", "bob2"]
        restored.assert_no_leaks()

    def test_processing_time_timers_come_back_too(self):
        harness = keyed(Ticking(careful=False))
        harness.process(event())
        restored = harness.restore(harness.snapshot(), processing_time=500)
        restored.advance_processing_time(501)
        assert restored.output[0] == Row(user="PROCESSING_TIME 20", count=1)

    def test_a_deleted_key_stays_deleted(self):
        harness = self.harness()
        harness.advance_watermark(NOON + MINUTE)
        restored = harness.restore(harness.snapshot())
        assert restored.num_state_entries() == 1

    def test_a_renamed_state_is_refused(self):
        harness = self.harness()
        with pytest.raises(HarnessError, match=r"state 'count', which .* \(T35\)"):
            harness.restore(harness.snapshot(), Renamed())
        assert harness.restore(harness.snapshot(), Renamed(), forget=["count"]).num_timers() == 2

    def test_a_state_of_another_type_is_refused(self):
        harness = self.harness()
        with pytest.raises(HarnessError, match="was a value of Long, now it is a value of Integer"):
            harness.restore(harness.snapshot(), Retyped())

    def test_a_key_of_another_type_is_refused(self):
        other = keyed(CountPerMinute(), key_by=lambda value: 1, key_type=Types.LONG())
        with pytest.raises(HarnessError, match="the key was String, now it is Long"):
            other.restore(self.harness().snapshot())

    def test_without_shipping_the_fresh_function_must_be_given(self):
        harness = keyed(CountPerMinute(), ship=False)
        with pytest.raises(ValueError, match="give restore"):
            harness.restore(harness.snapshot())
        assert harness.restore(harness.snapshot(), CountPerMinute()).attempt == 1


class TestMetrics:
    def harness(self, action: Any) -> Harness:
        def on_open(context):
            group = context.get_metrics_group()
            action(group)

        return plain(ScriptedPlain(lambda _v, _c: None, on_open), ship=False)

    def test_counters_meters_distributions_and_gauges_are_readable(self):
        def use(group):
            group.counter("good").inc(3)
            group.counter("good").dec()
            group.meter("rate").mark_event()
            group.add_group("lane", "7").distribution("size").update(5)
            group.gauge("open", lambda: 9)

        harness = self.harness(use)
        read = {name: harness.metric(name) for name in ("good", "rate", "lane.7.size", "open")}
        assert read == {"good": 2, "rate": 1, "lane.7.size": 5, "open": 9}

    def test_a_fraction_is_refused(self):
        with pytest.raises(HarnessError, match="takes whole numbers"):
            self.harness(lambda group: group.distribution("seconds").update(0.5))
        with pytest.raises(HarnessError, match="gauge 'share' must be a whole number"):
            self.harness(lambda group: group.gauge("share", lambda: 0.5)).metric("share")

    def test_an_unknown_metric_is_an_error(self):
        with pytest.raises(HarnessError, match=r"no metric 'bad'; there are \['good'\]"):
            self.harness(lambda group: group.counter("good")).metric("bad")
