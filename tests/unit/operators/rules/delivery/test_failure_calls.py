"""The failure table, asked about calls to a target."""

from __future__ import annotations

import asyncio
import re
import socket
from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from operators.rules.delivery.failure import (
    FailureError,
    FailureTable,
    Handling,
    retry_after_ms,
)

TABLE = FailureTable()
NOW_MS = 1_700_000_000_000
A_DAY_MS = 86_400_000


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class StatusError(Exception):
    """As httpx's: it carries the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = Answer(status)


class DatabaseError(Exception):
    """As psycopg's: it carries the SQLSTATE, if the server has said one."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class UserTimeout(TimeoutError):
    pass


class Unheard(Exception):
    pass


def raised(outer: BaseException, cause: BaseException | None) -> BaseException:
    try:
        raise outer from cause
    except BaseException as error:
        return error


# --- HTTP


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_a_target_that_is_busy_or_down_is_tried_again(status: int) -> None:
    assert TABLE.of_status(status) == Handling("transient", retryable=True)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_what_the_target_refuses_for_its_content_waits_for_its_data(status: int) -> None:
    assert TABLE.of_status(status) == Handling("data_quality")


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_are_no_fault_of_the_record(status: int) -> None:
    assert TABLE.of_status(status) == Handling("persistent", retryable=True, systemic=True)


@pytest.mark.parametrize("status", [302, 405, 409, 418, 501, 505])
def test_any_other_answer_would_be_the_same_again(status: int) -> None:
    assert TABLE.of_status(status) == Handling("persistent")


@given(st.integers(100, 299))
def test_a_success_is_no_failure(status: int) -> None:
    assert TABLE.of_status(status) is None


# --- SQLSTATE


@pytest.mark.parametrize("state", ["08006", "40001", "40P01", "53300", "57P01"])
def test_a_database_that_is_busy_or_down_is_tried_again(state: str) -> None:
    assert TABLE.of_sqlstate(state) == Handling("transient", retryable=True)


@pytest.mark.parametrize("state", ["22001", "22P02", "23505", "23502"])
def test_a_value_that_the_database_refuses_waits_for_its_data(state: str) -> None:
    assert TABLE.of_sqlstate(state) == Handling("data_quality")


@pytest.mark.parametrize("state", ["28P01", "3D000", "42P01", "42501"])
def test_a_wrong_login_or_a_missing_table_is_no_fault_of_the_record(state: str) -> None:
    assert TABLE.of_sqlstate(state) == Handling("persistent", retryable=True, systemic=True)


def test_any_other_state_would_be_the_same_again() -> None:
    assert TABLE.of_sqlstate("XX000") == Handling("persistent")


# --- exceptions


@pytest.mark.parametrize(
    ("error", "error_type", "category", "retryable"),
    [
        (TimeoutError(), "timeout_error", "transient", True),
        (asyncio.TimeoutError(), "timeout_error", "transient", True),
        (ConnectionResetError(), "connection_reset_error", "transient", True),
        (UserTimeout(), "user_timeout", "transient", True),
        (socket.gaierror(), "gaierror", "transient", True),
        (StatusError(503), "http_503", "transient", True),
        (StatusError(404), "http_404", "data_quality", False),
        (DatabaseError("23505"), "sqlstate_23505", "data_quality", False),
        (DatabaseError("40001"), "sqlstate_40001", "transient", True),
        (DatabaseError(None), "database_error", "persistent", False),
        (DatabaseError(""), "database_error", "persistent", False),
        (Unheard(), "unheard", "persistent", False),
        (ValueError("x"), "value_error", "persistent", False),
    ],
)
def test_an_exception_is_known_by_what_it_is_or_carries(
    error: BaseException, error_type: str, category: str, retryable: bool
) -> None:
    found, handling = TABLE.of_exception(error)
    assert (found, handling.category, handling.retryable) == (error_type, category, retryable)


def test_what_is_not_known_is_looked_up_by_its_causes() -> None:
    deep = raised(Unheard(), raised(ValueError(), StatusError(503)))
    assert TABLE.of_exception(deep) == ("http_503", Handling("transient", retryable=True))


