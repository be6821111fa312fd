"""A download is there whole and checked under its name, or not at all, whatever the server does."""

import errno
import hashlib
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lmf import ConfigError, DataError, LmfError
from lmf.data import fetch
from lmf.data.fetch import download

DATA = random.Random(0).randbytes(3_000_000)
HASH = hashlib.sha256(DATA).hexdigest()
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says for each path."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        self.server.answers[self.path](self)

    def reply(self, code: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(code)
        for name, value in {"content_length": len(body), "connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of the tests

    def at(self, path: str, answer: Answer) -> str:
        self.answers[path] = answer
        return self.url + path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "_WAITS", (0.0, 0.0, 0.0, 0.0))
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def whole(handler: Handler) -> None:
    handler.reply(200, DATA)


def ranged(cut: int, tag: str = '"v1"') -> Answer:
    """Sends at most ``cut`` bytes, from where it is asked to."""

    def answer(handler: Handler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        if start and handler.headers.get("If-Range") != tag:
            start = 0
        rest = DATA[start:]
        code = 206 if start else 200
        extent = {"content_range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        handler.reply(code, rest[:cut], content_length=len(rest), etag=tag, **extent)

    return answer


def redirect(url: str, code: int = 302) -> Answer:
    return lambda handler: handler.reply(code, location=url)


def refused(url: str, path: Path, message: str, **expected: object) -> str:
    """A download fails with ``message``, leaves what was there and nothing else; returns the whole text."""
    path.write_bytes(b"old")
    with pytest.raises(LmfError, match=message) as caught:
        download(url, path, **expected)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    return str(caught.value)


def test_a_file_arrives_whole_under_its_name(server, tmp_path):
    steps = []
    path = tmp_path / "new/data.bin"
    url = server.at("/data", whole)
    assert download(url, path, HASH, len(DATA), lambda done, total: steps.append((done, total))) == path
    assert path.read_bytes() == DATA
    assert list(path.parent.iterdir()) == [path]
    assert steps[0] == (0, len(DATA))
    assert steps[-1] == (len(DATA), len(DATA))
    assert sorted(steps) == steps


def test_a_file_of_this_machine_is_copied(tmp_path):
    (tmp_path / "a b.bin").write_bytes(DATA)
    download((tmp_path / "a b.bin").as_uri(), tmp_path / "out/data", HASH)
    assert (tmp_path / "out/data").read_bytes() == DATA
    refused((tmp_path / "none").as_uri(), tmp_path / "out/data", "none cannot be read: No such file or directory")
    refused(tmp_path.as_uri(), tmp_path / "out/data", "cannot be read: Is a directory")
    refused("file://elsewhere/a", tmp_path / "out/data", "names another machine")


def test_a_connection_that_is_cut_is_taken_up_where_it_ended(server, tmp_path):
    url = server.at("/data", ranged(cut=1_200_000))
    download(url, tmp_path / "data", HASH)
    assert (tmp_path / "data").read_bytes() == DATA
    ranges = [headers.get("Range") for _, headers in server.asked]
    assert ranges == [None, "bytes=1200000-", "bytes=2400000-"]


def test_a_file_that_changes_meanwhile_is_begun_anew(server, tmp_path):
    def answer(handler: Handler) -> None:
        ranged(cut=1_000_000, tag='"v1"')(handler)
        server.answers["/data"] = ranged(cut=len(DATA), tag='"v2"')

    download(server.at("/data", answer), tmp_path / "data", HASH)
    assert [headers.get("If-Range") for _, headers in server.asked] == [None, '"v1"']

    def shortened(handler: Handler) -> None:
        ranged(cut=1_000_000)(handler)
        server.answers["/data"] = lambda handler: handler.reply(200, b"short")

    download(server.at("/data", shortened), tmp_path / "data")
    assert (tmp_path / "data").read_bytes() == b"short"


def test_a_server_that_cannot_send_a_part_is_asked_for_the_whole(server, tmp_path):
    def cut(handler: Handler) -> None:
        handler.reply(200, DATA[:1_500_000], content_length=len(DATA))
        server.answers["/data"] = whole

    download(server.at("/data", cut), tmp_path / "data", HASH)

    def shrunk(handler: Handler) -> None:
        handler.reply(416) if "Range" in handler.headers else whole(handler)

    def cut_then_shrunk(handler: Handler) -> None:
        cut(handler)
        server.answers["/data"] = shrunk

    download(server.at("/data", cut_then_shrunk), tmp_path / "data", HASH)
    assert (tmp_path / "data").read_bytes() == DATA


def test_a_connection_that_is_cut_again_and_again_is_given_up(server, tmp_path):
    url = server.at("/data", lambda handler: handler.reply(200, DATA[:1000], content_length=len(DATA)))
    refused(url, tmp_path / "data", "cannot be had after 1,000 bytes: the connection is cut again and again")
    assert len(server.asked) == 5
    nobody = f"http://127.0.0.1:{free_port()}/data"
    refused(nobody, tmp_path / "data", "/data cannot be had: Connection refused. Try again later")


def test_a_connection_that_gets_further_each_time_is_not_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_CHUNK", 100_000)
    download(server.at("/data", ranged(cut=200_000)), tmp_path / "data", HASH)
    assert len(server.asked) == 15


def free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as unused:
        return unused.server_port


def test_a_wrong_part_of_the_file_is_not_glued_on(server, tmp_path):
    def answer(handler: Handler) -> None:
        ranged(cut=1_000_000)(handler)
        server.answers["/data"] = lambda handler: handler.reply(206, DATA[5:], content_range=f"bytes 5-9/{len(DATA)}")

    refused(server.at("/data", answer), tmp_path / "data", "the server sends another part of the file than was asked")


def test_what_is_not_the_expected_file_is_refused(server, tmp_path):
    url = server.at("/data", whole)
    refused(url, tmp_path / "data", f"its SHA-256 is {HASH}, not {'0' * 64}. It has changed", sha256="0" * 64)
    refused(url, tmp_path / "data", "has 3,000,000 bytes, but 5 are expected", bytes=5)
    unknown = server.at("/unknown", lambda handler: handler.reply(200, b"x" * 9, content_length=""))
    refused(unknown, tmp_path / "data", "is longer than the 5 bytes that are expected", bytes=5)
    refused(unknown, tmp_path / "data", "gave 9 bytes, but 10 are expected", bytes=10)


def test_a_web_page_is_no_data(server, tmp_path):
    page = b"\n<!DOCTYPE html><title>Log in</title>"
    message = "gives a web page where data are expected; perhaps it wants you to log in"
    typed = server.at("/typed", lambda handler: handler.reply(200, page, content_type="text/html; charset=utf-8"))
    plain = server.at("/plain", lambda handler: handler.reply(200, page, content_type="text/plain"))
    refused(typed, tmp_path / "data.json", message)
    refused(plain, tmp_path / "data.json", message)


@pytest.mark.parametrize(
    ("code", "message", "times"),
    [
        (404, "the server says 404 Not Found. The file is not there any more", 1),
        (401, "the server says 401 Unauthorized. It may want .* your token in HF_TOKEN", 1),
        (403, "the server says 403 Forbidden. It may want .* your token in HF_TOKEN", 1),
        (500, "the server says 500 Internal Server Error. Try again later", 5),
        (429, "the server says 429 Too Many Requests. Try again later", 5),
    ],
)
def test_what_the_server_refuses_is_said_and_passing_trouble_tried_again(server, tmp_path, code, message, times):
    refused(server.at("/data", lambda handler: handler.reply(code)), tmp_path / "data", message)
    assert len(server.asked) == times


def test_redirects_are_followed_but_not_for_ever_nor_to_files(server, tmp_path):
    data = server.at("/data", whole)
    for code in (301, 302, 303, 307, 308):
        download(server.at("/there", redirect(data, code)), tmp_path / "data", HASH)
    download(server.at("/relative", redirect("data")), tmp_path / "data", HASH)
    refused(server.at("/loop", redirect("/loop")), tmp_path / "data", "is redirected more than 10 times")
    secret = tmp_path / "data"
    refused(server.at("/file", redirect(secret.as_uri())), secret, "is redirected to a file address")
    refused(server.at("/nowhere", lambda handler: handler.reply(302)), secret, "is redirected to nowhere")
    refused(server.at("/plain", redirect("http://example.invalid/x")), secret, "is plain http, which anyone on the way")


@pytest.mark.parametrize(
    "url", ["ftp://example.invalid/a", "example.invalid/a", "https:///a", "https://a b/c", "data:,x"]
)
def test_other_addresses_are_refused(server, tmp_path, url):
    refused(url, tmp_path / "data", "is not an address to download from: it must begin with https://")


def test_plain_http_is_for_this_machine_alone_unless_it_is_allowed(server, tmp_path):
    url = "http://name:password@example.invalid/data?key=1"
    text = refused(url, tmp_path / "data", r"^http://example\.invalid/data is plain http, .* it needs --allow-http\.$")
    assert "password" not in text
    refused(url, tmp_path / "data", "data cannot be had: ", allow_http=True)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_nothing_is_asked_for(server, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    refused(server.at("/data", whole), tmp_path / "data", f"{variable}=1 forbids to download http.*Unset it")
    assert server.asked == []
    (tmp_path / "source").write_bytes(DATA)
    download((tmp_path / "source").as_uri(), tmp_path / "copy", HASH)


def test_the_endpoint_takes_the_place_of_the_hub(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/mirror/")
    server.at("/mirror/datasets/a/b/resolve/main/c.json", whole)
    download("https://huggingface.co/datasets/a/b/resolve/main/c.json", tmp_path / "data", HASH)
    monkeypatch.setenv("HF_ENDPOINT", "mirror")
    with pytest.raises(ConfigError, match="HF_ENDPOINT is 'mirror'; it must be an address such as https://hugg"):
        download("https://huggingface.co/datasets/a", tmp_path / "data")


@pytest.fixture
def secure(server, tmp_path_factory, monkeypatch) -> Server:
    """A second server, which speaks TLS with a certificate that is trusted here."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"]
    try:
        subprocess.run([*made, *names], cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
    other = Server()
    other.socket = context.wrap_socket(other.socket, server_side=True)
    other.url = f"https://localhost:{other.server_port}"
    threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
    yield other
    other.shutdown()
    other.server_close()


def test_the_token_goes_to_the_hub_over_https_and_nowhere_else(server, secure, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", secure.url)
    elsewhere = secure.url.replace("localhost", "127.0.0.1")
    secure.at("/a", redirect("/b"))
    secure.at("/b", redirect(f"{elsewhere}/c"))
    secure.at("/c", whole)
    download("https://huggingface.co/a", tmp_path / "data", HASH)
    sent = [(path, headers.get("Authorization")) for path, headers in secure.asked]
    assert sent == [("/a", "Bearer hf_secret"), ("/b", "Bearer hf_secret"), ("/c", None)]
    monkeypatch.setenv("HF_ENDPOINT", server.url)  # plain http
    download("https://huggingface.co/data", server.at("/data", whole) and tmp_path / "data", HASH)
    assert "Authorization" not in server.asked[0][1]


def test_the_token_is_in_no_message(secure, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", secure.url)
    secure.at("/a", lambda handler: handler.reply(401))
    for token in ("hf_secret", "hf_secret\nX: y", "hf_secret\u20ac"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(LmfError) as caught:
            download("https://huggingface.co/a", tmp_path / "data")
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None
    assert "HF_TOKEN holds characters that no token has" in str(caught.value)


def test_https_is_never_left_for_http_and_a_foreign_certificate_is_refused(server, secure, tmp_path, monkeypatch):
    url = secure.at("/down", redirect(server.at("/data", whole)))
    refused(url, tmp_path / "data", r"is redirected from https to plain http \(http://127.*/data\); not followed")
    assert server.asked == []
    monkeypatch.delenv("SSL_CERT_FILE")
    message = "the server is not who it says it is .self-signed certificate"
    refused(secure.at("/data", whole), tmp_path / "data", message)


def test_several_downloads_at_a_time_to_one_name_all_end_well(server, tmp_path):
    url = server.at("/data", ranged(cut=1_100_000))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: download(url, tmp_path / "data", HASH), range(16)))
    assert (tmp_path / "data").read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_a_full_disk_is_said_and_leaves_nothing(server, tmp_path, monkeypatch):
    url = server.at("/data", whole)
    with monkeypatch.context() as patch:
        patch.setattr(fetch.shutil, "disk_usage", lambda _: shutil_usage(free=1000))
        refused(url, tmp_path / "data", r"needs 3,000,000 bytes, but the disk of .* has 1,000 left")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch.os, "fsync", full)
    refused(url, tmp_path / "data", r"^The disk of .* is full; http.*/data was not kept\. Make room\.$")


def shutil_usage(free: int) -> object:
    from shutil import _ntuple_diskusage

    return _ntuple_diskusage(free, 0, free)


def test_a_folder_that_cannot_be_written_is_said(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/data cannot be written: (File exists|Not a directory)\."):
        download(server.at("/data", whole), tmp_path / "file/data")


def test_a_killed_download_leaves_no_file_under_its_name_and_the_next_one_cleans_up(server, tmp_path):
    begun = threading.Event()

    def slow(handler: Handler) -> None:
        handler.reply(200, DATA[:2_000_000], content_length=len(DATA))
        begun.set()
        time.sleep(30)

    url = server.at("/data", slow)
    code = "import sys; from pathlib import Path; from lmf.data.fetch import download; "
    code += "download(sys.argv[1], Path(sys.argv[2]))"
    process = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path / "data")])
    assert begun.wait(30)
    while not any(file.stat().st_size for file in tmp_path.iterdir()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (part,) = tmp_path.iterdir()
    assert part.name.startswith(".data.")
    download(server.at("/data", whole), tmp_path / "data", HASH)
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_an_interrupted_download_leaves_nothing(server, tmp_path):
    def interrupt(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.at("/data", whole), tmp_path / "data", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
