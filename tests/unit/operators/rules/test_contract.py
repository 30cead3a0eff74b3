"""The contract: derived columns and names, and what is refused at start."""

# ruff: noqa: UP007, UP045 - both spellings of Optional and Union are tested

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import cloudpickle  # type: ignore[import-untyped]
import msgspec
import pyarrow as pa
import pytest
from msgspec import Meta

from operators.rules import contract as contract_module
from operators.rules.contract import Contract, ContractError, fits_int64, load_contract, misfit
from tests.unit.operators.rules.contracts import ECOMMERCE, READING, Outer

HERE = "tests.unit.operators.rules.contracts"


READ = {"key": "deviceId", "event_time": "takenAt"}


def load(
    name: str,
    key: str = "key",
    event_time: str = "at",
    value: str | None = None,
    identity: str | None = None,
) -> Contract:
    return load_contract(f"{HERE}:{name}", key, event_time, value, identity)


def test_the_reference_contract_has_the_columns_in_field_order() -> None:
    contract = load_contract(*ECOMMERCE)
    assert [(c.name, c.sql_type, c.arrow_type) for c in contract.columns] == [
        ("user_id", "STRING", pa.string()),
        ("product_id", "STRING", pa.string()),
        ("action", "STRING", pa.string()),
        ("price", "DOUBLE", pa.float64()),
        ("timestamp", "TIMESTAMP_LTZ(3)", pa.timestamp("ms")),
    ]
    assert (contract.key, contract.event_time, contract.value) == ("user_id", "timestamp", "price")


def test_the_reference_contract_has_exactly_these_error_types() -> None:
    assert load_contract(*ECOMMERCE).error_types == (
        "schema_error",
        "missing_required",
        "invalid_price",
        "unknown_action",
        "future_timestamp",
    )


def test_another_contract_has_columns_by_the_names_in_its_json() -> None:
    contract = load_contract(*READING)
    assert [(c.name, c.kind, c.sql_type) for c in contract.columns] == [
        ("deviceId", "str", "STRING"),
        ("takenAt", "datetime", "TIMESTAMP_LTZ(3)"),
        ("sequence", "int", "BIGINT"),
        ("isOk", "bool", "BOOLEAN"),
        ("level", "int", "BIGINT"),
        ("humidity", "float", "DOUBLE"),
        ("temperature", "float", "DOUBLE"),
        ("mode", "str", "STRING"),
        ("note", "str", "STRING"),
        ("repairedAt", "datetime", "TIMESTAMP_LTZ(3)"),
    ]
    assert contract.column("takenAt").attribute == "taken_at"
    assert contract.column("sequence").arrow_type == pa.int64()
    assert contract.column("isOk").arrow_type == pa.bool_()


def test_optional_and_required_are_told_apart() -> None:
    columns = load_contract(*READING).columns
    assert [c.name for c in columns if c.optional] == ["temperature", "mode", "repairedAt"]
    assert [c.name for c in columns if not c.required] == [
        "temperature",
        "mode",
        "note",
        "repairedAt",
    ]


def test_constraints_are_named_in_field_order_and_literals_after_them() -> None:
    assert load_contract(*READING).error_types == (
        "schema_error",
        "missing_required",
        "invalid_deviceId",
        "invalid_sequence",
        "bad_humidity",
        "invalid_temperature",
        "invalid_repairedAt",
        "unknown_level",
        "unknown_mode",
        "future_timestamp",
    )


def test_a_time_in_the_future_is_named_last_even_if_a_field_calls_its_errors_so() -> None:
    expected = ("schema_error", "missing_required", "future_timestamp")
    assert load("WithOwnFuture").error_types == expected


def test_a_name_that_is_no_identifier_gives_an_error_type_that_can_name_a_folder() -> None:
    contract = load("Kebab", "machine-id", "measured-at", "oil-level")
    assert contract.column("oil-level").invalid_error == "invalid_oil_level"
    assert contract.value == "oil-level"


def test_a_role_may_be_given_by_its_attribute_too() -> None:
    contract = load_contract(READING[0], "device_id", "taken_at", "humidity")
    assert (contract.key, contract.event_time) == ("deviceId", "takenAt")


@pytest.mark.parametrize("identity", [None, ""])
def test_without_an_identity_it_is_the_payload_that_tells_events_apart(
    identity: str | None,
) -> None:
    assert load_contract(*ECOMMERCE, identity).identity is None


