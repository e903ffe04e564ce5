"""`proxyd doctor`: a well machine is told to be well, and each planted fault is found, told where, with what to do.

The faults, in order: a typo, an unset secret, an open door, a name that does not resolve, a port that refuses, a certificate of
nobody, one that ends soon, a refused credential, a missing credential, a model that is not there, a list that is none, a sick
upstream, an upstream that breaks off, a clock that is wrong, a damaged database, a database of a newer proxyd, one that others
may read, a folder that is not there, a full disk, a port that is taken, a port of no machine, few descriptors, no C parser, an
old SQLite, extras that are missing, a bad unit, a daemon that takes no traffic, one of another version, one with another database;
a certificate of one's own that has ended, begins tomorrow, ends soon, has another's key, cannot be read or is none, a key that the unit's
user may not read, an issuer that is away, one that publishes something else, one without a key that can be used.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.server
import json
import os
import resource
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.children import free_port
from proxyd.cli import doctor_machine, main, unit
from proxyd.config.load import load_file
from proxyd.store import upkeep
from tests.issuer import Key, key_set
from tests.origin import whole
from tests.process import ROOT, Daemon, damage, settings

KEY = "sk-upstream-0123456789abcdef"
NEVER = "Thu, 01 Jan 2026 00:00:00 GMT"


class Provider(http.server.ThreadingHTTPServer):
    """An upstream with a list of models, and what a test wants to be wrong with it."""

    def __init__(self, certificate: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = ["m"]
        self.status = 200
        self.body: bytes | None = None
        self.date: str | None = None
        self.asked: list[tuple[str, str | None]] = []
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """A handshake that is refused is what some tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.path, self.headers.get("Authorization")))
        if server.status == 0:
            return
        right = self.headers.get("Authorization") == f"Bearer {KEY}"
        status = server.status if right or server.status != 200 else 401
        body = json.dumps({"object": "list", "data": [{"id": name} for name in server.models]}).encode() if status == 200 else b"{}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(server.body or body)))
        self.end_headers()
        self.wfile.write(server.body or body)

    def date_time_string(self, timestamp=None) -> str:
        return self.server.date or super().date_time_string(timestamp)

    def log_message(self, *args) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(certificate: str | None = None):
    provider = Provider(certificate)
    try:
        yield provider
    finally:
        provider.shutdown()
        provider.server_close()
        provider.thread.join()


@pytest.fixture
def provider():
    with serving() as found:
        yield found


class Clinic:
    """A folder with a configuration, and the doctor's word on it."""

    def __init__(self, folder, capsys) -> None:
        self.folder, self.capsys, self.file = folder, capsys, folder / "config.yaml"

    def write(self, text: str | None = None, **config: object) -> None:
        base = {"listen": f"127.0.0.1:{free_port()}", "ops": {"listen": f"127.0.0.1:{free_port()}"}, "limits": {"streams": 10}}
        echo = {"upstreams": {"echo": {"kind": "echo"}}, "models": {"m": "echo"}}
        self.file.write_text(text or json.dumps(settings(**{**base, **echo, **config})))

    def at(self, provider: Provider, scheme: str = "http", **more: object) -> None:
        spec = {"kind": "openai", "base_url": f"{scheme}://{provider.place}/v1", "api_key": KEY, **more}
        self.write(upstreams={"up": spec}, models={"m": "up"})

    def says(self, *argv: str) -> list[tuple[str, str, str]]:
        """What is not well: (level, about, everything said)."""
        self.capsys.readouterr()
        code = main(["doctor", "-c", str(self.file), "--unit", str(self.folder / "proxyd.service"), "--format", "json", *argv])
        out, err = self.capsys.readouterr()
        assert err == ""
        return judged(json.loads(out), code)


def judged(document, code) -> list[tuple[str, str, str]]:
    findings = document["findings"]
    assert document["ok"] == (code == 0) == all(one["level"] != "fail" for one in findings)
    bad = [one for one in findings if one["level"] != "ok"]
    assert all(one["advice"] for one in bad), "a fault without an advice"
    assert KEY not in json.dumps(document)
    return [(one["level"], one["about"], f"{one['says']} → {one['advice']}") for one in bad]


