from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from flink_jobs.run_folder.folder import OUTPUTS
from flink_jobs.settings import (
    ContractSettings,
    Settings,
    SettingsError,
    SinkSettings,
    load_settings,
    settings_table,
)
from flink_jobs.wiring.rules import delivery_rules, to_fallback


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "breakwater.toml"


def refusal(
    config: Path,
    toml: str = "",
    environ: dict[str, str] | None = None,
    overrides: dict[str, object] | None = None,
) -> str:
    config.write_text(toml)
    with pytest.raises(SettingsError) as caught:
        load_settings(config, overrides or {}, environ or {})
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message


def test_without_any_source_all_settings_have_their_defaults():
    assert load_settings(environ={}) == Settings()
    assert Settings().windows.size_ms == 300_000


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(config):
    config.write_text("parallelism = 3\n[windows]\nsize_ms = 2000\nidle_timeout_ms = 2000\n")
    environ = {"BREAKWATER_PARALLELISM": "4", "BREAKWATER_WINDOWS__SIZE_MS": "3000"}
    settings = load_settings(config, {"parallelism": 5}, environ)
    assert settings.parallelism == 5
    assert settings.windows.size_ms == 3000
    assert settings.windows.idle_timeout_ms == 2000
    assert settings.windows.watermark_delay_ms == 600_000


def test_an_option_that_was_not_given_overrides_nothing(config):
    config.write_text("parallelism = 3")
    assert load_settings(config, {"parallelism": None}, {}).parallelism == 3


def test_an_override_reaches_into_a_table():
    settings = load_settings(None, {"windows.size_ms": 2000, "flink.a.b": "c"}, {})
    assert settings.windows.size_ms == 2000
    assert settings.flink == {"a.b": "c"}


def test_made_by_hand_the_settings_read_no_environment(monkeypatch):
    monkeypatch.setenv("BREAKWATER_PARALLELISM", "9")
    assert Settings().parallelism == 2
    assert load_settings().parallelism == 9


def test_a_given_environment_stands_in_for_the_real_one(monkeypatch):
    monkeypatch.setenv("BREAKWATER_PARALLELISM", "9")
    assert load_settings(environ={}).parallelism == 2
    assert os.environ["BREAKWATER_PARALLELISM"] == "9"


def test_the_settings_are_frozen_through_and_through():
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.parallelism = 3
    with pytest.raises(ValidationError):
        settings.windows.size_ms = 3000


def test_the_settings_travel_to_a_worker():
    settings = Settings(parallelism=3)
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301, our own bytes


def test_a_wrong_value_is_told_with_its_file_and_table_and_variable(config):
    assert refusal(config, "[windows]\nsize_ms = 0") == (
        f"windows.size_ms = 0: must be at least 1000; "
        f"change it in {config} [windows] or BREAKWATER_WINDOWS__SIZE_MS"
    )


def test_a_wrong_value_is_looked_for_where_it_stands(config):
    environ = {"BREAKWATER_PARALLELISM": "3000"}
    in_environment = refusal(config, "parallelism = 3", environ)
    assert in_environment == (
        'parallelism = "3000": must be at most 128; change BREAKWATER_PARALLELISM'
    )
    in_call = refusal(config, "parallelism = 3", environ, {"parallelism": 0})
    assert in_call == "parallelism = 0: must be at least 1; change --parallelism"


