from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_times.errors import UsageError
from anomaly_times.settings import DEFAULT_URL, Settings, load_settings, source_for_url


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> None:
    Path("anomaly-times.yaml").write_text(text)


def test_without_settings_the_source_is_victoriametrics_on_this_machine() -> None:
    name, source = load_settings().named_source()
    assert (name, source.read_url) == (DEFAULT_URL, DEFAULT_URL)


def test_settings_come_from_the_file_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    write("project: shop\nsources:\n  main: {url: 'http://vm:8428/'}\n")
    monkeypatch.setenv("AT_PROJECT", "bakery")
    monkeypatch.setenv("AT_SOURCES__MAIN__PASSWORD", "hush")
    monkeypatch.setenv("AT_SOURCES__MAIN__USERNAME", "reader")
    settings = load_settings()
    _, source = settings.named_source()
    assert settings.project == "bakery"
    assert source.read_url == "http://vm:8428"
    assert source.password is not None
    assert source.password.get_secret_value() == "hush"
    assert "hush" not in repr(settings)


def test_the_parts_of_a_cluster_have_urls_of_their_own() -> None:
    write(
        "sources: {c: {read: 'http://vmselect:8481/select/0/prometheus', write: 'http://vmagent:8429', "
        "readback: 'http://other:1'}}"
    )
    _, source = load_settings().named_source("c")
    assert source.write_url == "http://vmagent:8429/api/v1/write"
    assert source.readback_url == "http://other:1"


def test_a_write_url_with_its_path_is_kept() -> None:
    write("sources: {m: {url: 'http://mimir/prometheus', write: 'http://mimir/api/v1/push'}}")
    assert load_settings().named_source()[1].write_url == "http://mimir/api/v1/push"


def test_what_is_typed_as_a_url_may_be_a_folder() -> None:
    assert source_for_url("./metrics").folder == Path("metrics")
    assert source_for_url("file:///var/metrics").folder == Path("/var/metrics")
    with pytest.raises(UsageError, match="neither an HTTP URL nor a folder") as caught:
        source_for_url("localhost:8428/select/0")
    assert caught.value.hint == "http://localhost:8428/select/0"
    with pytest.raises(UsageError, match="must not hold credentials") as caught:
        source_for_url("http://me:secret@host")
    assert "AT_SOURCES__MAIN__PASSWORD" in caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint
    with pytest.raises(UsageError):
        source_for_url("ftp://host/x")
    with pytest.raises(UsageError):
        source_for_url("http://")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sources: {a: {url: 'http://user:secret@vm:1'}}", "credentials"),
        ("sources: {a: {url: 'vm:8428'}}", "http://host:port"),
        ("sources: {a: {url: 'http://vm:99999'}}", "http://host:port"),
        ("sources: {a: {}}", "needs `url`"),
        ("sources: {a: {url: 'http://vm', folder: x}}", "not both"),
        ("sources: {a: {url: 'http://vm', username: a, bearer_token: b}}", "both"),
        ("sources: {a: {url: 'http://vm', timeout: 0s}}", "timeout"),
        ("projekt: x", "projekt"),
        ("engine: dask", "engine"),
        ("ray_address: 'http://ray:6379'", "ray_address"),
        ("state_url: s3://bucket", "folder"),
        ("a: [", "YAML"),
        ("- 1", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_kept_quiet(text: str, words: str) -> None:
    write(text)
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert words in caught.value.message
    assert "secret" not in caught.value.message + caught.value.hint


def test_a_settings_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AT_CONFIG", "nowhere.yaml")
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        load_settings()


def test_an_unknown_or_ambiguous_source_is_named() -> None:
    settings = Settings.model_validate({"sources": {"a": {"url": "http://a"}, "b": {"url": "http://b"}}})
    with pytest.raises(UsageError, match="a, b"):
        settings.named_source()
    with pytest.raises(UsageError, match="'c'"):
        settings.named_source("c")
    assert settings.named_source("b")[1].read_url == "http://b"
