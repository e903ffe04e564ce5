"""HTTPS on the clients' port, with certificates made on the spot and renewed while streams run."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
from urllib.parse import urlsplit

import pytest

from tests.e2e.client import Visit, ask, becomes, chat, request
from tests.origin import DONE, Gate, completion, delta, stream, whole
from tests.process import Child, settings

PATH = "/v1/chat/completions"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def certify(folder, name, *, key="key.pem", cert="cert.pem", secret=False):
    """A self-made certificate for localhost; its subject tells one from another."""
    fresh = folder / "fresh.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "1", "-subj", f"/CN={name}"]
        + (["-passout", "pass:x"] if secret else ["-nodes"])
        + ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(folder / key), "-out", str(fresh)],
        check=True,
        capture_output=True,
    )
    fresh.rename(folder / cert)
    return folder / cert


def site(origin, *, watch=False, **more):
    upstreams = {"origin": {"kind": "openai", "base_url": origin.url}}
    return settings(upstreams=upstreams, models={"*": "origin"}, watch=watch, tls={"cert": "cert.pem", "key": "key.pem"}, **more)


@pytest.fixture
def serve(tmp_path, start, origin):
    """Start a daemon with a certificate."""

    def begin(**more):
        certify(tmp_path, "first")
        config = site(origin, **more)
        # The address is printed with https here.
        daemon = start(config)
        assert daemon.url.startswith("https://127.0.0.1:")
        return daemon

    return begin


async def over_tls(daemon, folder) -> tuple[Visit, str]:
    """A connection that trusts the certificate that is in the folder now, and the subject of what it was shown."""
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    port = urlsplit(daemon.url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost", limit=2**20)
    subject = dict(pair[0] for pair in writer.get_extra_info("peercert")["subject"])
    return Visit(reader, writer), subject["commonName"]


async def test_it_speaks_https_and_nothing_else(serve, origin, tmp_path):
    origin.on("m", whole(completion("hi")))
    daemon = serve()
    visit, name = await over_tls(daemon, tmp_path)
    assert name == "first"
    await visit.post(PATH, chat("m"))
    assert (await visit.rest()).status == 200
    await visit.leave()
    with socket.create_connection(("127.0.0.1", urlsplit(daemon.url).port)) as plain:
        plain.sendall(request("GET", "/health"))
        assert b"HTTP/1.1" not in plain.recv(100)
    assert (await ask(daemon.ops, "/health", method="GET")).status == 200  # the ops port stays plain


async def test_old_versions_of_tls_are_refused(serve):
    daemon = serve()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", urlsplit(daemon.url).port, ssl=context)


async def test_a_renewed_certificate_greets_new_connections_while_a_stream_runs_on_the_old_one(serve, origin, tmp_path):
    gate = Gate()
    origin.on("m", stream(delta("one"), gate, delta(" two", finish="stop"), DONE))
    daemon = serve(watch=True)
    running, _ = await over_tls(daemon, tmp_path)
    await running.post(PATH, chat("m", stream=True))
    await running.head()
    await running.until(b"one")
    certify(tmp_path, "second")
    await becomes(lambda: "was reloaded (the file changed): nothing changed" in daemon.log)
    visit, name = await over_tls(daemon, tmp_path)
    assert name == "second"
    await visit.leave()
    gate.open()
    answer = await running.rest()
    assert answer.whole
    assert answer.body.endswith(DONE)
    await running.leave()


async def test_a_pair_that_does_not_fit_is_not_taken(serve, tmp_path):
    """A renewal caught half-way."""
    daemon = serve()
    certify(tmp_path, "second", cert="other.pem")  # the key is the second one's now
    answer = await ask(daemon.ops, "/reload", method="POST")
    assert answer.status == 422
    assert "do not belong together" in answer.json()["mistakes"][0]
    visit, name = await over_tls(daemon, tmp_path)
    assert name == "first"
    await visit.leave()


async def test_turning_it_off_waits_for_a_restart(serve, origin, tmp_path):
    daemon = serve()
    plain = site(origin)
    del plain["tls"]
    daemon.write(plain)
    answer = await ask(daemon.ops, "/reload", method="POST")
    assert answer.json()["waiting"] == [{"path": "tls", "what": "changed"}]
    visit, _ = await over_tls(daemon, tmp_path)
    await visit.leave()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "key.pem").unlink(), "tls.key: {}/key.pem cannot be read: No such file or directory"),
        (lambda folder: (folder / "cert.pem").write_text("nonsense"), "are no certificate and its key without a password"),
        (lambda folder: certify(folder, "x", secret=True), "are no certificate and its key without a password"),
        (lambda folder: certify(folder, "x", cert="other.pem"), "do not belong together"),
    ],
)
def test_what_cannot_be_served_is_refused_at_start(tmp_path, origin, spoil, message):
    certify(tmp_path, "first")
    spoil(tmp_path)
    (tmp_path / "c.yaml").write_text(json.dumps(site(origin)))
    child = Child(["serve", "-c", "c.yaml"], tmp_path)
    assert child.wait() == 1
    assert message.format(tmp_path) in child.log
    child.end()
