"""What an installation says once: its project name, its sources of metrics, where state is kept and passes run.

Read from `anomaly-times.yaml` (in the working folder, or where `AT_CONFIG` points), overridden by `AT_*` environment
variables: `AT_PROJECT`, `AT_SOURCE`, `AT_STATE_URL`, `AT_ENGINE`, `AT_SOURCES__MAIN__URL`, …
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from anomaly_times.durations import Duration, parse_duration
from anomaly_times.errors import UsageError, in_our_words

__all__ = [
    "CREDENTIALS_HINT",
    "DEFAULT_URL",
    "PrefectApi",
    "Settings",
    "Source",
    "WriteMode",
    "load_settings",
    "source_for_url",
]

DEFAULT_URL = "http://localhost:8428"
CONFIG_FILE = "anomaly-times.yaml"
CREDENTIALS_HINT = (
    "a source in anomaly-times.yaml has `url`, `username` and `password` (or `password_file`, `bearer_token`); or set "
    "AT_SOURCES__MAIN__URL, AT_SOURCES__MAIN__USERNAME and AT_SOURCES__MAIN__PASSWORD; then `--source main`"
)
"""How credentials reach a source; `--url` has no place for them."""


def _checked_url(url: str, *, credentials: str = "", query: str = "") -> str:
    """`url` less a slash at its end; `credentials` and `query` say where those go instead."""
    if not url:
        return url
    # urlsplit's own message can repeat the URL, and with it a password.
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        ok = False
    if not ok:
        raise ValueError("must look like http://host:port or https://host/path")
    if parts.username or parts.password:
        raise ValueError(f"must not hold credentials{credentials}")
    if parts.query or parts.fragment:
        raise ValueError(f"must not hold a query or a fragment{query}")
    return url.rstrip("/")


class WriteMode(StrEnum):
    """When forecasts reach the store."""

    AUTO = "auto"
    """`ahead` where the source holds the future (VictoriaMetrics), else `at_detection`."""
    AHEAD = "ahead"
    """At once, at the times that they are for."""
    AT_DETECTION = "at_detection"
    """Beside the score, when its time has come; until then a file under `state_url`."""


class Source(BaseModel):
    """Where metrics are read and results written: a server, or a folder of Parquet and CSV files.

    `url` alone serves a single server; `read`, `write` and `readback` name the parts of a cluster or a relay
    (vmselect, vminsert or vmagent, vmselect). Secrets are best given as files or by environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(default="", description="base URL of the server, e.g. http://localhost:8428")
    folder: Path | None = Field(default=None, description="folder of Parquet/CSV files, instead of a server")
    read: str = Field(default="", description="base URL for queries; `/api/v1/query_range` is added")
    write: str = Field(default="", description="URL or base URL for writing; `/api/v1/write` is added to a base")
    readback: str = Field(default="", description="base URL where written results can be queried; `read` by default")
    protocol: Literal["remote_write", "vm_import"] = Field(default="remote_write", description="how results are sent")
    write_mode: WriteMode = WriteMode.AUTO
    username: str = ""
    password: SecretStr | None = None
    password_file: Path | None = None
    bearer_token: SecretStr | None = None
    bearer_token_file: Path | None = None
    ca_file: Path | None = Field(default=None, description="PEM file of the certificate authority to trust")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="sent with every request (X-Scope-OrgID)")
    extra_labels: dict[str, str] = Field(default_factory=dict, description="`extra_label` of every query")
    extra_filters: tuple[str, ...] = Field(default=(), description="`extra_filters[]` of every query")
    ignore_labels: tuple[str, ...] = Field(default=(), description="labels that a relay adds to what is written")
    connect_timeout: Duration = parse_duration("5s")
    timeout: Duration = Field(default=parse_duration("60s"), description="deadline of one request, all of it")
    max_response_bytes: int = Field(default=2_000_000_000, gt=0, description="decoded size of one answer at most")
    max_concurrent_queries: int = Field(default=8, gt=0, description="queries of one process at once")

    @field_validator("url", "read", "write", "readback")
    @classmethod
    def _http(cls, url: str) -> str:
        return _checked_url(
            url,
            credentials="; use `username` and `password` (or `password_file`)",
            query="; use `extra_labels` or `headers`",
        )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.folder is None and not (self.url or self.read):
            raise ValueError("needs `url`, `read` or `folder`")
        if self.folder is not None and (self.url or self.read or self.write or self.readback):
            raise ValueError("is a server or a folder, not both")
        if (self.username or self.password or self.password_file) and (self.bearer_token or self.bearer_token_file):
            raise ValueError("has both a user name and a bearer token")
        return self

    @property
    def read_url(self) -> str:
        """Base URL for queries; empty for a folder."""
        return self.read or self.url

    @property
    def write_url(self) -> str:
        """URL for writing, with its path; empty where nothing can be written (only `read` is given) or for a folder."""
        base = self.write or self.url
        if not base or urlsplit(base).path.rsplit("/", 1)[-1] in ("write", "import", "push"):
            return base
        return base + ("/api/v1/import" if self.protocol == "vm_import" else "/api/v1/write")

    @property
    def readback_url(self) -> str:
        """Base URL where what was written can be queried."""
        return self.readback or self.read_url

    def __str__(self) -> str:
        return str(self.folder) if self.folder else self.read_url