def test_what_is_known_is_not_looked_up_by_its_causes() -> None:
    assert TABLE.of_exception(raised(TimeoutError(), StatusError(404)))[0] == "timeout_error"


def test_an_exception_in_the_handling_of_another_counts_unless_it_says_otherwise() -> None:
    def within(outer: BaseException, *, hidden: bool) -> BaseException:
        try:
            try:
                raise TimeoutError
            except TimeoutError:
                if hidden:
                    raise outer from None
                raise outer  # noqa: B904 - on purpose
        except BaseException as error:
            return error

    assert TABLE.of_exception(within(Unheard(), hidden=False))[0] == "timeout_error"
    assert TABLE.of_exception(within(Unheard(), hidden=True))[0] == "unheard"


def test_causes_that_go_round_in_a_circle_come_to_an_end() -> None:
    first, second = Unheard(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert TABLE.of_exception(first) == ("unheard", Handling("persistent"))


@example("Long" * 50)
@given(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,200}", fullmatch=True) | st.just("Fehlerä"))
def test_an_error_type_can_name_a_folder(name: str) -> None:
    error_type, _ = TABLE.of_exception(type(name, (Exception,), {})())
    assert re.fullmatch(r"[a-z0-9_]{1,100}", error_type)


# --- the user's entries

OWN = Handling("infrastructure", retryable=True, wait_ms=5_000)


def test_the_users_entries_come_first() -> None:
    table = FailureTable(
        {
            "http_404": OWN,
            "http_4xx": Handling("transient", retryable=True),
            "sqlstate_23": OWN,
            f"{__name__}.Unheard": OWN,
            "builtins.TimeoutError": OWN,
        }
    )
    assert table.of_status(404) == OWN
    assert table.of_status(422) == Handling("transient", retryable=True)
    assert table.of_status(503) == TABLE.of_status(503)
    assert table.of_sqlstate("23505") == OWN
    assert table.of_exception(Unheard()) == ("unheard", OWN)
    assert table.of_exception(UserTimeout()) == ("user_timeout", OWN)


def test_a_users_class_counts_before_the_status_that_it_carries() -> None:
    table = FailureTable({f"{__name__}.StatusError": OWN})
    assert table.of_exception(StatusError(404)) == ("status_error", OWN)


@pytest.mark.parametrize(
    "name", ["404", "http_999", "http_40", "sqlstate_2", "Unheard", "a..b", ""]
)
def test_a_name_that_would_never_be_found_is_refused(name: str) -> None:
    with pytest.raises(FailureError, match=re.escape(repr(name))):
        FailureTable({name: OWN})


def test_a_negative_wait_is_refused() -> None:
    with pytest.raises(FailureError, match="wait_ms must be 0 or more"):
        FailureTable({"http_404": Handling("transient", wait_ms=-1)})


# --- Retry-After


def test_seconds_are_taken_as_they_are() -> None:
    assert retry_after_ms("120", NOW_MS) == 120_000
    assert retry_after_ms(" 0 ", NOW_MS) == 0


@given(st.integers(-(10**6), 10**6))
def test_a_date_is_a_wait_from_now_and_never_a_negative_one(seconds: int) -> None:
    date = formatdate(NOW_MS // 1000 + seconds, usegmt=True)
    assert retry_after_ms(date, NOW_MS) == min(max(0, seconds * 1000), A_DAY_MS)


def test_nobody_waits_for_longer_than_a_day() -> None:
    assert retry_after_ms("9" * 30, NOW_MS) == A_DAY_MS
    assert retry_after_ms("Fri, 31 Dec 9999 23:59:59 GMT", NOW_MS) == A_DAY_MS


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "1.5", "٣", "Mon, 99 Foo 2026"])
def test_what_makes_no_sense_asks_for_nothing(value: str | None) -> None:
    assert retry_after_ms(value, NOW_MS) == 0


@given(st.text(max_size=40))
def test_any_text_gives_a_wait_within_bounds(value: str) -> None:
    assert 0 <= retry_after_ms(value, NOW_MS) <= A_DAY_MS
