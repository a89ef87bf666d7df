from __future__ import annotations

import gzip
import logging
import pickle
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from anomaly_times.errors import (
    StoreAuthError,
    StoreDataError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from anomaly_times.settings import Source
from anomaly_times.stores import http
from anomaly_times.stores.http import HttpClient, RefusedError, TooLargeError
from tests.servers import free_port

URL = "http://metrics.example:8428"
SECRET = "hunter2-s3cret"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)


class Scripted:
    """A server that gives these answers in order, the last one again and again, and keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        # A fresh copy that streams, as an answer from a network does.
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))


def client(server: Callable[[httpx.Request], httpx.Response], **settings: object) -> HttpClient:
    source = Source.model_validate({"url": URL, **settings})
    return HttpClient(source, transport=httpx.MockTransport(server))


@contextmanager
def raw_server(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that hands each connection to `speak` after reading the request."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                speak(connection)
            except OSError:
                pass  # the client hung up, which is what these tests want

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=serve, args=(connection,))
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def test_a_form_carries_repeated_names_and_odd_characters() -> None:
    server = Scripted(httpx.Response(200, content=b"ok"))
    answer = client(server).request("POST", URL + "/q", params={"query": 'a{b="ü&+"}', "match[]": ["x", "y"]})
    assert answer == b"ok"
    assert parse_qs(server.requests[0].content.decode()) == {"query": ['a{b="ü&+"}'], "match[]": ["x", "y"]}
    assert server.requests[0].headers["Content-Type"] == "application/x-www-form-urlencoded"


def test_get_sends_params_in_the_url() -> None:
    server = Scripted(httpx.Response(200))
    client(server).request("GET", URL + "/q", params={"a": "1 2"})
    assert str(server.requests[0].url) == URL + "/q?a=1+2"


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("the peer closed the connection"),
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503),
        httpx.Response(429, headers={"Retry-After": "0"}),
    ],
)
def test_passing_trouble_is_tried_again(trouble: httpx.Response | Exception) -> None:
    server = Scripted(trouble, trouble, httpx.Response(200, content=b"ok"))
    assert client(server).request("POST", URL, content=b"x") == b"ok"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [501, 400, 404, 422])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    server = Scripted(httpx.Response(status, json={"status": "error", "error": "no such thing"}))
    with pytest.raises(RefusedError, match="no such thing") as caught:
        client(server).request("GET", URL + "/q")
    assert (len(server.requests), caught.value.status, caught.value.text) == (1, status, "no such thing")


def test_without_retry_one_request_is_all() -> None:
    server = Scripted(httpx.Response(503))
    with pytest.raises(StoreUnavailableError):
        client(server).request("POST", URL, content=b"x", retry=False)
    assert len(server.requests) == 1


def test_trouble_that_stays_is_reported_with_the_servers_words() -> None:
    server = Scripted(httpx.Response(503, text="starting up, come back later\nmore"))
    with pytest.raises(StoreUnavailableError, match=r"503: starting up, come back later$"):
        client(server).request("GET", URL + "/q")
    assert len(server.requests) == 5


def test_a_500_to_the_end_is_a_refusal_and_not_an_absence() -> None:
    with pytest.raises(RefusedError) as caught:
        client(Scripted(httpx.Response(500, text="panic"))).request("GET", URL + "/q")
    assert caught.value.status == 500


def test_nobody_there_is_unavailable() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailableError, match="cannot be reached"), HttpClient(Source(url=url)) as real:
        real.request("GET", url + "/q")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(form: str) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    value = "1" if form == "seconds" else f"{at:%a, %d %b %Y %H:%M:%S GMT}"
    server = Scripted(httpx.Response(429, headers={"Retry-After": value}), httpx.Response(200))
    begin = time.monotonic()
    client(server).request("GET", URL)
    assert 0.9 <= time.monotonic() - begin <= 2.5
    assert len(server.requests) == 2


def test_a_wait_past_the_deadline_is_not_begun() -> None:
    server = Scripted(httpx.Response(429, headers={"Retry-After": "3600"}, text="slow down"))
    begin = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="slow down"):
        client(server).request("GET", URL, deadline=2)
    assert time.monotonic() - begin < 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_an_error_of_their_own(status: int) -> None:
    server = Scripted(httpx.Response(status, text="missing authorization"))
    with pytest.raises(StoreAuthError, match="missing authorization"):
        client(server, username="me", password=SECRET).request("GET", URL)
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed_and_its_target_is_named() -> None:
    target = f"https://user:{SECRET}@elsewhere.example/login?token={SECRET}"
    server = Scripted(httpx.Response(302, headers={"Location": target}))
    with pytest.raises(RefusedError, match=r"redirects to https://elsewhere\.example/login, which") as caught:
        client(server, username="me", password=SECRET).request("GET", URL)
    assert SECRET not in str(caught.value)
    assert len(server.requests) == 1


def test_an_html_page_is_not_quoted() -> None:
    page = "<!DOCTYPE html><html><body>502</body></html>"
    with pytest.raises(RefusedError, match=r"404: an HTML page$"):
        client(Scripted(httpx.Response(404, html=page))).request("GET", URL)


def test_long_words_of_a_server_keep_begin_and_end() -> None:
    words = "error when executing " + "x" * 5000 + ": unknown func foo"
    with pytest.raises(RefusedError) as caught:
        client(Scripted(httpx.Response(422, json={"error": words}))).request("GET", URL)
    assert len(str(caught.value)) < 500
    assert str(caught.value).endswith("unknown func foo")
    assert caught.value.text == words


def test_a_refusal_crosses_process_borders() -> None:
    error = RefusedError("no", hint="try", status=422, text="words")
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.hint, again.status, again.text) == ("no", "try", 422, "words")


def test_gzip_is_unpacked_in_one_and_in_several_members() -> None:
    packed = gzip.compress(b"one ") + gzip.compress(b"two")

    def serve(connection: socket.socket) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        connection.sendall(head.encode() + packed)

    with raw_server(serve) as url, HttpClient(Source(url=url)) as real:
        assert real.request("GET", url) == b"one two"


def _gzip_answer(body: bytes, encoding: str = "gzip") -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    return serve


def test_a_gzip_bomb_ends_at_the_limit() -> None:
    bomb = gzip.compress(bytes(400_000_000), compresslevel=1)
    assert len(bomb) < 2_000_000
    with raw_server(_gzip_answer(bomb)) as url:
        real = HttpClient(Source(url=url, max_response_bytes=10_000_000))
        begin = time.process_time()
        with pytest.raises(TooLargeError, match="10,000,000 bytes"), real:
            real.request("GET", url)
        # Unpacking all of it takes several times as long.
        assert time.process_time() - begin < 0.3


def test_gzip_inside_gzip_is_refused() -> None:
    twice = gzip.compress(gzip.compress(b"x"))
    with (
        raw_server(_gzip_answer(twice, "gzip, gzip")) as url,
        HttpClient(Source(url=url)) as real,
        pytest.raises(StoreDataError, match="'gzip, gzip'"),
    ):
        real.request("GET", url)


@pytest.mark.parametrize("body", [b"no gzip at all", gzip.compress(b"x" * 1000)[:-12]], ids=["text", "cut off"])
def test_broken_gzip_is_an_error(body: bytes) -> None:
    with (
        raw_server(_gzip_answer(body)) as url,
        HttpClient(Source(url=url)) as real,
        pytest.raises(StoreDataError, match="broken gzip"),
    ):
        real.request("GET", url)


def test_a_limit_of_the_call_beats_a_larger_one_of_the_source() -> None:
    with pytest.raises(TooLargeError, match="more than 10 bytes"):
        client(Scripted(httpx.Response(200, content=b"x" * 11))).request("GET", URL, max_bytes=10)


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"])
def test_a_drip_ends_at_the_deadline(begin: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(begin)
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.1)

    with raw_server(drip) as url, HttpClient(Source(url=url)) as real:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"no complete answer within 0\.8 s"):
            real.request("GET", url, deadline=0.8)
        assert 0.7 < time.monotonic() - started < 1.6


def test_silence_ends_at_the_deadline() -> None:
    def silence(connection: socket.socket) -> None:
        connection.recv(1)

    with raw_server(silence) as url, HttpClient(Source(url=url)) as real:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            real.request("GET", url, deadline=0.5)
        assert time.monotonic() - started < 1.5


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    def break_off(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    with raw_server(break_off) as url, HttpClient(Source(url=url)) as real, pytest.raises(StoreUnavailableError):
        real.request("GET", url)


def test_connections_are_kept() -> None:
    accepted = 0

    def twice(connection: socket.socket) -> None:
        nonlocal accepted
        accepted += 1
        for _ in range(2):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            connection.recv(65536)

    with raw_server(twice) as url, HttpClient(Source(url=url)) as real:
        assert [real.request("GET", url) for _ in range(2)] == [b"ok", b"ok"]
        assert accepted == 1


def test_basic_and_bearer_credentials_are_sent(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    cases: list[tuple[dict[str, object], str]] = [
        ({"username": "me", "password": "pä"}, "Basic bWU6cMOk"),
        ({"bearer_token": SECRET}, f"Bearer {SECRET}"),
        ({"bearer_token_file": file}, f"Bearer {SECRET}"),
        ({"username": "me", "password_file": file}, "Basic bWU6aHVudGVyMi1zM2NyZXQ="),
    ]
    for settings, expected in cases:
        server = Scripted(httpx.Response(200))
        client(server, **settings).request("GET", URL)
        assert server.requests[0].headers["Authorization"] == expected


def test_a_token_file_is_read_anew_for_each_request(tmp_path: Path) -> None:
    file = tmp_path / "token"
    server = Scripted(httpx.Response(200))
    asking = client(server, bearer_token_file=file)
    for token in ("first", "second"):
        file.write_text(token)
        asking.request("GET", URL)
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer first", "Bearer second"]


def test_an_unreadable_secret_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        client(Scripted(httpx.Response(200)), bearer_token_file=tmp_path / "absent").request("GET", URL)
    with pytest.raises(UsageError, match="CA file"):
        HttpClient(Source(url="https://localhost:1", ca_file=tmp_path / "absent"))


def test_headers_of_the_source_go_with_every_request() -> None:
    server = Scripted(httpx.Response(200))
    client(server, headers={"X-Scope-OrgID": "tenant"}).request("GET", URL, headers={"X-More": "1"})
    assert server.requests[0].headers["X-Scope-OrgID"] == "tenant"
    assert server.requests[0].headers["X-More"] == "1"


def test_a_header_that_cannot_be_sent_is_named_without_its_value() -> None:
    with pytest.raises(UsageError, match="X-Key") as caught:
        client(Scripted(httpx.Response(200)), headers={"X-Key": SECRET + "\n"})
    assert SECRET not in str(caught.value)


def test_credentials_are_in_no_log_message_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpcore.connection", "httpcore.http11"):
        logging.getLogger(name).setLevel(logging.NOTSET)

    def unauthorized(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    with raw_server(unauthorized) as url:
        source = Source(url=url, username="me", password=SecretStr(SECRET), headers={"X-Key": SecretStr(SECRET)})
        with HttpClient(source) as real, pytest.raises(StoreAuthError) as caught:
            real.request("GET", url + "/q", params={"key": SECRET})
    assert SECRET not in caplog.text + repr(real) + str(caught.value) + caught.value.hint
    assert "HTTP Request" not in caplog.text


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def ok(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with raw_server(ok) as url, HttpClient(Source(url=url)) as real:
        assert real.request("GET", url) == b"ok"


def test_a_proxy_of_the_environment_is_asked_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def proxy(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy")
        seen.append(b"asked")

    with raw_server(proxy) as url:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "direct.invalid")
        with HttpClient(Source(url="http://metrics.invalid")) as real:
            assert real.request("GET", "http://metrics.invalid/q") == b"proxy"
        with HttpClient(Source(url="http://direct.invalid")) as real, pytest.raises(StoreUnavailableError):
            real.request("GET", "http://direct.invalid/q", deadline=1)
    assert seen == [b"asked"]


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "ca.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, private


def test_a_ca_of_ones_own_is_trusted_and_others_are_not(tmp_path: Path) -> None:
    pem, private = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"https://localhost:{listener.getsockname()[1]}"

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(65536)
                        secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                except OSError:
                    pass  # the client does not trust us

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with HttpClient(Source(url=url, ca_file=pem)) as trusting:
            assert trusting.request("GET", url) == b"ok"
        with HttpClient(Source(url=url)) as strict:
            started = time.monotonic()
            with pytest.raises(StoreError, match="certificate that is not trusted") as caught:
                strict.request("GET", url)
            assert "ca_file" in caught.value.hint
            assert time.monotonic() - started < 2
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
