"""Settings: where they come from, and that every fault is named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resolver.settings import COMMAND_LINE_NAMES, Settings, SettingsFault, load, mask_url


def faults(config: Path | None = None, **environment: str) -> list[str]:
    with pytest.raises(SettingsFault) as error:
        load(config, environment)
    assert str(error.value) == "\n".join(error.value.faults)
    return error.value.faults


def toml(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


# Where they come from -------------------------------------------------------------------


def test_the_defaults_are_good() -> None:
    settings = load(None, {})
    assert settings == Settings()
    assert settings.port == 8080
    assert settings.registry_url == "sqlite+aiosqlite:///data/registry.db"


def test_from_the_environment() -> None:
    settings = load(None, {"BIAOJIE_PORT": "0", "BIAOJIE_DATA_DIR": "/srv/biaojie"})
    assert (settings.port, settings.data_dir) == (0, Path("/srv/biaojie"))
    assert settings.registry_url == "sqlite+aiosqlite:////srv/biaojie/registry.db"


def test_from_a_file(tmp_path: Path) -> None:
    text = 'port = 81\nnode_name = "标识节点"\ndeadline_s = 3\nsuffix_slash_allowed = false\n'
    settings = load(toml(tmp_path, text), {})
    assert (settings.port, settings.node_name, settings.deadline_s) == (81, "标识节点", 3.0)
    assert settings.suffix_slash_allowed is False


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, 'port = "nonsense"\nhost = "::1"\n')
    settings = load(path, {"BIAOJIE_PORT": "82"})
    assert (settings.port, settings.host) == (82, "::1")


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    path = toml(tmp_path, "port = 83\n")
    assert load(None, {"BIAOJIE_CONFIG": str(path)}).port == 83
    other = tmp_path / "other.toml"
    other.write_text("port = 84\n")
    assert load(other, {"BIAOJIE_CONFIG": str(path)}).port == 84, "the option wins"
    assert load(None, {"BIAOJIE_CONFIG": ""}).port == 8080


def test_the_real_environment_is_used_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMMAND_LINE_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BIAOJIE_PORT", "85")
    assert load().port == 85


def test_what_is_not_ours_is_left_alone() -> None:
    others = {"PATH": "/bin", "biaojie_port": "1", "BIAOJIEPORT": "1", "XBIAOJIE_PORT": "1"}
    known = dict.fromkeys(COMMAND_LINE_NAMES - {"BIAOJIE_CONFIG"}, "x")
    assert load(None, others | known) == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, True) for text in ("1", "true", "TRUE", "yes", "on")],
        *[(text, False) for text in ("0", "false", "No", "off")],
    ],
)
def test_truth_in_the_environment(text: str, value: bool) -> None:
    assert load(None, {"BIAOJIE_TRUNCATE_ADDRESSES": text}).truncate_addresses is value


@pytest.mark.parametrize(
    ("text", "value"), [("2", 2.0), ("2.5", 2.5), (" 3 ", 3.0), ("1e1", 10.0), ("1.6", 1.6)]
)
def test_numbers_in_the_environment(text: str, value: float) -> None:
    assert load(None, {"BIAOJIE_DEADLINE_S": text}).deadline_s == value


# Faults ---------------------------------------------------------------------------------


def test_every_fault_is_named_at_once_with_where_it_came_from(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        'hots = "::1"\nport = 99999\nlog_level = "loud"\n[database]\nurl = "x"\n',
    )
    found = faults(
        path,
        BIAOJIE_DEADLINE_S="soon",
        BIAOJIE_DATABASE_URL="mysql://user:hunter2@host/name",
        BIAOJIE_CACHE_BYTES="1",
        BIAOJIE_PUBLIC_URL="id.acme.example",
        BIAOJIE_DEMO_PREFIX="88..8",
        BIAOJIE_ALLOW_UNSAFE_DURABILITY="perhaps",
    )
    assert len(found) == 10
    starts = [
        f"{path}: there is no setting hots",
        f"{path}: there is no setting database",
        "BIAOJIE_CACHE_BYTES: there is no setting cache_bytes",
        f"{path}: port: ",
        f"{path}: log_level: ",
        "BIAOJIE_DEADLINE_S: deadline_s: ",
        "BIAOJIE_DATABASE_URL: database_url: must begin with postgresql+asyncpg://",
        "BIAOJIE_PUBLIC_URL: public_url: must be an http or https address",
        "BIAOJIE_DEMO_PREFIX: demo_prefix: The prefix has an empty label",
        "BIAOJIE_ALLOW_UNSAFE_DURABILITY: allow_unsafe_durability: ",
    ]
    for start in starts:
        assert any(fault.startswith(start) for fault in found), start
    assert "hunter2" not in "\n".join(found)


def test_one_unknown_name_is_fault_enough(tmp_path: Path) -> None:
    assert faults(BIAOJIE_PROT="80") == ["BIAOJIE_PROT: there is no setting prot"]
    assert len(faults(toml(tmp_path, "prot = 80"))) == 1


BAD: dict[str, list[Any]] = {
    "BIAOJIE_PORT": ["-1", "65536", "http", "80.5", "", "8080 x", "0x50", "٨٠"],
    "BIAOJIE_DEADLINE_S": ["0", "-1", "61", "nan", "inf", "-inf", "", "2s", "1.5"],
    "BIAOJIE_CACHE_BYTES_MAX": ["0", "256M", "1048575", str(2**40 + 1)],
    "BIAOJIE_TRUNCATE_ADDRESSES": ["", "2", "maybe", "ja"],
    "BIAOJIE_LOG_LEVEL": ["INFO", "trace", ""],
    "BIAOJIE_HOST": [""],
    "BIAOJIE_NODE_NAME": ["", "x" * 65],
    "BIAOJIE_DATABASE_CONNECTIONS": ["1", "201"],
    "BIAOJIE_DATABASE_URL": [
        "registry.db",
        "postgresql://h/d",
        "sqlite:///x",
        "sqlite+aiosqlite://",
    ],
    "BIAOJIE_PUBLIC_URL": ["acme", "ftp://acme", "http://", "https://acme/?x=1", "http://["],
    "BIAOJIE_DEMO_PREFIX": ["", "88/1", "88.1.", "88.1.2"],
    "BIAOJIE_POLL_S": ["0", "1.1"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts]
)
def test_bad_values(name: str, text: str) -> None:
    with pytest.raises(SettingsFault) as error:
        load(None, {name: text})
    [fault] = error.value.faults
    assert name.removeprefix("BIAOJIE_").lower() in fault


@pytest.mark.parametrize(
    "text",
    [
        "port = true",
        "port = []",
        "port = 80.5",
        "deadline_s = false",
        "host = 1",
        "data_dir = 1",
        "truncate_addresses = 2",
        "node_name = 2026-01-01",
        "demo_prefix = {}",
    ],
)
def test_values_of_the_wrong_kind_in_a_file(tmp_path: Path, text: str) -> None:
    [fault] = faults(toml(tmp_path, text))
    assert fault.startswith(f"{tmp_path / 'node.toml'}: {text.partition(' ')[0]}: ")


def test_settings_that_do_not_go_together() -> None:
    [fault] = faults(BIAOJIE_STORE_TIMEOUT_S="2")
    assert fault == "store_timeout_s (2) must be less than deadline_s (2)"
    assert faults(BIAOJIE_DEADLINE_S="1.5")
    assert load(None, {"BIAOJIE_STORE_TIMEOUT_S": "2", "BIAOJIE_DEADLINE_S": "2.1"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"port = ", "is not TOML"),
        (b"port: 80", "is not TOML"),
        (b"port = 1\nport = 2\n", "is not TOML"),
        (b'{"port": 80}', "is not TOML"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(content)
    [fault] = faults(path)
    assert fault.startswith(f"{path}: {said}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        [fault] = faults(path)
        assert fault.startswith(f"{path}: cannot be read")
        [fault] = faults(BIAOJIE_CONFIG=str(path))
        assert fault.startswith(f"{path}: cannot be read")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


# Secrets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite+aiosqlite:///data/a.db", "sqlite+aiosqlite:///data/a.db"),
        ("postgresql+asyncpg://host/name", "postgresql+asyncpg://host/name"),
        ("postgresql+asyncpg://user@host:5432/name", "postgresql+asyncpg://user@host:5432/name"),
        ("postgresql+asyncpg://u:hunter2@host/name", "postgresql+asyncpg://u:***@host/name"),
        ("postgresql+asyncpg://:hunter2@host/name", "postgresql+asyncpg://:***@host/name"),
        ("postgresql+asyncpg://u:hun@ter2@h:1/n", "postgresql+asyncpg://u:***@h:1/n"),
        ("postgresql+asyncpg://u:hun/ter2@h/n", "postgresql+asyncpg://u:***@h/n"),
        ("postgresql+asyncpg://u:hun#t?er2@h/n", "postgresql+asyncpg://u:***@h/n"),
        ("postgresql+asyncpg://u@h/n?password=hunter2", "postgresql+asyncpg://u@h/n?password=***"),
        (
            "postgresql+asyncpg://u@h/n?host=/run&PASSWORD=hunter2&sslpassword=hunter2",
            "postgresql+asyncpg://u@h/n?host=/run&PASSWORD=***&sslpassword=***",
        ),
        ("postgresql+asyncpg://@/n?host=/run", "postgresql+asyncpg://@/n?host=/run"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert mask_url(url) == shown
    settings = load(None, {"BIAOJIE_DATABASE_URL": url})
    assert settings.masked()["database_url"] == shown
    assert settings.registry_url == url
    assert "hunter2" not in repr(settings)
    assert "ter2" not in str(settings.masked())


def test_standbys_need_a_postgresql_to_follow() -> None:
    url = "postgresql+asyncpg://u:hunter2@a/n"
    environment = {"BIAOJIE_DATABASE_URL": url, "BIAOJIE_REPLICA_URL": f"{url}  {url}"}
    settings = load(None, environment)
    assert settings.replica_urls == [url, url]
    shown = "postgresql+asyncpg://u:***@a/n"
    assert settings.masked()["replica_url"] == f"{shown} {shown}"
    assert "hunter2" not in repr(settings)
    with pytest.raises(SettingsFault, match="replica_url needs a PostgreSQL"):
        load(None, {"BIAOJIE_REPLICA_URL": url})
    with pytest.raises(SettingsFault, match="each must begin"):
        load(None, environment | {"BIAOJIE_REPLICA_URL": f"{url} sqlite:///x"})


def test_masked_shows_every_setting() -> None:
    assert list(Settings().masked()) == list(Settings.model_fields)
    assert Settings().masked()["database_url"] == "sqlite+aiosqlite:///data/registry.db"


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
