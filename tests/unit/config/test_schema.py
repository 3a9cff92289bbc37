from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from config.model import CONFIG, Config
from config.schema import NoSuchSetting, explain_setting, json_schema
from config.settings import Section, leaves, settings_of, show
from tests.unit.config.loading import load


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


def sections(kind: Any) -> Iterator[type]:
    inner = getattr(kind, "item", kind)
    if isinstance(inner, Section):
        yield inner.cls
        for row in settings_of(inner.cls).values():
            yield from sections(row.kind)


def test_the_schema_allows_no_unknown_field_anywhere() -> None:
    found = list(objects(json_schema()))
    assert len(found) > 20
    assert all(item["additionalProperties"] is False for item in found)


def test_every_setting_of_the_model_is_in_the_schema_with_its_text() -> None:
    schema = json_schema()
    assert schema["properties"].keys() == settings_of(Config).keys()
    assert schema["properties"]["workers"]["default"] == 1
    assert all(item["description"] for whole in objects(schema) for item in whole["properties"].values())


def test_the_schema_names_what_must_be_given() -> None:
    inbound = json_schema()["properties"]["inbound"]["items"]
    assert inbound["required"] == ["app"]
    assert inbound["properties"]["timeouts"]["properties"]["header"]["default"] == "10s"


def test_every_default_is_read_as_the_value_it_is() -> None:
    """What ``config show`` prints can be written into the file."""
    config = load("app: 1\nworkload: a/b").config
    text = "\n".join(
        f"{name}: {value!r}" for name, value in show(config).items() if name not in {"app", "version", "policy"}
    )
    text = text.replace("True", "true").replace("False", "false")
    again = load(text).config
    first, second = dict(leaves(config.shown())), dict(leaves(again.shown()))
    del first["app"]
    assert first == second


@pytest.mark.parametrize("cls", set(sections(CONFIG)), ids=lambda cls: cls.__name__)
def test_every_setting_has_a_reason(cls: type) -> None:
    assert all(len(row.why) >= 2 for row in settings_of(cls).values())


def test_a_setting_is_explained() -> None:
    assert explain_setting("inbound[0].timeouts.header").split("\n") == [
        "inbound[0].timeouts.header",
        "  [T-2] a request's head, absolute; 408",
        "  default  10s",
        "  values   duration",
        "  env      SIDEWALL_INBOUND__0__TIMEOUTS__HEADER",
    ]
    assert "ROUND_ROBIN | LEAST_REQUEST" in explain_setting("upstreams.api.trafficPolicy.loadBalancer.simple")
    assert "SIDEWALL_UPSTREAMS__NAME__EXPECT" in explain_setting("upstreams.expect")
    assert "  must be given" not in explain_setting("inbound.app")
    assert "must be given" in explain_setting("inbound.app")


def test_a_setting_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(NoSuchSetting, match="did you mean 'inbound'"):
        explain_setting("inbond.app")
    with pytest.raises(NoSuchSetting):
        explain_setting("workers.x.y")
