"""Keys: made, listed, rotated and revoked while the daemon runs, and without one; who gets in by which."""

import asyncio
import gzip
import json
import re
import socket
import sqlite3
import subprocess
import sys

import pytest

from proxyd.rules.auth import generate_key
from tests.e2e.client import ask, chat, request, send
from tests.e2e.conftest import at, rigged
from tests.origin import completion, whole
from tests.process import KEY, ROOT, Child, Daemon, settings

PATH = "/v1/chat/completions"
MADE = re.compile(r"pxd_[0-9A-Za-z]{28}")


def free() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _config(origin, **more):
    return {
        "upstreams": {"origin": at(origin)},
        "models": {"small": {"upstream": "origin", "retry": {"attempts": 1}}, "large": "origin"},
        "ops": {"listen": f"127.0.0.1:{free()}"},
        "auth": {
            "keys": [
                {"name": "tester", "key": KEY, "default_model": "small"},
                {"name": "past", "key": "past-key-0123456789", "expires": "2020-01-31"},
            ],
            "jwt": [{"issuer": "http://127.0.0.1:9", "audience": "proxyd", "name": "acme"}],
        },
        **more,
    }


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with rigged(tmp_path_factory.mktemp("keys"), _config) as found:
        found.origin.on("*", whole(completion("hi")))
        yield found