def test_an_identity_may_be_a_text_or_an_integer() -> None:
    assert load_contract(*READING, "sequence").identity == "sequence"
    assert load_contract(*READING, "device_id").identity == "deviceId"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_value_windows_only_count(value: str | None) -> None:
    assert load_contract(*ECOMMERCE[:3], value).value is None


def test_a_nested_class_can_be_named() -> None:
    assert load("Outer.Inner").type is Outer.Inner


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("arguments", [ECOMMERCE, READING, (*READING, "sequence")])
def test_a_contract_survives_the_way_to_a_worker(dumps, arguments) -> None:  # type: ignore[no-untyped-def]
    contract = load_contract(*arguments)
    assert contract.error_types  # the cache must not get in the way
    loaded = pickle.loads(dumps(contract))  # noqa: S301 - our own bytes
    assert loaded == contract
    assert loaded.type is contract.type


def test_a_column_cannot_be_pickled_without_its_contract() -> None:
    """Positive control: it is `__reduce__` that makes the test above pass."""
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(load_contract(*ECOMMERCE).columns[3])


@pytest.mark.parametrize(
    ("name", "roles", "message"),
    [
        ("NotAStruct", {}, "NotAStruct is not a msgspec.Struct"),
        ("Celsius", {}, "Celsius is not a msgspec.Struct"),
        ("Readings", {}, "module .* has no Readings; did you mean 'Reading'?"),
        ("Outer.Outer", {}, "has no Outer.Outer"),
        ("AsArray", {}, "array_like=True"),
        ("WithList", {}, r"field 'tags' has type list\[str\]; use str, int"),
        ("WithUnion", {}, r"field 'size' has type Union\[int, str\]"),
        ("WithMixedLiteral", {}, r"field 'size' has type Literal\['one', 2\]"),
        ("WithBytes", {}, "field 'blob' has type bytes"),
        ("WithNested", {}, "field 'inner' has type Kebab"),
        ("WithOffsetColumn", {}, "field 'source_offset' has the name of a column that Breakwater"),
        ("WithBacktick", {}, "backtick"),
        ("WithBadMeta", {}, "msgspec refuses it: Can only set `min_length`"),
        ("WithBadErrorType", {}, "field 'size' has error_type 'Bad Size'"),
        ("WithBadDefault", {}, "field 'size' has default 0, which the field itself refuses"),
        ("WithNoneDefault", {}, "field 'size' has default None"),
        ("WithInfiniteDefault", {}, "default inf, which is not a finite number"),
        ("WithWideDefault", {}, "default 9223372036854775808, which is outside 64 bits"),
        ("WithFactory", {}, "field 'size' has a default_factory"),
        ("WithOptionalKey", {}, "key = 'key' may be null; declare it str, without Optional"),
        ("WithOptionalTime", {}, "event_time = 'at' may be null"),
        ("WithDefaultTime", {}, "event_time = 'at' has a default"),
        ("WithWindowKey", {"key": "window_start"}, "key = 'window_start' has the name of a window"),
        ("Strict", {"key": "keys"}, "key = 'keys' is not one of its fields .*did you mean 'key'?"),
        ("Strict", {"key": "low"}, "key = 'low' is a float; name a field that is str"),
        ("Strict", {"event_time": "nope"}, "event_time = 'nope' is not one of its fields"),
        ("Strict", {"event_time": "key"}, "event_time = 'key' is a str; .* that is datetime"),
        ("Strict", {"value": "key"}, "value = 'key' is a str; name a field that is int or float"),
        ("Reading", {"key": "deviceId", "event_time": "takenAt", "value": "isOk"}, "is a bool"),
        ("Strict", {"identity": "kay"}, "identity = 'kay' is not one of its .*did you mean 'key'?"),
        ("Strict", {"identity": "low"}, "identity = 'low' is a float; name .* is str or int"),
        ("Strict", {"identity": "at"}, "identity = 'at' is a datetime; name .* is str or int"),
        ("Reading", {**READ, "identity": "isOk"}, "identity = 'isOk' is a bool; name a field"),
        ("Reading", {**READ, "identity": "mode"}, "identity = 'mode' may be null; declare it str"),
        ("Reading", {**READ, "identity": "level"}, "identity = 'level' is one of a few values"),
        ("Reading", {**READ, "identity": "note"}, "identity = 'note' has a default"),
    ],
)
def test_a_contract_that_cannot_work_is_refused_in_one_line(
    name: str, roles: dict[str, str], message: str
) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        load(name, **roles)
    assert str(caught.value).startswith(f"{HERE}:{name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "write it as my_package.module:MyEvent"),
        ("udfs.ecommerce", "write it as my_package.module:MyEvent"),
        ("udfs.ecommerce:", "write it as"),
        (":EcommerceEvent", "write it as"),
        (".ecommerce:EcommerceEvent", "write it as"),
        ("udfs ecommerce:Event", "write it as"),
        ("no_such_package.module:Event", "no module no_such_package; check its name"),
        ("udfs.no_such_module:Event", "no module udfs.no_such_module"),
        ("__main__:Event", "move it to a module"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_in_one_line(path: str, message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        load_contract(path, "key", "at")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency", "importing broken failed: No module named 'no_such_dep"),
        ("raise RuntimeError('two\\nlines')", "importing broken failed: RuntimeError: two lines"),
        ("def (", "importing broken failed: SyntaxError"),
        (
            "import msgspec\nclass Event(msgspec.Struct):\n    key: 'NoSuchType'",
            "msgspec refuses it: name 'NoSuchType' is not defined",
        ),
    ],
)
def test_a_module_that_breaks_on_import_is_one_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(ContractError, match=message) as caught:
        load_contract("broken:Event", "key", "at")
    assert "\n" not in str(caught.value)
    sys.modules.pop("broken", None)


def test_an_unknown_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ContractError, match=r"has no column 'prise'; did you mean 'price'\?"):
        load_contract(*ECOMMERCE).column("prise")


