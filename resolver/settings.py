"""Every setting of a node, from the environment (`BIAOJIE_*`) and an optional TOML file.

The environment wins over the file. Wrong settings fail at once, with every fault named.
`docs/settings.md` lists them all; a test keeps it complete.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

PREFIX = "BIAOJIE_"
# Read by the command line, not by the node.
COMMAND_LINE_NAMES = frozenset({"BIAOJIE_CONFIG", "BIAOJIE_URL", "BIAOJIE_KEY"})


class SettingsFault(Exception):
    """Settings that cannot be used; `faults` has one line for each."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(
        Path("data"), description="Folder for the embedded registry and the first admin key."
    )
    database_url: str = Field(
        "",
        repr=False,
        description="Registry: `postgresql+asyncpg://user:password@host/name` or"
        " `sqlite+aiosqlite:///file`; empty for `registry.db` in the data folder.",
    )
    replica_url: str = Field(
        "",
        repr=False,
        description="Streaming standbys of that PostgreSQL, spaces between: what the public asks"
        " and the cache does not know is read there, as far as they are up to date.",
    )
    allow_unsafe_durability: bool = Field(
        False,
        description="Start even if PostgreSQL has fsync or synchronous_commit off"
        " (acknowledged writes can then be lost).",
    )
    database_connections: int = Field(
        8, ge=2, le=200, description="Connections to the registry this process may hold."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0 picks a free one.")
    trusted_proxies: str = Field(
        "",
        description="Networks of proxies in front of this node, commas between, e.g."
        " `10.0.0.0/24, ::1/128`: over HTTP whoever they say asks is the client, for wrong keys and"
        " in logs. Empty: none is believed.",
    )
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = Field(
        "x-forwarded-for",
        description="The header in which those proxies say so, and which they do not pass on as"
        " they got it.",
    )
    public_url: str = Field(
        "",
        description="Address under which people reach this node, e.g. `https://id.acme.example`;"
        " permanent links and QR codes use it. Empty: the Host header of each request.",
    )
    node_name: str = Field(
        "biaojie", min_length=1, max_length=64, description="Name shown on the pages."
    )
    demo_prefix: str = Field(
        "88.118.8", description="Prefix that `serve --demo` homes and fills with sample data."
    )
    suffix_case_sensitive: bool = Field(
        False,
        description="Whether suffixes that differ only in ASCII case are different identifiers."
        " Fixed when the registry is first used.",
    )
    suffix_slash_allowed: bool = Field(
        True, description="Whether new identifiers may have a slash in the suffix."
    )
    deadline_s: float = Field(
        2.0,
        gt=0,
        le=60,
        description="Longest time for one request, in seconds; more than `store_timeout_s`.",
    )
    batch_deadline_s: float = Field(
        10.0, gt=0, le=300, description="Longest time for a batch or a page of a list."
    )
    store_timeout_s: float = Field(
        1.5, gt=0, le=60, description="Longest time for one read of the registry."
    )
    commit_timeout_s: float = Field(
        8.0, gt=0, le=60, description="Longest time for one commit to the registry."
    )
    body_bytes_max: int = Field(
        8 * 2**20, ge=1024, le=2**30, description="Largest request body, in bytes."
    )
    header_bytes_max: int = Field(
        16_384, ge=1024, le=2**20, description="Largest request line or header, in bytes."
    )
    header_timeout_s: float = Field(
        10.0, gt=0, le=300, description="Time a client has to send the whole request head."
    )
    body_timeout_s: float = Field(
        15.0, gt=0, le=300, description="Time a client has to send the whole body."
    )
    reply_timeout_s: float = Field(
        30.0, gt=0, le=300, description="Time a client has to take the reply."
    )
    keepalive_timeout_s: float = Field(
        75.0, gt=0, le=3600, description="How long an idle connection stays open."
    )
    connections_max: int = Field(10_000, ge=1, le=1_000_000, description="Open connections.")
    requests_max: int = Field(
        512, ge=1, le=100_000, description="Requests worked on at a time; beyond: 503."
    )
    tenant_rate_max: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Requests a second of one tenant, over all fronts of one worker, with as many"
        " at once; beyond: 429. A batch counts one more for each 100 rows. Administrators and the"
        " public have no such limit. 0: any number.",
    )
    watchers_max: int = Field(
        256, ge=1, le=100_000, description="Callers waiting for changes at a time."
    )
    queue_operations_max: int = Field(
        20_000, ge=1, le=1_000_000, description="Operations waiting for a commit; beyond: 503."
    )
    cache_bytes_max: int = Field(
        256 * 2**20, ge=2**20, le=2**40, description="Size of the record cache, in bytes."
    )
    cache_ttl_max_s: float = Field(
        3600.0, ge=0, le=172_800, description="Longest time a record is cached without asking."
    )
    lane_bytes_max: int = Field(
        192 * 2**20,
        ge=0,
        le=2**40,
        description="Size of the ready replies of the express lane, all fronts together, in bytes;"
        " 0: no lane.",
    )
    large_pages: bool = Field(
        True,
        description="Move memory in use to pages of 2 MiB, which makes a full cache faster; only on"
        " Linux from 6.1 on, and not where the system has them switched off.",
    )
    absent_ttl_s: float = Field(
        5.0, ge=0, le=60, description="How long the absence of a name is remembered."
    )
    absent_max: int = Field(
        100_000, ge=0, le=10_000_000, description="How many absent names are remembered."
    )
    stale_s: float = Field(
        259_200.0,
        ge=0,
        le=2_592_000,
        description="How long cached records are still served while the registry is down.",
    )
    poll_s: float = Field(
        0.25, gt=0, le=1, description="How often the change log is looked at, in seconds."
    )
    handle_enabled: bool = Field(
        True, description="Whether to speak the Handle protocol: TCP, UDP and inside HTTP."
    )
    handle_host: str = Field(
        "",
        description="Addresses to listen on for the Handle protocol, commas between. Empty: as"
        " `host`, and where that is 127.0.0.1 or 0.0.0.0 its IPv6 twin too.",
    )
    handle_port: int = Field(
        2641, ge=0, le=65535, description="Handle port, TCP and UDP; 0 picks a free one."
    )
    handle_connections_max: int = Field(
        10_000, ge=1, le=1_000_000, description="Open Handle connections."
    )
    handle_pipeline_max: int = Field(
        64, ge=1, le=10_000, description="Requests of one Handle connection worked on at a time."
    )
    handle_requests_max: int = Field(
        512, ge=1, le=100_000, description="Handle requests worked on at a time; beyond: busy."
    )
    handle_idle_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="How long an idle Handle connection stays open."
    )
    handle_message_timeout_s: float = Field(
        15.0,
        gt=0,
        le=300,
        description="Time a Handle client has to send a whole message, the first one included.",
    )
    handle_udp_amplification_max: float = Field(
        3.0,
        ge=1,
        le=1_000,
        description="Octets answered over UDP for each octet asked; longer answers go over TCP.",
    )
    handle_udp_rate_max: int = Field(
        500,
        ge=0,
        le=1_000_000,
        description="Answers over UDP a second to one network (/24, /56); 0: any number.",
    )
    handle_public_addresses: str = Field(
        "",
        description="IP addresses under which Handle clients reach this node, commas between; its"
        " HS_SITE says so. Empty: those it listens on.",
    )
    handle_public_port: int = Field(
        0, ge=0, le=65535, description="Handle port as clients reach it; 0: as `handle_port`."
    )
    handle_public_http_port: int = Field(
        0, ge=0, le=65535, description="HTTP port as Handle clients reach it; 0: as `port`."
    )
    handle_delete: Literal["purge", "retire"] = Field(
        "purge",
        description="What a Handle client's delete does: `purge` removes the record, so that the"
        " name is free again; `retire` leaves a tombstone.",
    )
    handle_auth_requires_tls: bool = Field(
        True,
        description="Take passwords and sessions of the Handle REST interface over TLS only, or"
        " from this machine itself.",
    )
    native_enabled: bool = Field(True, description="Whether to speak the native protocol.")
    native_host: str = Field(
        "", description="Address to listen on for the native protocol. Empty: as `host`."
    )
    native_port: int = Field(
        2650, ge=0, le=65535, description="Native protocol port, TCP; 0 picks a free one."
    )
    native_socket: Path | None = Field(
        None, description="Unix socket to listen on for the native protocol as well."
    )
    native_connections_max: int = Field(
        10_000, ge=1, le=1_000_000, description="Open native connections."
    )
    native_pipeline_max: int = Field(
        1_024, ge=1, le=65_536, description="Requests of one native connection worked on at a time."
    )
    native_requests_max: int = Field(
        2_048,
        ge=1,
        le=100_000,
        description="Native requests worked on at a time; beyond: over capacity.",
    )
    native_idle_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="How long an idle native connection stays open."
    )
    native_message_timeout_s: float = Field(
        15.0, gt=0, le=300, description="Time a native client has to say hello, or a whole frame."
    )
    import_bytes_max: int = Field(
        4 * 2**30, ge=1024, le=2**42, description="Largest file to import, as sent, in bytes."
    )
    import_unpacked_bytes_max: int = Field(
        16 * 2**30, ge=1024, le=2**44, description="What such a file may unfold to, in bytes."
    )
    import_workbook_memory_bytes: int = Field(
        512 * 2**20,
        ge=128 * 2**20,
        le=2**40,
        description="Memory of the process that reads an Excel workbook, in bytes; larger ones"
        " have to be saved as CSV.",
    )
    import_sort_memory_bytes: int = Field(
        64 * 2**20,
        ge=2**20,
        le=2**38,
        description="Memory for putting the rows of an import in order, in bytes; what is more goes"
        " through the disk.",
    )
    import_upload_s: float = Field(
        3_600.0, gt=0, le=86_400, description="Longest time for an upload, in seconds."
    )
    import_upload_idle_s: float = Field(
        900.0,
        gt=0,
        le=86_400,
        description="An upload in pieces to which nothing came for so long is forgotten.",
    )
    import_uploads_max: int = Field(
        8, ge=1, le=10_000, description="Files uploaded to one worker at a time; beyond: 503."
    )
    import_jobs_max: int = Field(
        100, ge=1, le=100_000, description="Imports that wait or run; beyond: 503."
    )
    import_tenant_jobs_max: int = Field(
        10, ge=1, le=100_000, description="Of these, of one tenant; beyond: 429."
    )
    import_kept_s: float = Field(
        7 * 86_400.0,
        ge=0,
        le=31_536_000,
        description="How long the report and the error file of an import are kept.",
    )
    page_redirects: Literal["never", "always"] = Field(
        "never",
        description="Whether the page of an identifier leads on to its address, as Handle proxies"
        " do; `?redirect` and `?noredirect` win.",
    )
    tls_enabled: bool = Field(
        False, description="Whether to serve HTTPS as well, with client certificates."
    )
    tls_port: int = Field(8443, ge=0, le=65535, description="HTTPS port; 0 picks a free one.")
    tls_certificate_file: Path | None = Field(
        None, description="Certificate chain of the node, PEM."
    )
    tls_key_file: Path | None = Field(None, description="Key of that certificate, PEM.")
    tls_self_signed: bool = Field(
        False,
        description="Make a certificate of its own, in the data folder, at the first start.",
    )
    workers: int = Field(
        1, ge=1, le=256, description="Processes that serve together, on the same ports."
    )
    worker_silent_s: float = Field(
        15.0,
        ge=1,
        le=3600,
        description="A worker that has not said for so long that it lives is ended and replaced.",
    )
    drain_s: float = Field(
        10.0, ge=0, le=300, description="Time for running requests when the node stops."
    )
    slow_request_s: float = Field(
        1.0, gt=0, le=60, description="From when on a request gets a log line as slow."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["json", "console"] = Field("json", description="How log lines look.")
    truncate_addresses: bool = Field(
        True, description="Cut client addresses in logs to /24 (IPv4) and /48 (IPv6)."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, given: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        if isinstance(given, bool) and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError("must be a number")  # true would be taken for 1
        return given

    @field_validator("database_url")
    @classmethod
    def _database(cls, url: str) -> str:
        if url and not url.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite:///")):
            raise ValueError("must begin with postgresql+asyncpg:// or sqlite+aiosqlite:///")
        return url

    @field_validator("replica_url")
    @classmethod
    def _replicas(cls, urls: str) -> str:
        if not all(url.startswith("postgresql+asyncpg://") for url in urls.split()):
            raise ValueError("each must begin with postgresql+asyncpg://")
        return urls

    @field_validator("public_url")
    @classmethod
    def _public(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.netloc or parts.query):
            raise ValueError("must be an http or https address without a query")
        return url

    @field_validator("handle_public_addresses")
    @classmethod
    def _addresses(cls, given: str) -> str:
        for part in given.split(","):
            if part.strip():
                ip_address(part.strip())
        return given

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, given: str) -> str:
        for part in given.split(","):
            if part.strip():
                ip_network(part.strip())
        return given

    @field_validator("demo_prefix")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        from biaojie.errors import InvalidIdentifier
        from biaojie.identifier import check_prefix

        try:
            return check_prefix(prefix)
        except InvalidIdentifier as error:
            raise ValueError(error.detail.en) from None

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.store_timeout_s >= self.deadline_s:
            # A reader's time would be up before the registry is given up on, stale answer unsent.
            raise ValueError(
                f"store_timeout_s ({self.store_timeout_s:g}) must be less than"
                f" deadline_s ({self.deadline_s:g})"
            )
        if self.replica_url and not self.database_url.startswith("postgresql"):
            raise ValueError("replica_url needs a PostgreSQL in database_url")
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        if self.tls_enabled and self.tls_certificate_file is None and not self.tls_self_signed:
            raise ValueError("tls_enabled needs tls_certificate_file or tls_self_signed")
        return self

    @property
    def registry_url(self) -> str:
        """The database URL, the default filled in."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'registry.db'}"

    @property
    def replica_urls(self) -> list[str]:
        return self.replica_url.split()

    def masked(self) -> dict[str, Any]:
        """All settings as they are in effect, without secrets."""
        shown = self.model_dump(mode="json")
        shown["database_url"] = mask_url(self.registry_url)
        shown["replica_url"] = " ".join(map(mask_url, self.replica_urls))
        return shown


_PASSWORD = re.compile(r"(?<=://)([^:/?#@]*):.*@", re.DOTALL)
_SECRET_FIELD = re.compile(r"([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def mask_url(url: str) -> str:
    """The URL without its secrets, even where they were not percent-encoded as they should."""
    return _SECRET_FIELD.sub(r"\1***", _PASSWORD.sub(r"\1:***@", url))


def load(config: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings, or SettingsFault with every fault. `config` is a TOML file."""
    environment = os.environ if environment is None else environment
    faults: list[str] = []
    given: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if config is None and environment.get("BIAOJIE_CONFIG"):
        config = Path(environment["BIAOJIE_CONFIG"])
    if config is not None:
        try:
            given = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            raise SettingsFault([f"{config}: cannot be read: {error}"]) from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsFault([f"{config}: is not TOML: {error}"]) from None
        origin = dict.fromkeys(given, str(config))
    for name, text in environment.items():
        field = name.removeprefix(PREFIX).lower()
        if not name.startswith(PREFIX) or name in COMMAND_LINE_NAMES:
            continue
        given[field] = text
        origin[field] = name
    for field in list(given):
        if field not in Settings.model_fields:
            faults.append(f"{origin[field]}: there is no setting {field}")
            del given[field]
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            message = fault["msg"].removeprefix("Value error, ")
            field = str(fault["loc"][0]) if fault["loc"] else ""
            faults.append(f"{origin[field]}: {field}: {message}" if field else message)
        raise SettingsFault(faults) from None
    if faults:
        raise SettingsFault(faults)
    return settings