@pytest.fixture
def clinic(tmp_path, capsys, monkeypatch):
    """On a machine where nothing is wrong."""
    for name in ("STATE_DIRECTORY", "PROXYD_CONFIG", "PROXYD_ADMIN_KEY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(upkeep, "library", lambda: ("3.53.1", False))
    monkeypatch.setattr(upkeep, "free_space", lambda _path: 10**11)
    monkeypatch.setattr(doctor_machine, "_EXTRAS", (("fast", "json", ""),))
    monkeypatch.setattr(unit, "STATE", tmp_path / "lib")
    found = Clinic(tmp_path, capsys)
    found.write()
    return found


def one(found: list[tuple[str, str, str]], level: str, about: str, *words: str) -> None:
    """Exactly this was found, and nothing else."""
    assert [(lev, name) for lev, name, _ in found] == [(level, about)], found
    for word in words:
        assert word in found[0][2], found


def test_a_well_machine_is_told_to_be_well(clinic, provider, capsys):
    clinic.at(provider)
    assert clinic.says() == []
    assert provider.asked == [("/v1/models", f"Bearer {KEY}")]
    assert main(["doctor", "-c", str(clinic.file)]) == 0
    assert "0 broken, 0 to look at" in capsys.readouterr().out


def test_no_network_asks_nobody(clinic, provider):
    clinic.at(provider)
    assert clinic.says("--no-network") == []
    assert provider.asked == []


def test_a_typo(clinic):
    clinic.write("upstreams: {echo: {kind: echo}}\nmodels: {m: eco}\n")
    one(clinic.says(), "fail", "config", ":2:", "did you mean 'echo'", "mend the file")


def test_a_secret_that_is_not_set_leaves_all_else_to_be_looked_at(clinic, provider):
    provider.status = 401
    clinic.at(provider, api_key="${NOT_SET_ANYWHERE}")
    found = clinic.says()
    assert [about for _, about, _ in found] == ["config", "upstream up"]
    assert "NOT_SET_ANYWHERE is not set" in found[0][2]
    assert "wants a credential" in found[1][2]


def test_an_open_door(clinic):
    clinic.write(listen=f"0.0.0.0:{free_port()}", auth={"keys": []})
    one(clinic.says(), "fail", "config", "there is no auth")


def test_a_name_that_does_not_resolve(clinic):
    clinic.write(upstreams={"up": {"kind": "openai", "base_url": "https://nowhere.invalid/v1"}}, models={"m": "up"})
    one(clinic.says(), "fail", "upstream up", "nowhere.invalid cannot be resolved", "resolv.conf")


def test_a_port_that_refuses(clinic):
    clinic.write(upstreams={"up": {"kind": "ollama", "base_url": f"http://127.0.0.1:{free_port()}"}}, models={"m": "up"})
    one(clinic.says(), "fail", "upstream up", "connection refused", "is it running")


def certificate(folder, days: int) -> str:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    place = folder / "upstream.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(days)]
    made += ["-subj", "/CN=upstream", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(place), "-out", str(folder / "c.pem")]
    subprocess.run(made, check=True, capture_output=True)
    place.write_text(place.read_text() + (folder / "c.pem").read_text())
    return str(place)


def test_a_certificate_of_nobody(clinic, tmp_path):
    with serving(certificate(tmp_path, 100)) as provider:
        clinic.at(provider, "https")
        one(clinic.says(), "fail", "upstream up", "certificate is not good", "SSL_CERT_FILE")


def test_a_certificate_that_ends_soon_and_one_that_does_not(clinic, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
    for days, found in ((100, []), (5, [("warn", "upstream up")])):
        with serving(certificate(tmp_path, days)) as provider:
            clinic.at(provider, "https")
            said = clinic.says()
            assert [(level, about) for level, about, _ in said] == found
    assert "ends in 4 days" in said[0][2]


def test_tls_where_none_is_spoken(clinic, provider):
    clinic.at(provider, "https")
    one(clinic.says(), "fail", "upstream up", "TLS fails", "http://")


def test_a_credential_that_is_refused(clinic, provider):
    clinic.at(provider, api_key="sk-wrong")
    one(clinic.says(), "fail", "upstream up", "refuses the credential (status 401)", "check its api_key")


def test_a_model_that_is_not_there(clinic, provider):
    provider.models = ["other", "tagged:latest"]
    clinic.at(provider)
    one(clinic.says(), "warn", "upstream up", "does not list the model m")
    spec = {"kind": "ollama", "base_url": f"http://{provider.place}", "api_key": KEY}
    clinic.write(upstreams={"up": spec}, models={"m": "up", "tagged": "up", "x": {"upstream": "up", "model": "other"}, "y*": "up"})
    one(clinic.says(), "fail", "upstream up", "it has no model m", "ollama pull m")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": [1]}', b'{"data": 1}', b"\xff"])
def test_a_list_that_is_none(clinic, provider, body):
    provider.body = body
    clinic.at(provider)
    one(clinic.says(), "warn", "upstream up", "no list of models", "base_url")


@pytest.mark.parametrize(("status", "word"), [(404, "/v1"), (500, "log"), (302, "log")])
def test_an_upstream_that_is_not_well(clinic, provider, status, word):
    provider.status = status
    clinic.at(provider)
    one(clinic.says(), "warn", "upstream up", f"status {status}", word)


def test_an_upstream_that_breaks_off(clinic, provider):
    provider.status = 0
    clinic.at(provider)
    one(clinic.says(), "fail", "upstream up", "broke off")


def test_a_clock_that_is_wrong(clinic, provider):
    provider.date = NEVER
    clinic.at(provider)
    one(clinic.says(), "warn", "clock", "seconds ahead of the upstreams'", "timedatectl")
    assert doctor_machine.clock(1.0, []).level == "fail"


@pytest.fixture
def used(clinic):
    """A database that a daemon has used."""
    daemon = Daemon(clinic.folder, clinic.file.read_text()).start()
    daemon.stop()
    assert clinic.says() == []
    return daemon.database


def change(path, sql):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql)


def test_a_damaged_database(clinic, used):
    damage(used)
    one(clinic.says(), "fail", "database", "not a SQLite database", "restore a backup")


def test_a_database_that_lacks_something(clinic, used):
    change(used, "DROP INDEX usage_events_caller")
    one(clinic.says(), "fail", "database", "usage_events_caller is missing", "restore a backup")


def test_a_database_of_a_newer_proxyd(clinic, used):
    change(used, "PRAGMA user_version = 9999")
    one(clinic.says(), "fail", "database", "schema 9999", "newer proxyd")


def test_a_database_that_others_may_read(clinic, used):
    used.chmod(0o644)
    one(clinic.says(), "warn", "database", "mode 644", f"chmod 600 {used}")


def test_a_folder_that_is_not_there(clinic):
    clinic.write(storage={"url": "sqlite:///none/proxyd.db"})
    one(clinic.says(), "fail", "database", "none does not exist", "create it")


@pytest.mark.parametrize(("free", "level"), [(10**7, "fail"), (5 * 10**8, "warn")])
def test_a_full_disk(clinic, monkeypatch, free, level):
    monkeypatch.setattr(upkeep, "free_space", lambda _path: free)
    one(clinic.says(), level, "disk", "GB free", "proxyd db prune")


def test_a_port_that_is_taken(clinic):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        clinic.write(listen=f"127.0.0.1:{port}")
        other.close()
        with Provider() as stranger:
            clinic.write(listen=stranger.place)
            one(clinic.says(), "fail", "listen", "another program listens there", "ss -ltnp")
            stranger.shutdown()


def test_an_address_of_another_machine(clinic):
    clinic.write(listen=f"192.0.2.1:{free_port()}")
    one(clinic.says(), "fail", "listen", "an address of this machine")


def test_a_socket_without_a_folder(clinic):
    clinic.write(listen="unix:/nowhere/proxyd.sock")
    one(clinic.says(), "fail", "listen", "/nowhere", "RuntimeDirectory")


def doctor(clinic, limit: int | None = None, **environ: str):
    """Run it as a process of its own, on this machine as it is."""
    command = [sys.executable, "-m", "proxyd", "doctor", "-c", str(clinic.file), "--unit", str(clinic.folder / "x"), "--format", "json"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}

    def lower():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    done = subprocess.run(command, capture_output=True, env=env, cwd=clinic.folder, preexec_fn=lower, check=False)
    found = judged(json.loads(done.stdout), done.returncode)
    return [finding for finding in found if finding[1] not in {"sqlite", "disk"} and not finding[1].startswith("extra")]


def test_few_descriptors(clinic):
    one(doctor(clinic, limit=210), "warn", "descriptors", "enough for 5 streams, and limits.streams is 10", "LimitNOFILE=220")


def test_no_c_parser(clinic):
    one(doctor(clinic, AIOHTTP_NO_EXTENSIONS="1"), "fail", "aiohttp", "without its C parser", "AIOHTTP_NO_EXTENSIONS")


def test_an_old_sqlite(clinic, monkeypatch):
    monkeypatch.setattr(upkeep, "library", lambda: ("3.40.1", True))
    one(clinic.says(), "warn", "sqlite", "3.40.1 has the WAL-reset bug", "let no other program write")


def test_extras_that_are_missing(clinic, monkeypatch):
    monkeypatch.setattr(doctor_machine, "_EXTRAS", (("tokens", "no_such_module", "counts are estimates"),))
    one(clinic.says(), "warn", "extra tokens", "counts are estimates", "pip install 'proxyd[tokens]'")


UNIT = """[Service]
Type=notify
ExecStart={python} serve -c {file}
WatchdogSec=30
TimeoutStopSec=1min 30s
DynamicUser=yes
StateDirectory=proxyd
LimitNOFILE=65536
"""


@pytest.mark.parametrize(
    ("line", "instead", "advice"),
    [
        ("Type=notify", "Type=simple", "Type=notify"),
        ("WatchdogSec=30", "WatchdogSec=0", "WatchdogSec=30"),
        ("TimeoutStopSec=1min 30s", "TimeoutStopSec=20", "TimeoutStopSec=90"),
        ("DynamicUser=yes", "", "DynamicUser=yes"),
        ("StateDirectory=proxyd", "", "StateDirectory=proxyd"),
        ("LimitNOFILE=65536", "LimitNOFILE=100", "LimitNOFILE=220"),
        ("-c {file}", "-c /etc/other.yaml", "proxyd doctor -c /etc/other.yaml"),
        ("{python}", "/nowhere/proxyd", "install proxyd there"),
    ],
)
def test_a_bad_unit_and_a_drop_in_that_mends_it(clinic, line, instead, advice):
    words = {"python": sys.executable, "file": clinic.file}
    place = clinic.folder / "proxyd.service"
    place.write_text(UNIT.format(**words))
    assert clinic.says() == []
    place.write_text(UNIT.replace(line, instead).format(**words))
    one(clinic.says(), "warn", "unit proxyd.service", advice)
    (clinic.folder / "proxyd.service.d").mkdir()
    (clinic.folder / "proxyd.service.d" / "mend.conf").write_text(UNIT.format(**words))
    assert clinic.says() == []


def test_the_unit_that_we_ship_lacks_nothing(clinic):
    clinic.write(limits={"streams": 10_000})
    problems = list(doctor_machine.unit(ROOT / "systemd" / "proxyd.service", load_file(clinic.file, {}), clinic.folder / "config.yaml"))
    assert {problem.says.partition(" ")[0] for problem in problems} <= {"it", "there"}, "it serves another file, and is not installed here"


def test_a_running_daemon_is_known_and_its_ports_are_its_own(clinic):
    daemon = Daemon(clinic.folder, clinic.file.read_text()).start()
    assert clinic.says() == []
    daemon.stop()


def test_a_daemon_with_another_database(clinic):
    daemon = Daemon(clinic.folder, clinic.file.read_text()).start()
    document = json.loads(clinic.file.read_text())
    clinic.file.write_text(json.dumps({**document, "storage": {"url": "sqlite:///other.db"}}))
    one(clinic.says(), "warn", "database", f"the running daemon writes {daemon.database}", "waits for a restart")
    clinic.file.write_text(json.dumps(document))
    daemon.stop()


class Sick(http.server.BaseHTTPRequestHandler):
    """A daemon that is of another version, takes no traffic, and has an upstream down."""

    def do_GET(self) -> None:
        upstreams = {"echo": {"state": "open"}}
        body = {
            "/state": {"version": "0.0.1", "upstreams": upstreams},
            "/health": {"status": "ok"},
            "/ready": {"status": "not ready", "reasons": ["the database cannot be written"]},
        }[self.path]
        self.send_response(503 if self.path == "/ready" else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args) -> None:
        """Say nothing."""


def test_a_daemon_that_is_not_well(clinic):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sick) as daemon:
        threading.Thread(target=daemon.serve_forever, args=(0.01,), daemon=True).start()
        clinic.write(ops={"listen": f"127.0.0.1:{daemon.server_address[1]}"})
        found = clinic.says()
        daemon.shutdown()
    assert [(level, about) for level, about, _ in found] == [("fail", "daemon"), ("warn", "daemon"), ("warn", "upstream echo")]
    assert "the database cannot be written" in found[0][2]
    assert "runs 0.0.1" in found[1][2]
    assert "restart it" in found[1][2]


