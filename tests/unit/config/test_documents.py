from __future__ import annotations

import os
from pathlib import Path

import pytest

from config import files
from config.documents import load_documents, parse_documents
from config.problems import ConfigError
from tests.unit.config.loading import load, problems_of


def policy(name: str, extra: str = "") -> str:
    return (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        f"metadata: {{name: {name}{extra}}}\nspec: {{action: ALLOW, rules: [{{}}]}}\n"
    )


def names(folder: Path) -> list[str]:
    documents, _ = load_documents([folder])
    return [str(item) for item in documents.policies]


def problems(*paths: Path) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load_documents(paths)
    return [(problem.code, os.path.basename(problem.file)) for problem in caught.value.problems]


def test_a_folder_is_read_with_its_subfolders_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text(policy("b"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.yaml").write_text(policy("c", ", namespace: shop"))
    (tmp_path / "a.yaml").write_text(policy("a1") + "---\n" + policy("a2"))
    assert names(tmp_path) == ["default/a1", "default/a2", "default/b", "shop/c"]


def test_what_is_no_policy_file_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.test.yaml", ".hidden.yaml", "a.yaml~", "README.md", ".a.yaml.swp", "yaml"):
        (tmp_path / name).write_text("this: is [no policy")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.yaml").write_text("nor: this")
    assert names(tmp_path) == []


def test_the_volume_of_a_config_map_is_read_once(tmp_path: Path) -> None:
    data = tmp_path / "..2026_11_23"
    data.mkdir()
    (data / "a.yaml").write_text(policy("a"))
    (tmp_path / "..data").symlink_to(data.name)
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert names(tmp_path) == ["default/a"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "a.yaml").write_text(policy("a"))
    assert names(tmp_path) == ["default/a"]


def test_an_unknown_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")
    (tmp_path / "b.yaml").write_text("kind: AuthorizationPolicy\n")
    (tmp_path / "c.yaml").write_text(policy("c").replace("/v1", "/v9"))
    (tmp_path / "d.yaml").write_text("- 1\n")
    (tmp_path / "e.yaml").write_text("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n")
    assert problems(tmp_path) == [
        ("SW0112", "a.yaml"),
        ("SW0112", "b.yaml"),
        ("SW0112", "c.yaml"),
        ("SW0112", "d.yaml"),
        ("SW0120", "e.yaml"),
    ]


def test_two_policies_of_one_name_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(policy("a"))
    (tmp_path / "b.yaml").write_text(policy("a", ", namespace: default"))
    assert problems(tmp_path) == [("SW0202", "b.yaml")]


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\n")
    os.mkfifo(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").symlink_to("nowhere")
    assert problems(tmp_path, tmp_path / "missing") == [
        ("SW0113", "a.yaml"),
        ("SW0113", "b.yaml"),
        ("SW0113", "c.yaml"),
        ("SW0113", "missing"),
    ]


def test_the_size_of_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("#" * 101)
    with pytest.raises(files.Unreadable, match="larger"):
        files.read_bounded(tmp_path / "a.yaml", 100)
    assert files.read_bounded(tmp_path / "a.yaml", 101) == b"#" * 101


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 2)
    for name in "abc":
        (tmp_path / f"{name}.yaml").write_text(policy(name))
    with pytest.raises(ConfigError, match="more than 2 files"):
        load_documents([tmp_path])


def test_documents_may_follow_the_configuration() -> None:
    loaded = load("app: 1\nworkload: shop/api\n---\n" + policy("a"))
    assert [str(item) for item in loaded.documents.policies] == ["shop/a"]
    assert loaded.has_policy
    assert loaded.documents.policies[0].place.line == 4


def test_problems_of_the_configuration_and_of_policies_come_together(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "a.yaml").write_text(policy("a").replace("ALLOW", "ALOW"))
    found = [(p.code, os.path.basename(p.file), p.line) for p in problems_of("ap: 1\n", base=tmp_path)]
    assert found == [("SW0101", "sidewall.yaml", 1), ("SW0208", "sidewall.yaml", 1), ("SW0104", "a.yaml", 4)]


def test_several_sources_are_read_in_turn(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(policy(name))
    loaded = load("app: 1\npolicy: [b.yaml, a.yaml]", base=tmp_path)
    assert [item.name for item in loaded.documents.policies] == ["b", "a"]
    assert {tmp_path / "a.yaml", tmp_path / "b.yaml"} <= set(loaded.files)


def test_a_text_may_be_read_by_itself() -> None:
    assert [item.name for item in parse_documents(policy("a")).policies] == ["a"]
    with pytest.raises(ConfigError):
        parse_documents("a: 1")