def version_of(hint: Any, *default: object, name: str = "size", **config: Any) -> str:
    """The version of a contract whose third field is declared so."""
    fields: list[Any] = [("key", str), ("at", datetime), (name, hint, *default)]
    struct = msgspec.defstruct("Event", fields, **config)
    return contract_module._version(struct, contract_module._columns("m:Event", struct))


def test_the_version_changes_with_whatever_decides_on_events() -> None:
    versions = [
        version_of(int),
        version_of(float),
        version_of(Optional[int]),
        version_of(int, 1),
        version_of(int, 2),
        version_of(Annotated[int, Meta(ge=0)]),
        version_of(Annotated[int, Meta(gt=0)]),
        version_of(Annotated[int, Meta(ge=1)]),
        version_of(Annotated[int, Meta(extra={"error_type": "bad"})]),
        version_of(Literal[1, 2]),
        version_of(Literal[1, 3]),
        version_of(int, name="length"),
        version_of(int, rename={"size": "groesse"}),
        version_of(int, forbid_unknown_fields=True),
        version_of(int, tag="event"),
        version_of(int, tag="event", tag_field="kind"),
    ]
    assert len(set(versions)) == len(versions)
    assert all(re.fullmatch("[0-9a-f]{12}", version) for version in versions)


def test_the_version_is_the_same_for_the_same_meaning() -> None:
    assert version_of(Optional[int]) == version_of(Union[None, int]) == version_of(int | None)
    assert version_of(Literal["a", "b"]) == version_of(Literal["b", "a"])
    both = Annotated[int, Meta(ge=0, le=9)]
    layers = Annotated[Annotated[int, Meta(le=9)], Meta(ge=0)]
    assert version_of(Optional[both]) == version_of(Union[layers, None])


def test_the_version_does_not_change_by_itself() -> None:
    """If this fails, the version of every deployed contract changes: only ever on purpose."""
    assert load_contract(*ECOMMERCE).version == "8670521e172c"
    assert load_contract(*READING).version == "257a5fff387c"


def test_loading_a_contract_starts_no_flink() -> None:
    code = (
        "import sys, operators.rules.contract, operators.rules.verdict, operators.rules.envelope,"
        " operators.rules.ledger, udfs.ecommerce;"
        " sys.exit(any(m.startswith('pyflink') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "fits"), [(2**63 - 1, True), (2**63, False), (-(2**63), True), (-(2**63) - 1, False)]
)
def test_a_bigint_ends_at_64_bits(value: int, fits: bool) -> None:
    assert fits_int64(value) is fits
    assert (misfit(load_contract(*READING).column("sequence"), value) is None) is fits


def test_null_fits_every_column() -> None:
    assert not any(misfit(column, None) for column in load_contract(*READING).columns)


def test_msgspec_still_leaves_defaults_unchecked() -> None:
    """Positive control of the refused defaults: without our check such an event would come out."""
    struct = msgspec.defstruct("Loose", [("size", int, None)])
    assert msgspec.structs.asdict(msgspec.json.decode(b"{}", type=struct)) == {"size": None}