class PrefectApi(BaseModel):
    """The Prefect server that missions are deployed on; what is not set is taken from Prefect's own settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_url: str = Field(default="", description="e.g. http://localhost:4200/api; PREFECT_API_URL by default")
    api_key: SecretStr | None = Field(default=None, description="PREFECT_API_KEY by default")
    auth_string: SecretStr | None = Field(default=None, description="PREFECT_API_AUTH_STRING by default: user:password")

    @field_validator("api_url")
    @classmethod
    def _http(cls, url: str) -> str:
        return _checked_url(url)


class Settings(BaseSettings):
    """All settings of an installation."""

    model_config = SettingsConfigDict(env_prefix="AT_", env_nested_delimiter="__", extra="forbid", frozen=True)

    project: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9-]{0,62})$")
    source: str = Field(default="", description="name of the source that missions use when they name none")
    sources: dict[str, Source] = Field(default_factory=dict)
    prefect: PrefectApi = PrefectApi()
    engine: Literal["local", "ray"] = Field(default="local", description="where passes run")
    ray_address: str = Field(
        default="",
        pattern=r"^$|^([\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$",
        description="the Ray cluster, as host:port; one of this machine, for the time of a pass, if empty",
    )
    state_url: Path = Field(
        default=Path(".anomaly-times"), description="folder that all workers share, for forecasts not yet written"
    )

    history_cache_bytes: int = Field(
        default=0,
        ge=0,
        description="of histories kept under `state_url` for the next forecast, at most; 0: each forecast reads all",
    )

    @field_validator("state_url", mode="before")
    @classmethod
    def _folder(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            scheme, _, rest = value.partition("://")
            if scheme != "file":
                raise ValueError("must be a folder that all workers share, as a path or file:// URL")
            return rest
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment beats the file."""
        file = os.environ.get("AT_CONFIG", CONFIG_FILE)
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=file)

    def named_source(self, name: str = "") -> tuple[str, Source]:
        """The source called `name`, or the default one, with its name.

        Without any source in the settings the default is VictoriaMetrics on this machine.

        Raises:
            UsageError: for an unknown name, or for none where several sources exist and no default is set.
        """
        wanted = name or self.source
        if not wanted:
            if not self.sources:
                return DEFAULT_URL, source_for_url(DEFAULT_URL)
            if len(self.sources) > 1:
                raise UsageError(
                    f"several sources are set and none is the default: {', '.join(sorted(self.sources))}",
                    hint="name one with --source, or set `source:` in anomaly-times.yaml",
                )
            wanted = next(iter(self.sources))
        if wanted not in self.sources:
            known = ", ".join(sorted(self.sources)) or "none are set"
            raise UsageError(f"there is no source {wanted!r} (known: {known})", hint="see `sources:` in the settings")
        return wanted, self.sources[wanted]


def load_settings() -> Settings:
    """The settings of this process, from file and environment.

    Raises:
        UsageError: naming each setting that is wrong; values are left out, for they may be secret.
    """
    file = Path(os.environ.get("AT_CONFIG", CONFIG_FILE))
    if "AT_CONFIG" in os.environ and not file.is_file():
        raise UsageError(f"AT_CONFIG points to {file}, which is no file")
    try:
        return Settings()
    except ValidationError as exc:
        raise UsageError(_settings_message(exc), hint=f"look at {file} and the AT_* variables") from None
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise UsageError(f"{where} is no YAML: {getattr(exc, 'problem', None) or exc}") from exc
    except (OSError, TypeError, ValueError) as exc:
        raise UsageError(f"{file} cannot be read as settings: {exc}") from exc


def source_for_url(url: str) -> Source:
    """A source from what a user types: `http://host:8428`, or a folder (`./metrics`, `file:///var/metrics`).

    Raises:
        UsageError: if it is neither.
    """
    try:
        if url.startswith(("http://", "https://")):
            return Source(url=url)
        folder = url.removeprefix("file://")
        if re.fullmatch(r"[\w.-]+:\d+(/\S*)?", folder) and not Path(folder).exists():
            raise UsageError(f"{url!r} is neither an HTTP URL nor a folder", hint=f"http://{url}")
        if "://" in folder or not folder:
            raise UsageError(
                f"{url!r} is neither an HTTP URL nor a folder", hint="e.g. http://localhost:8428, ./metrics"
            )
        return Source(folder=Path(folder))
    except ValidationError as exc:
        text = _settings_message(exc, prefix="the URL ")
        raise UsageError(
            text, hint=CREDENTIALS_HINT if "credentials" in text else "e.g. http://localhost:8428"
        ) from None


def _settings_message(exc: ValidationError, *, prefix: str = "") -> str:
    lines = []
    for error in exc.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(str(part) for part in error["loc"])
        text = in_our_words(error["msg"])
        lines.append(f"{prefix or where + ': '}{text}")
    return "; ".join(lines)