def test_several_wrong_values_are_all_named_in_one_line(config):
    message = refusal(config, "[windows]\nsize_ms = 0\n[batch]\nmax_records = 0")
    assert message.startswith("windows.size_ms = 0: ")
    assert message.endswith("(also wrong: batch.max_records)")


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("parallelism = true", "parallelism = true: must be a whole number;"),
        ("parallelism = 1.5", "parallelism = 1.5: must be a whole number;"),
        ("parallelism = nan", "parallelism = NaN: must be a whole number;"),
        ("parallelism = 'two'", 'parallelism = "two": must be a whole number;'),
        ("[contract]\nkey = 3", "contract.key = 3: must be text in quotes;"),
        ("connector = 'redis'", "connector = \"redis\": must be 'files' or 'kafka';"),
        ("windows = 3", "windows = 3: must be a table; write [windows] in "),
        ("flink = 3", "flink = 3: must be a table;"),
        ("[poison]\npatterns = 'a'", 'poison.patterns = "a": must be a list;'),
        ("[poison]\npatterns = [{pattern = 'a'}]", "poison.patterns.0.reason: is missing;"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_plain_words(config, toml, told):
    assert refusal(config, toml).startswith(told)


def test_a_long_value_is_not_shown_whole(config):
    assert len(refusal(config, f"[windows]\nsize_ms = '{'9' * 5000}x'")) < 300


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[windows]\nsiz_ms = 1", "windows.siz_ms: no such setting; did you mean windows.size_ms?"),
        ("[window]\nsize_ms = 1", "window: no such setting; "),
        ("size_ms = 1", "size_ms: no such setting; did you mean windows.size_ms?"),
        ("[sink]\nsize_ms = 1", "sink.size_ms: no such setting; did you mean windows.size_ms?"),
        ("paralelism = 1", "paralelism: no such setting; did you mean parallelism?"),
        ("[batch]\nfoo = 1", "batch.foo: no such setting; known are batch.max_records, "),
        (
            "[poison]\npatterns = [{pattern = 'a', reson = 'b'}]",
            "poison.patterns.0.reson: no such setting; did you mean poison.patterns.0.reason?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(config, toml, told):
    assert refusal(config, toml).startswith(told)


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("BREAKWATER_WINDOWS__SIZ_MS", "did you mean BREAKWATER_WINDOWS__SIZE_MS?"),
        ("BREAKWATER_WINDOW__SIZE_MS", "did you mean BREAKWATER_WINDOWS__SIZE_MS?"),
        ("BREAKWATER_PARALELISM", "did you mean BREAKWATER_PARALLELISM?"),
        ("BREAKWATER_FOO", "known are BREAKWATER_PARALLELISM, BREAKWATER_SOURCE"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(config, variable, told):
    message = refusal(config, environ={variable: "1"})
    assert message.startswith(f"{variable}: no such setting; {told}")


def test_variables_of_other_programs_are_none_of_our_business():
    environ = {"BREAKWATERS": "1", "PATH": "/bin", "PARALLELISM": "9"}
    assert load_settings(environ=environ) == Settings()


def test_lists_and_tables_are_json_in_a_variable(config):
    environ = {
        "BREAKWATER_POISON__VIOLATIONS": '["schema_error"]',
        "BREAKWATER_POISON__PATTERNS": '[{"pattern": "DROP", "reason": "sql"}]',
    }
    poison = load_settings(environ=environ).poison
    assert poison.violations == ("schema_error",)
    assert poison.rules().match(b"DROP TABLE") is not None
    message = refusal(config, environ={"BREAKWATER_POISON__VIOLATIONS": "schema_error"})
    assert message == (
        'BREAKWATER_POISON__VIOLATIONS = "schema_error": must be JSON, '
        'for instance ["schema_error"]'
    )


def test_an_empty_value_setting_means_to_only_count():
    settings = load_settings(environ={"BREAKWATER_CONTRACT__VALUE": ""})
    assert settings.contract.load().value is None
    assert Settings().contract.load().value == "price"


def test_flink_options_are_taken_as_toml_writes_them(config):
    config.write_text(
        "[flink]\nstate.backend.type = 'rocksdb'\n'a.b' = 4\nc.d = true\ne = ['x', 'y']\n"
    )
    flink = load_settings(config, environ={}).flink
    assert flink == {"state.backend.type": "rocksdb", "a.b": "4", "c.d": "true", "e": "x;y"}


@pytest.mark.parametrize(
    "environ",
    [
        {"BREAKWATER_FLINK": '{"state.backend.type": "hashmap"}'},
        {"BREAKWATER_FLINK__state.backend.type": "hashmap"},
    ],
)
def test_a_flink_option_in_a_variable_wins_over_the_same_in_the_file(config, environ):
    config.write_text("[flink]\nstate.backend.type = 'rocksdb'\nother = 1")
    flink = load_settings(config, environ=environ).flink
    assert flink == {"state.backend.type": "hashmap", "other": "1"}


def test_a_flink_option_wins_however_it_is_spelt(config):
    """Merged as tables first, the file's quoted spelling would have the last word."""
    config.write_text("[flink]\na.c = 0\n'a.b' = 1")
    environ = {"BREAKWATER_FLINK": '{"a": {"b": "2"}}'}
    assert load_settings(config, environ=environ).flink == {"a.c": "0", "a.b": "2"}


def test_the_kept_payload_cannot_be_longer_than_a_record(config):
    message = refusal(config, "[source]\nmax_record_bytes = 1000")
    assert message.startswith(
        "source.payload_limit_bytes = 65536: must be at most source.max_record_bytes (1000);"
    )
    config.write_text("[source]\nmax_record_bytes = 1000\npayload_limit_bytes = 1000")
    assert load_settings(config, environ={}).source.payload_limit_bytes == 1000


def test_overflow_needs_a_store_to_go_to(config):
    assert refusal(config, "[delivery]\noverflow = 'fallback'") == (
        'delivery.overflow = "fallback": needs delivery.fallback = "file"; '
        f"change it in {config} [delivery] or BREAKWATER_DELIVERY__OVERFLOW"
    )
    config.write_text(
        "[delivery]\ntarget = 'http'\noverflow = 'fallback'\nfallback = 'file'\n"
        "[http]\nurl = 'http://h/'"
    )
    assert load_settings(config, environ={}).delivery.overflow == "fallback"


def test_without_a_target_there_is_no_fallback_store():
    for target, fallback, has in (
        ("", "dead_letters", False), ("http", "dead_letters", False), ("http", "file", True),
    ):  # fmt: skip
        delivery = {"delivery.target": target, "delivery.fallback": fallback}
        settings = load_settings(None, {**delivery, "http.url": "http://h/"}, {})
        assert settings.delivery.has_fallback is has
        assert bool(to_fallback(settings)) is has


def test_what_goes_to_the_fallback_store_is_what_the_settings_say():
    call = {"delivery.target": "http", "delivery.fallback": "file", "http.url": "http://h/"}
    given_up = {"exhausted", "expired", "flush_at_end", "followed"}
    assert to_fallback(load_settings(None, call, {})) == given_up
    overflows = load_settings(None, {**call, "delivery.overflow": "fallback"}, {})
    assert to_fallback(overflows) == given_up | {"overflow"}
    rules = delivery_rules(overflows)
    assert rules
    assert rules.to_fallback == to_fallback(overflows)


def test_a_contract_with_the_stores_own_field_is_refused(config):
    toml = """
        [contract]
        type = "tests.unit.operators.contracts:WithBreakwaterKey"
        key = "key"
        event_time = "at"
        value = ""
        [http]
        url = "http://h/"
        [delivery]
        target = "http"
        fallback = "file"
    """
    assert "adds the field breakwater_key to each event" in refusal(config, toml)
    config.write_text(toml.replace('"file"', '"dead_letters"'))
    load_settings(config, environ={})


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("category = 'nope'", ".category = \"nope\": must be 'transient', 'persistent', "),
        ("retryable = true", ".category: is missing; change it in "),
        ("category = 'transient'\nretriable = true", "did you mean failures.http_409.retryable?"),
        ("category = 'transient'\nretryable = true\nwait_ms = 'x'", '.wait_ms = "x": must be a '),
        (
            "category = 'persistent'\nsystemic = true",
            ".systemic = true: needs retryable = true: else it is given up; change it in ",
        ),
        (
            "category = 'transient'\nwait_ms = 5000",
            ".wait_ms = 5000: needs retryable = true: else it is given up; change it in ",
        ),
    ],
)
def test_an_entry_of_the_failure_table_is_told_as_what_it_is(config, entry, told):
    message = refusal(config, f"[failures.http_409]\n{entry}")
    assert message.startswith("failures.http_409")
    assert told in message


def test_an_entry_of_the_failure_table_is_a_table(config):
    assert refusal(config, "[failures]\nhttp_409 = 'x'").startswith(
        'failures.http_409 = "x": must be {category = ..., retryable = ..., systemic = ..., '
        f"wait_ms = ...}}; change it in {config} or BREAKWATER_FAILURES"
    )


def test_what_may_follow_an_entry_of_the_failure_table_is_taken(config):
    config.write_text(
        "[failures.http_402]\ncategory = 'persistent'\nretryable = true\nsystemic = true\n"
        "[failures.http_409]\ncategory = 'transient'\nretryable = true\nwait_ms = 5000\n"
        "[failures.'shop.Gone']\ncategory = 'data_quality'\nsystemic = false\nwait_ms = 0"
    )
    assert len(load_settings(config, environ={}).failures) == 3


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(SettingsError, match=r"nope.toml: there is no such settings file; check"):
        load_settings(tmp_path / "nope.toml", environ={})


def test_a_broken_file_is_told(config):
    assert "is not valid TOML" in refusal(config, "[windows")
    config.write_bytes(b"a = '\xff'")
    with pytest.raises(SettingsError, match="is not valid TOML"):
        load_settings(config, environ={})


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[contract]\ntype = 'no_such_package:X'", "no_such_package"),
        ("[contract]\nkey = 'usr'", "usr"),
        ("[contract]\nidentity = 'usr'", "identity = 'usr' is not one of its fields"),
        ("[contract]\nidentity = 'price'", "identity = 'price' is a float"),
        ("[poison]\npatterns = [{pattern = '(', reason = 'a'}]", "'('"),
        ("[poison]\nviolations = ['schema_eror']", "'schema_error'"),
    ],
)
def test_what_the_settings_name_is_tried_at_start(config, toml, told):
    message = refusal(config, toml)
    table = toml.split("\n")[0]
    assert message.startswith(f"{config} {table}: ")
    assert told in message