def proxyd(daemon: Daemon, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would, over the daemon's configuration."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environ}
    command = [sys.executable, "-m", "proxyd", arguments[0], "-c", str(daemon.file), *arguments[1:]]
    return subprocess.run(command, cwd=daemon.folder, env=env, capture_output=True, text=True, timeout=30, check=False)


async def keys(rig, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(proxyd, rig.daemon, "keys", *arguments)


async def made(rig, *arguments: str) -> str:
    done = await keys(rig, *arguments)
    assert done.returncode == 0, done
    return done.stdout.strip()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def status(rig, key: str, model: str = "small") -> int:
    return (await ask(rig.url, PATH, chat(model), **bearer(key))).status


async def test_a_made_key_works_at_once_in_each_header_and_is_told_alone_on_stdout(rig):
    done = await keys(rig, "create", "laptop")
    assert done.returncode == 0, done
    assert MADE.fullmatch(done.stdout.rstrip("\n"))
    assert "once" in done.stderr
    key = done.stdout.strip()
    assert key not in done.stderr
    for header in ({"authorization": f"Bearer {key}"}, {"authorization": "", "x-api-key": key}, {"authorization": "", "api-key": key}):
        answer = await send(rig.url, request("POST", PATH, json.dumps(chat("small")).encode(), header))
        assert answer.status == 200, header
    assert {row["caller"] for row in rig.daemon.rows("small")} >= {"laptop"}


async def test_the_configuration_may_be_named_behind_the_action(rig):
    command = [sys.executable, "-m", "proxyd", "keys", "list", "-c", str(rig.daemon.file)]
    done = await asyncio.to_thread(subprocess.run, command, cwd="/", env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_neither_database_nor_log_holds_the_key(rig):
    key = await made(rig, "create", "secret")
    assert await status(rig, key) == 200
    link = sqlite3.connect(f"file:{rig.daemon.database}?mode=ro", uri=True)
    rows = link.execute("SELECT * FROM api_keys").fetchall()
    link.close()
    assert key.encode() not in b"".join(repr(row).encode() for row in rows)
    assert key not in rig.daemon.log


async def test_a_key_may_do_what_it_was_made_for(rig):
    key = await made(rig, "create", "narrow", "--models", "small", "nothing*", "--rpm", "2", "--default-model", "small")
    assert await status(rig, key, "large") == 403
    answer = await ask(rig.url, PATH, {"messages": [{"role": "user", "content": "no model"}]}, **bearer(key))
    assert answer.status == 200
    assert rig.origin.requests[-1].json()["model"] == "small"
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert await status(rig, key) == 200
    assert await status(rig, key) == 429


async def test_models_come_one_by_one_between_commas_or_both(rig):
    lists = [("a,b*",), ("a", "b*"), ("a", "--models", "b*")]
    for place, models in enumerate(lists):
        await made(rig, "create", f"comma-{place}", "--models", *models)
    rows = json.loads((await keys(rig, "list", "--format", "json")).stdout)
    assert [row["models"] for row in rows if row["name"].startswith("comma-")] == [["a", "b*"]] * len(lists)
    assert (await keys(rig, "create", "x", "--models", "a,,b")).returncode == 2


async def test_a_key_says_how_its_answers_leave_and_so_does_the_one_that_replaces_it(rig):
    long = completion("word " * 200)
    rig.origin.on("small", whole(long))
    key = await made(rig, "create", "thin", "--max-delay-ms", "500", "--max-bytes", "4KiB", "--compress")
    new = await made(rig, "rotate", "thin")
    for each in (key, new):
        answer = await ask(rig.url, PATH, chat("small"), **bearer(each), Accept_Encoding="gzip")
        assert gzip.decompress(answer.body) == long
    shown = json.loads((await keys(rig, "show", "thin", "--format", "json")).stdout)
    assert [row["delivery"] for row in shown] == [{"max_delay_ms": 500, "max_bytes": 4096, "compress": True}] * 2
    assert "max_delay_ms=500 max_bytes=4096 compress=true" in (await keys(rig, "show", "thin")).stdout
    assert json.loads((await keys(rig, "show", "tester", "--format", "json")).stdout)[0]["delivery"] is None
    for wrong in (("--max-delay-ms", "10001"), ("--max-bytes", "1MiB"), ("--max-bytes", "much")):
        refused = await keys(rig, "create", "wrong", *wrong)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "max" in refused.stderr


async def test_a_rotated_key_lives_on_for_its_grace_and_both_share_what_is_allowed(rig):
    old = await made(rig, "create", "turning", "--rpm", "3")
    new = await made(rig, "rotate", "turning", "--grace", "1h")
    assert old != new
    assert [await status(rig, key) for key in (old, new, old, new)] == [200, 200, 200, 429]
    third = await keys(rig, "rotate", "turning")
    assert third.returncode == 1
    assert "two live keys" in third.stderr
    shown = json.loads((await keys(rig, "show", "turning", "--format", "json")).stdout)
    assert [(key["prefix"], key["state"], key["rpm"]) for key in shown] == [(old[:8], "live", 3), (new[:8], "live", 3)]
    assert shown[0]["expires_at"] is not None
    assert shown[1]["expires_at"] is None


async def test_a_rotation_without_grace_ends_the_old_key_now(rig):
    old = await made(rig, "create", "hasty")
    new = await made(rig, "rotate", "hasty", "--grace", "0")
    assert [await status(rig, old), await status(rig, new)] == [401, 200]


async def test_a_revoked_key_lets_nobody_in_from_then_on(rig):
    key = await made(rig, "create", "leaver")
    assert await status(rig, key) == 200
    assert (await keys(rig, "revoke", "leaver")).returncode == 0
    assert await status(rig, key) == 401
    assert (await keys(rig, "revoke", "leaver")).returncode == 1
    again = await made(rig, "create", "leaver")
    assert [await status(rig, key), await status(rig, again)] == [401, 200]


async def test_one_of_two_keys_can_be_revoked(rig):
    old = await made(rig, "create", "pair")
    new = await made(rig, "rotate", "pair")
    assert (await keys(rig, "revoke", "pair", "--key", old[:8])).returncode == 0
    assert [await status(rig, old), await status(rig, new)] == [401, 200]


async def test_an_expired_key_lets_nobody_in(rig):
    key = await made(rig, "create", "shortlived", "--expires", "1ms")
    assert await status(rig, key) == 401
    assert await status(rig, "past-key-0123456789") == 401
    shown = json.loads((await keys(rig, "show", "shortlived", "--format", "json")).stdout)
    assert shown[0]["state"] == "expired"


async def test_all_that_fails_looks_the_same(rig):
    revoked = await made(rig, "create", "gone")
    await keys(rig, "revoke", "gone")
    never = generate_key("pxd_", bytes(32))
    typo = revoked[:-1] + ("a" if revoked[-1] != "a" else "b")
    answers = [await ask(rig.url, PATH, chat("small"), **bearer(key)) for key in (revoked, never, typo, "pxd_", "x", "past-key-0123456789")]
    assert {(answer.status, answer.body, answer.headers["www-authenticate"]) for answer in answers} == {
        (401, answers[0].body, "Bearer"),
    }


async def test_a_listing_shows_all_keys_and_no_secret(rig):
    key = await made(rig, "create", "listed", "--models", "small", "--admin")
    table = (await keys(rig, "list")).stdout
    assert key not in table
    assert KEY not in table
    line = next(line for line in table.splitlines() if line.startswith("listed"))
    assert key[:8] in line
    assert "yes" in line
    assert "database" in line
    assert any(line.startswith("tester") and "file" in line for line in table.splitlines())
    document = json.loads((await keys(rig, "list", "--format", "json")).stdout)
    assert {"listed", "tester"} <= {row["name"] for row in document}


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("create", "two words"), 2, "letters, digits"),
        (("create", "tester"), 1, "in the configuration"),
        (("create", "user_7@acme"), 1, "how a caller of an issuer"),
        (("rotate", "tester"), 1, "the configuration has one, change it there"),
        (("revoke", "tester"), 1, "the configuration has one, change it there"),
        (("create", "x", "--rpm", "0"), 2, "at least 1"),
        (("create", "x", "--tpm", "many"), 2, "1M, 200k"),
        (("create", "x", "--expires", "yesterday"), 2, "30d"),
        (("create", "x", "--expires", "2020-01-01"), 2, "past"),
        (("create", "x", "--models", "a*b"), 2, "at the end only"),
        (("rotate", "nobody"), 1, "no live key"),
        (("revoke", "nobody"), 1, "no live key"),
        (("show", "nobody"), 1, "no key"),
        (("rotate", "tester", "--grace", "long"), 2, "--grace"),
    ],
)
async def test_what_cannot_be_done_is_said_on_one_line(rig, arguments, code, told):
    done = await keys(rig, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


async def test_pages_of_other_sites_cannot_make_keys(rig):
    body = json.dumps({"name": "evil", "admin": True}).encode()
    host = rig.daemon.ops.removeprefix("http://")
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        answer = await send(rig.daemon.ops, request("POST", "/keys", body, {"host": host, "origin": origin, "content-type": "text/plain"}))
        assert answer.status == 403, origin
    assert (await ask(rig.daemon.ops, "/keys/evil", method="GET", host=host)).status == 404


async def test_without_a_daemon_keys_are_made_in_the_database_and_found_at_start(rig, tmp_path):
    daemon = Daemon(tmp_path, settings(**_config(rig.origin, auth={"keys": []}, environment="production")))
    refused = Child(["serve", "-c", str(daemon.file)], tmp_path)
    assert refused.wait() == 1
    refused.end()
    assert "proxyd keys create" in refused.log
    assert (await asyncio.to_thread(proxyd, daemon, "check")).returncode == 1
    done = await asyncio.to_thread(proxyd, daemon, "keys", "create", "first")
    assert done.returncode == 0, done
    assert (await asyncio.to_thread(proxyd, daemon, "check")).returncode == 0
    daemon.start()
    assert (await ask(daemon.url, PATH, chat("small"), **bearer(done.stdout.strip()))).status == 200
    daemon.stop()
    listed = json.loads((await asyncio.to_thread(proxyd, daemon, "keys", "list", "--format", "json")).stdout)
    assert listed[0]["last_used_at"] is not None  # written when the daemon stopped
    daemon.start()
    assert (await ask(daemon.url, PATH, chat("small"), **bearer(done.stdout.strip()))).status == 200
    daemon.stop()


async def test_a_daemon_that_cannot_be_asked_keeps_its_database_to_itself(rig, tmp_path):
    other = tmp_path / "config.yaml"
    document = json.loads(rig.daemon.file.read_text())
    document["ops"] = {"listen": f"127.0.0.1:{free()}"}
    document["storage"] = {"url": f"sqlite:///{rig.daemon.database}"}
    other.write_text(json.dumps(document))
    stray = Daemon(tmp_path, document)
    done = await asyncio.to_thread(proxyd, stray, "keys", "create", "x")
    assert done.returncode == 1
    assert "no daemon answers" in done.stderr
    assert "in use by another proxyd" in done.stderr


async def test_a_shell_that_has_not_the_daemons_secrets_makes_keys_all_the_same(rig, tmp_path):
    document = json.loads(rig.daemon.file.read_text())
    document["ops"] = {"listen": rig.daemon.ops.removeprefix("http://")}
    document["auth"]["keys"].append({"name": "sealed", "key": "${ONLY_THE_DAEMON_HAS_IT}"})
    shell = Daemon(tmp_path, document)
    assert (await asyncio.to_thread(proxyd, shell, "keys", "create", "walk-in")).returncode == 0
    listed = await asyncio.to_thread(proxyd, shell, "keys", "list")
    assert "walk-in" in listed.stdout
    assert "whose secrets this shell has not" in listed.stderr
    document["ops"] = {"listen": f"127.0.0.1:{free()}"}
    alone = Daemon(tmp_path, document)
    done = await asyncio.to_thread(proxyd, alone, "keys", "create", "x")  # it might be the name of one that cannot be read
    assert done.returncode == 1
    assert "ONLY_THE_DAEMON_HAS_IT is not set" in done.stderr


async def test_beyond_loopback_the_operators_port_asks_for_an_admin_key(rig, tmp_path):
    port = free()
    far = {"listen": f"0.0.0.0:{port}"}
    daemon = Daemon(tmp_path, settings(**_config(rig.origin, ops=far)))
    refused = Child(["serve", "-c", str(daemon.file)], tmp_path)
    assert refused.wait() == 1
    refused.end()
    assert "needs an admin key" in refused.log
    admin = (await asyncio.to_thread(proxyd, daemon, "keys", "create", "root", "--admin")).stdout.strip()
    daemon.start()
    ops = f"http://127.0.0.1:{port}"
    for path in ("/state", "/keys", "/metrics"):
        assert (await ask(ops, path, method="GET")).status == 401  # the tester's key is no admin's
        assert (await ask(ops, path, method="GET", authorization="")).status == 401
        assert (await ask(ops, path, method="GET", host="192.0.2.7:9464", **bearer(admin))).status == 200
    assert (await ask(ops, "/health", method="GET", authorization="")).status == 200
    denied = await asyncio.to_thread(proxyd, daemon, "keys", "list")
    assert denied.returncode == 1
    assert "admin key" in denied.stderr
    assert (await asyncio.to_thread(lambda: proxyd(daemon, "keys", "list", PROXYD_ADMIN_KEY=admin))).returncode == 0
    daemon.stop()


async def test_a_file_that_brings_two_callers_together_is_warned_of(rig, tmp_path):
    config = settings(**_config(rig.origin))
    daemon = Daemon(tmp_path, config).start()
    try:
        for name in ("alone", "phone", "user_7@later"):
            assert proxyd(daemon, "keys", "create", name).returncode == 0
        config["auth"]["keys"].append({"name": "phone", "key": "phone-key-0123456789"})
        config["auth"]["jwt"][0]["name"] = "later"
        daemon.write(config)
        done = await asyncio.to_thread(proxyd, daemon, "reload")
        assert done.returncode == 0, done
        daemon.stop()
        for text in (done.stdout + done.stderr, daemon.log):
            assert "'phone' has a live key in the database, too" in text
            assert "'user_7@later' has a live key in the database, too" in text
            assert "'alone'" not in text
        assert daemon.start().child.expect(re.compile("`proxyd keys revoke phone`"))  # at once, not when it ends
        daemon.stop()
    finally:
        daemon.child.end()