def test_people_read_it_too(clinic, capsys):
    clinic.write("upstreams: {echo: {kind: echo}}\nmodels: {m: eco}\n")
    assert main(["doctor", "-c", str(clinic.file)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("fail  config")
    assert "→ mend the file" in out
    assert "\x1b" not in out


# Who gets in


def own(folder, begins: int, ends: int, name: str = "own") -> ec.EllipticCurvePrivateKey:
    """A certificate, good from so many days from now to so many, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now, named = dt.datetime.now(dt.UTC), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "own")])
    made = x509.CertificateBuilder(named, named, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now + dt.timedelta(begins)).not_valid_after(now + dt.timedelta(ends, minutes=5))
    (folder / f"{name}.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


@pytest.mark.parametrize(
    ("begins", "ends", "level", "word"),
    [
        (-1, 90, None, ""),
        (-1, 40_000, None, ""),  # beyond 2049 the dates are written in another form
        (-30, 5, "warn", "ends in 5 days"),
        (-30, -1, "fail", "ended on"),
        (1, 30, "fail", "begins on"),
    ],
)
def test_a_certificate_of_one_s_own_by_its_dates(clinic, begins, ends, level, word):
    own(clinic.folder, begins, ends)
    clinic.write(tls={"cert": "own.pem", "key": "own.key"})
    found = clinic.says()
    if level is None:
        assert found == []
    else:
        one(found, level, "tls", word)


def test_a_certificate_with_another_s_key_one_that_is_not_there_and_one_that_is_none(clinic):
    for name in ("own", "other"):
        own(clinic.folder, -1, 90, name)
    (clinic.folder / "page.pem").write_text("<html>")
    for cert, key, word in (("own.pem", "other.key", "do not belong together"), ("own.pem", "no.key", "cannot be read"), ("page.pem",) * 3):
        clinic.write(tls={"cert": cert, "key": key})
        one(clinic.says(), "fail", "tls", word)


def test_a_key_that_the_unit_s_user_may_not_read(clinic):
    folder = clinic.folder / "tls"
    folder.mkdir()
    own(folder, -1, 90)
    clinic.write(tls={"cert": "tls/own.pem", "key": "tls/own.key"})
    (clinic.folder / "proxyd.service").write_text((ROOT / "systemd" / "proxyd.service").read_text())
    drop_in = clinic.folder / "proxyd.service.d" / "own.conf"
    drop_in.parent.mkdir()

    def found() -> list[str]:
        return [says.partition(":")[0] for _, about, says in clinic.says() if about == "tls"]

    closed = [place for place in folder.parents if not place.stat().st_mode & 1]  # pytest's own folders are the user's alone
    modes = {place: place.stat().st_mode for place in closed}
    try:
        for place in closed:
            place.chmod(0o755)
        assert found() == []
        (folder / "own.key").chmod(0o640)
        assert found() == [f"the unit's user may not read {folder / 'own.key'}"]
        drop_in.write_text(f"[Service]\nSupplementaryGroups={folder.group()}\n")
        assert found() == []
        folder.chmod(0o700)  # as Let's Encrypt has it
        assert found() == [f"the unit's user may not read {folder / name}" for name in ("own.pem", "own.key")]
    finally:
        for place, mode in modes.items():
            place.chmod(mode)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (key_set(Key("k"), Key("r", "RS256")), None),
        (b"<html>", "is no key set"),
        (b'{"keys": []}', "has no key that can be used"),
        (key_set({"kty": "oct", "k": "c2VjcmV0"}), "has no key that can be used"),
        (None, "Cannot connect"),
    ],
    ids=str,
)
def test_the_keys_of_an_issuer(clinic, origin, body, word):
    url = f"{origin.root}/keys" if body is not None else f"http://127.0.0.1:{free_port()}/keys"
    origin.on("/keys", whole(body or b""))
    rules = [{"issuer": "https://id.example.com", "audience": aud, "jwks_url": url} for aud in ("a", "b")]
    clinic.write(auth={"jwt": rules})
    found = clinic.says()
    if word is None:
        assert found == []
        assert len(origin.requests) == 1  # one key set, though two audiences
    else:
        one(found, "fail", "issuer id.example.com", word)
    assert clinic.says("--no-network") == []


def test_an_issuer_whose_discovery_is_about_another(clinic, origin):
    origin.on("/.well-known/openid-configuration", whole(b'{"issuer": "https://other.example.com"}'))
    clinic.write(auth={"jwt": [{"issuer": origin.root, "audience": "a", "name": "it"}]})
    one(clinic.says(), "fail", "issuer it", "is not about this issuer", "jwks_url")