def test_a_contract_from_a_variable_is_looked_for_there(config):
    message = refusal(config, environ={"BREAKWATER_CONTRACT__KEY": "usr"})
    assert message.startswith("BREAKWATER_CONTRACT__*: ")


def test_every_output_has_its_topic():
    """Their names are said in the README: users read them."""
    topics = SinkSettings(ledger_topic="books").topics()
    assert list(topics) == list(OUTPUTS)
    assert list(topics.values()) == [
        "processed-events",
        "user-windows",
        "late-events",
        "dlq-{queue}",
        "quarantine-{reason}",
        "fallback",
        "books",
    ]


def test_the_table_lists_every_setting_once_with_a_description():
    names = [name for name, _, _, _ in settings_table()]
    tables = {name.split(".")[0] for name in names}
    assert tables == set(Settings.model_fields)
    assert len(names) == len(set(names))
    contract = {name for name in names if name.startswith("contract.")}
    assert contract == {f"contract.{name}" for name in ContractSettings.model_fields}
    assert all(description for _, _, _, description in settings_table())


def test_the_table_shows_defaults_and_bounds_as_they_are_checked(config):
    rows = {name: (default, bounds) for name, default, bounds, _ in settings_table()}
    assert rows["windows.size_ms"] == ("300000", "1000 to 604800000")
    assert rows["contract.key"] == ('"user_id"', "")
    assert rows["poison.violations"] == ("[]", "")
    assert rows["flink"] == ("{}", "")


def number_settings() -> list[tuple[str, int, int]]:
    return [
        (name, *map(int, bounds.split(" to "))) for name, _, bounds, _ in settings_table() if bounds
    ]


@pytest.mark.parametrize(("name", "low", "high"), number_settings())
def test_every_number_has_two_bounds_that_hold(name, low, high):
    for wrong in (low - 1, high + 1):
        with pytest.raises(SettingsError, match=rf"^{name} = {wrong}: must be at"):
            load_settings(None, {name: wrong}, {})


def test_every_whole_number_is_bounded():
    unbounded = [
        name for name, default, bounds, _ in settings_table() if default.isdigit() and not bounds
    ]
    assert unbounded == []
