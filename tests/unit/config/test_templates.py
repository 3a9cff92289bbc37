from __future__ import annotations

from pathlib import Path

import pytest

from config.load import load_all
from config.templates import FIRST_POLICY, POLICY_FOLDERS, TEMPLATES, template


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_loads_without_problems(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "sidewall.yaml"
    file.write_text(template(kind))
    if kind in POLICY_FOLDERS:
        (tmp_path / POLICY_FOLDERS[kind]).mkdir()
        (tmp_path / POLICY_FOLDERS[kind] / "allow-web.yaml").write_text(FIRST_POLICY)
    loaded = load_all(file, env={})
    assert loaded.warnings == ()
    assert len(loaded.documents.policies) == (kind in POLICY_FOLDERS)
    assert loaded.config.outbound


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_names_its_schema_and_explains_itself(kind: str) -> None:
    text = template(kind)
    assert text.startswith("# yaml-language-server: $schema=https://sidewall.dev/schema/v1.json\n")
    assert text.count("#") > 6


def test_an_unknown_template_is_answered_with_the_known_ones() -> None:
    with pytest.raises(LookupError, match="sidecar, vm, gateway"):
        template("sidcar")
