"""One HTTP client for reading and writing: deadlines, limits, retries, credentials, and errors that say what happened.

Everything that a server or a network can do to us ends here as one of our own errors, so the callers know one story:
`StoreUnavailableError` (nobody there, or not in time), `StoreAuthError`, `StoreDataError` (an answer that cannot be
taken), `RefusedError` (the server understood and says no).
"""

from __future__ import annotations

import base64
import email.utils
import logging
import random
import ssl
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import certifi
import httpcore
import httpx
import msgspec

from anomaly_times.errors import (
    StoreAuthError,
    StoreDataError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from anomaly_times.settings import CREDENTIALS_HINT, Source

__all__ = ["HttpClient", "RefusedError", "TooLargeError"]

Params = Mapping[str, str | Sequence[str]]

_ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ERROR_BODY = 64 * 1024
"""So much of an error page is read at most, to find the server's words in it."""
_BLOCK = 1 << 20
_UNAVAILABLE = frozenset({429, 502, 503, 504})


class RefusedError(StoreError):
    """The server understood the request and says no: `status` is its HTTP status, `text` its words."""

    def __init__(self, message: str, *, hint: str = "", status: int = 0, text: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.text = text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_refused, (self.message, self.hint, self.status, self.text)


def _rebuild_refused(message: str, hint: str, status: int, text: str) -> RefusedError:
    return RefusedError(message, hint=hint, status=status, text=text)


class TooLargeError(StoreDataError):
    """The answer is larger than allowed; what came of it was thrown away."""


class HttpClient:
    """Requests to the servers of one source; safe to use from several threads, connections are kept alive.

    Environment proxies are honoured, except for this machine itself. Credentials appear in no message, log or repr.

    Args:
        source: timeouts, credentials, headers and limits.
        transport: in place of the network, for tests.

    Raises:
        UsageError: the CA file cannot be read, or a header cannot be sent.
    """

    def __init__(self, source: Source, *, transport: httpx.BaseTransport | None = None) -> None:
        # httpx logs every URL at INFO, httpcore the answer's headers at DEBUG.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._source = source
        self._local = threading.local()
        self._headers = {name: _header(name, value.get_secret_value()) for name, value in source.headers.items()}
        urls = [url for url in (source.read_url, source.write_url, source.readback_url) if url]
        hosts = {urlsplit(url).hostname or "" for url in urls}
        # Compression pays on a network; on this machine it only costs both sides their processor.
        self._headers.setdefault("Accept-Encoding", "identity" if hosts <= set(_LOOPBACK) else "gzip")
        self._headers.setdefault("User-Agent", "anomaly-times")
        mounts: dict[str, httpx.BaseTransport | None] = {}
        if transport is None:
            context = _ssl_context(source) if any(url.startswith("https") for url in urls) else None
            transport = _Transport(self._local, context)
            for scheme in ("http", "https"):
                proxy = urllib.request.getproxies().get(scheme, "")
                if proxy.startswith(("http://", "https://")):
                    mounts[f"{scheme}://"] = _Transport(self._local, context, proxy=proxy)
            for host in hosts:
                if host in _LOOPBACK or urllib.request.proxy_bypass(host):
                    mounts[f"all://{f'[{host}]' if ':' in host else host}"] = transport
        self._client = httpx.Client(transport=transport, mounts=mounts, follow_redirects=False, trust_env=False)

    def request(
        self,
        method: str,
        url: str,
        *,
        params: Params | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        retry: bool = True,
        deadline: float | None = None,
        max_bytes: int | None = None,
    ) -> bytes:
        """The decoded body of a 2xx answer.

        Args:
            method: `GET`, `POST`, …
            url: without credentials.
            params: sent as a form by POST without `content`, else as the URL's query; a list repeats its name.
            content: a body as it is.
            headers: for this request, beside those of the source.
            retry: try again after connection errors, timeouts, 429 and 5xx except 501, with growing random pauses
                inside the deadline, or as `Retry-After` says. `False` where doing a thing twice would do harm.
            deadline: seconds for all attempts together, the source's `timeout` by default.
            max_bytes: decoded size of the answer at most, where that is less than the source's `max_response_bytes`.

        Raises:
            StoreUnavailableError: nobody there, not in time, or 429, 502, 503, 504 to the end.
            StoreAuthError: 401 or 403.
            TooLargeError: the answer is larger than allowed.
            StoreDataError: its compression is broken.
            RefusedError: any other status that is no success, redirects included.
            UsageError: a password or token file cannot be read.
        """
        seconds = self._source.timeout.total_seconds() if deadline is None else deadline
        until = time.monotonic() + seconds
        where = _shown(url)
        limit = min(max_bytes or self._source.max_response_bytes, self._source.max_response_bytes)
        sent = {**self._headers, **self._authorization(), **(headers or {})}
        if params is not None:
            form = urlencode(params, doseq=True)
            if method == "POST" and content is None:
                content = form.encode()
                sent["Content-Type"] = "application/x-www-form-urlencoded"
            else:
                url = f"{url}?{form}"
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._once(method, url, content, sent, until, limit)
            except _TryAgainError as exc:
                pause = exc.wait if exc.wait is not None else _pause(attempt)
                if not retry or attempt == _ATTEMPTS or time.monotonic() + pause >= until:
                    raise exc.error from exc.__cause__
                time.sleep(pause)
            except httpx.PoolTimeout as exc:
                raise StoreUnavailableError(f"{where}: all connections are busy for {_seconds(seconds)}") from exc
            except _TimeUpError as exc:
                raise StoreUnavailableError(
                    f"{where} gave no complete answer within {_seconds(seconds)}",
                    hint="ask for less at once, or raise the source's `timeout`",
                ) from exc
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Give all connections back."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HttpClient({self._source})"

    def _authorization(self) -> dict[str, str]:
        # Files are read for each request: tokens of service accounts rotate.
        source = self._source
        if source.bearer_token_file or source.bearer_token:
            token = _secret(source.bearer_token_file) or (
                source.bearer_token.get_secret_value() if source.bearer_token else ""
            )
            return {"Authorization": _header("Authorization", f"Bearer {token}")}
        if source.username or source.password or source.password_file:
            password = _secret(source.password_file) or (source.password.get_secret_value() if source.password else "")
            return {"Authorization": "Basic " + base64.b64encode(f"{source.username}:{password}".encode()).decode()}
        return {}

    def _once(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str], until: float, limit: int
    ) -> bytes:
        where = _shown(url)
        left = until - time.monotonic()
        if left <= 0:
            raise _TimeUpError
        stall = self._source.timeout.total_seconds()
        timeout = httpx.Timeout(
            connect=min(self._source.connect_timeout.total_seconds(), left),
            read=min(stall, left),
            write=min(stall, left),
            pool=left,
        )
        self._local.until = until
        try:
            with self._client.stream(method, url, content=content, headers=dict(headers), timeout=timeout) as response:
                if response.is_success:
                    return self._body(response, where, limit, until)
                body = self._body(response, where, _ERROR_BODY, until, cut=True)
        except httpx.PoolTimeout:
            raise
        except httpx.TimeoutException as exc:
            if time.monotonic() >= until:
                raise _TimeUpError from exc
            raise _TryAgainError(
                StoreUnavailableError(f"{where} did not answer in time", hint="is the URL right, and the server up?")
            ) from exc
        except httpx.TransportError as exc:
            if isinstance(_cause(exc, ssl.SSLCertVerificationError), ssl.SSLCertVerificationError):
                raise StoreUnavailableError(
                    f"{where} shows a certificate that is not trusted: {_shortened(_one_line(str(exc)))}",
                    hint="set `ca_file` of the source to the authority's PEM file",
                ) from exc
            if isinstance(exc, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
                raise StoreError(f"{where} cannot be asked: {type(exc).__name__}") from exc
            raise _TryAgainError(
                StoreUnavailableError(
                    f"{where} cannot be reached: {_shortened(_one_line(str(exc))) or type(exc).__name__}",
                    hint="is the URL right, and the server up?",
                )
            ) from exc
        raise _error_for(response, where, body)

    def _body(self, response: httpx.Response, where: str, limit: int, until: float, *, cut: bool = False) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip"):
            raise StoreDataError(f"{where} answers compressed as {encoding[:40]!r}, which was not asked for")
        raw = response.iter_raw()
        chunks: list[bytes] = []
        size = 0
        try:
            for chunk in _gunzip(raw) if "gzip" in encoding else raw:
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    if cut:
                        break
                    raise TooLargeError(
                        f"{where} answers more than {limit:,} bytes",
                        hint="ask for fewer series or less time, or raise the source's `max_response_bytes`",
                    )
                if time.monotonic() > until:
                    raise _TimeUpError
        except zlib.error as exc:
            raise StoreDataError(f"{where} answers broken gzip: {exc}") from exc
        return b"".join(chunks)


class _TryAgainError(Exception):
    """An attempt failed with `error` and another may help, after `wait` seconds where the server said so."""

    def __init__(self, error: StoreError, *, wait: float | None = None) -> None:
        super().__init__()
        self.error = error
        self.wait = wait


class _TimeUpError(Exception):
    """The total deadline has passed."""


def _error_for(response: httpx.Response, where: str, body: bytes) -> Exception:
    """What to raise for an answer that is no success."""
    status, text = response.status_code, _words(body)
    said = f"{where} answers {status}" + (f": {_shortened(text)}" if text else "")
    if status in (401, 403):
        return StoreAuthError(said, hint=f"check the credentials of the source, and their rights: {CREDENTIALS_HINT}")
    if response.is_redirect:
        target = urlsplit(response.headers.get("Location", ""))
        host = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else _shown(str(response.url))
        return RefusedError(
            f"{where} redirects to {host}{target.path}, which is not followed",
            hint="name the final URL in the settings (redirects could carry credentials elsewhere)",
            status=status,
            text=text,
        )
    error: StoreError = RefusedError(said, status=status, text=text)
    if status in _UNAVAILABLE:
        error = StoreUnavailableError(said, hint="the server is busy or starting; try again later")
    if status == 429 or (status >= 500 and status != 501):
        return _TryAgainError(error, wait=_retry_after(response.headers.get("Retry-After", "")))
    return error


def _words(body: bytes) -> str:
    """The server's own words: `error` of Prometheus' JSON, or the first line of text."""
    try:
        answer = msgspec.json.decode(body)
        found = answer.get("error") or answer.get("message") if isinstance(answer, dict) else None
        if isinstance(found, str):
            return _one_line(found)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    text = body.decode(errors="replace").strip()
    if text[:15].lower().startswith(("<!doctype", "<html")):
        return "an HTML page"
    return _one_line(text.partition("\n")[0])


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _shortened(text: str) -> str:
    """400 characters of begin and end: a server that repeats the query in front names its reason last."""
    return text if len(text) <= 400 else f"{text[:150]} … {text[-250:]}"


def _shown(url: str) -> str:
    """`url` without query and credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _pause(attempt: int) -> float:
    """Seconds before the next attempt: between half and all of 0.2, 0.4, 0.8, … so that clients spread."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def _retry_after(text: str) -> float | None:
    """Seconds to wait by `Retry-After` (a number or an HTTP date); `None` if it says nothing."""
    if text.isascii() and text.strip().isdecimal():
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _cause(exc: BaseException, kind: type[BaseException]) -> BaseException | None:
    found: BaseException | None = exc
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found


def _secret(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "no text"
        raise UsageError(
            f"the credentials in {file} cannot be read: {why}", hint="check the path and its rights"
        ) from exc


def _header(name: str, value: str) -> str:
    # The HTTP library would repeat the value in its own error.
    if not (value.isascii() and value.isprintable()):
        raise UsageError(
            f"the header {name} holds characters that cannot be sent", hint="line breaks are a usual reason"
        )
    return value


def _ssl_context(source: Source) -> ssl.SSLContext:
    """Who is trusted: the source's own CA, else the authorities of this machine and certifi's."""
    if source.ca_file is None:
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        return context
    try:
        return ssl.create_default_context(cafile=source.ca_file)
    except OSError as exc:
        raise UsageError(f"the CA file {source.ca_file} cannot be read: {exc.strerror or exc}") from exc


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpacked blocks of bounded size: a small chunk that unpacks to gigabytes is never held whole."""
    decoder = zlib.decompressobj(wbits=31)
    started = False
    for packed in chunks:
        rest = packed
        while rest:
            if decoder.eof:
                decoder = zlib.decompressobj(wbits=31)
            started = True
            yield decoder.decompress(rest, _BLOCK)
            rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    while started and not decoder.eof:
        block = decoder.decompress(b"", _BLOCK)
        if not block:
            raise zlib.error("it breaks off")
        yield block


class _Transport(httpx.HTTPTransport):
    """httpx's transport, over sockets that know the deadline of the request.

    httpx limits each read on its own, so headers that drip a byte a second would never end.
    """

    def __init__(self, local: threading.local, context: ssl.SSLContext | None, *, proxy: str | None = None) -> None:
        # Without https nothing needs the trusted authorities, which take a while to load; this context trusts nobody.
        context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        limits = httpx.Limits(max_connections=16, max_keepalive_connections=16, keepalive_expiry=30)
        super().__init__(verify=context, limits=limits, proxy=proxy, trust_env=False)
        self._pool._network_backend = _DeadlineBackend(local)


class _DeadlineBackend(httpcore.NetworkBackend):
    def __init__(self, local: threading.local) -> None:
        self._local = local
        self._sync = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        timeout = _left(self._local, timeout, httpcore.ConnectTimeout)
        stream = self._sync.connect_tcp(host, port, timeout, local_address, socket_options)
        return _DeadlineStream(stream, self._local)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, local: threading.local) -> None:
        self._stream = stream
        self._local = local

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._local, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._local, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        timeout = _left(self._local, timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._local)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(local: threading.local, timeout: float | None, kind: type[Exception]) -> float | None:
    """`timeout`, cut to what is left of the deadline of this thread's request (httpx works in the caller's thread)."""
    left: float = getattr(local, "until", float("inf")) - time.monotonic()
    if left <= 0:
        raise kind("the deadline has passed")
    return left if timeout is None else min(left, timeout)
