"""Callers by signed tokens: a real issuer whose keys are fetched, kept, and rotated under the daemon."""

import asyncio
import json
import re

import pytest

from tests.e2e.client import ask, chat
from tests.e2e.conftest import at
from tests.issuer import Key, claims, key_set
from tests.origin import completion, whole
from tests.process import KEY, ROOT, Child, Daemon, settings

PATH = "/v1/chat/completions"
DISCOVERY = "/.well-known/openid-configuration"


@pytest.fixture
def house(launch, origin):
    """A daemon that takes the tokens of an issuer, which is the origin too."""

    def start(*rules: dict, **more) -> Daemon:
        rules = rules or ({"issuer": origin.root, "audience": "proxyd", "name": "it"},)
        keys = [{"name": "tester", "key": KEY}]
        return launch(upstreams={"o": at(origin)}, models={"m": "o", "n": "o"}, auth={"keys": keys, "jwt": list(rules)}, **more)

    origin.on("m", whole(completion("hi")))
    origin.on(DISCOVERY, whole(json.dumps({"issuer": origin.root, "jwks_uri": f"{origin.root}/keys"}).encode()))
    return start


async def call(daemon: Daemon, token: str, model: str = "m"):
    return await ask(daemon.url, PATH, chat(model), authorization=f"Bearer {token}")


def fetches(origin) -> int:
    return sum(request.target == "/keys" for request in origin.requests)


async def test_a_clerk_shaped_token_lets_its_user_in_and_names_the_caller(house, origin):
    key = Key("ins_2abc", "RS256")
    origin.on("/keys", whole(key_set(key)))
    daemon = house()
    said = claims(origin.root, sub="user_2abc", azp="http://localhost:3000", sid="sess_1", fva=[1, -1], sts="active", v=2)
    for _ in range(3):
        assert (await call(daemon, key.sign(said, cat="cl_B7d4PD111AAA", typ="JWT"))).status == 200
    assert [row["caller"] for row in daemon.rows("m")] == ["user_2abc@it"] * 3
    assert fetches(origin) == 1
    assert (await ask(daemon.url, PATH, chat("m"))).status == 200  # keys of the file live beside


async def test_a_keycloak_shaped_token_brings_its_models(house, origin):
    key = Key("kc", "RS256")
    origin.on("/keys", whole(key_set(key, {**Key("enc", "RS256").jwk, "use": "enc", "alg": "RSA-OAEP"})))
    rule = {"issuer": origin.root, "audience": "proxyd", "caller": "preferred_username", "models_claim": "resource_access.proxyd.roles"}
    daemon = house({**rule, "jwks_url": f"{origin.root}/keys"})
    said = claims(origin.root, nbf=None, typ="Bearer", aud=["proxyd", "account"], preferred_username="ada")
    token = key.sign({**said, "resource_access": {"proxyd": {"roles": ["m"]}}})
    assert (await call(daemon, token)).status == 200
    refused = await call(daemon, token, "n")
    assert (refused.status, refused.error()["code"]) == (403, "model_not_allowed")
    assert all(request.target != DISCOVERY for request in origin.requests)
    listed = await ask(daemon.url, "/v1/models", method="GET", authorization=f"Bearer {token}")
    assert [model["id"] for model in json.loads(listed.body)["data"]] == ["m"]


async def test_a_new_key_is_fetched_when_a_token_names_it(house, origin):
    """At once, though the first fetch was a moment ago: whoever rotates keys does not wait for us."""
    old, new = Key("old"), Key("new")
    origin.on("/keys", whole(key_set(old)), whole(key_set(new)))
    daemon = house()
    assert (await call(daemon, old.sign(claims(origin.root)))).status == 200
    assert (await call(daemon, new.sign(claims(origin.root)))).status == 200
    assert fetches(origin) == 2


async def test_made_up_keys_are_looked_for_twice_and_then_no_more_than_once_a_minute(house, origin):
    known, late = Key("known"), Key("late")
    origin.on("/keys", *[whole(key_set(known))] * 3, whole(key_set(known, late)))
    daemon = house()
    assert (await call(daemon, known.sign(claims(origin.root)))).status == 200
    for number in range(20):
        assert (await call(daemon, Key(f"x{number}").sign(claims(origin.root)))).status == 401
    assert (await call(daemon, late.sign(claims(origin.root)))).status == 401
    assert (await call(daemon, known.sign(claims(origin.root, sub="another")))).status == 200
    assert fetches(origin) == 3


async def test_a_crowd_at_the_start_fetches_the_keys_once(house, origin):
    key = Key("k")
    origin.on("/keys", [0.2, *whole(key_set(key))])
    daemon = house()
    answers = await asyncio.gather(*(call(daemon, key.sign(claims(origin.root, sub=f"user_{number}"))) for number in range(20)))
    assert [answer.status for answer in answers] == [200] * 20
    assert fetches(origin) == 1
    assert {row["caller"] for row in daemon.rows("m")} == {f"user_{number}@it" for number in range(20)}


@pytest.mark.parametrize(
    "bend",
    [
        lambda origin, key: key.sign(claims(origin.root, aud="other")),
        lambda origin, key: key.sign(claims(origin.root, exp=None)),
        lambda origin, key: key.sign(claims("https://elsewhere.example.com")),
        lambda origin, key: key.sign(claims(origin.root, sub="")),
        lambda origin, key: Key(key.kid).sign(claims(origin.root)),
        lambda origin, key: Key(key.kid).sign(claims(origin.root), jku=f"{origin.root}/evil", x5u=f"{origin.root}/evil"),
        lambda origin, key: "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.x",
    ],
)
async def test_a_token_that_does_not_hold_is_401_like_a_wrong_key_and_fetches_nothing(house, origin, bend):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    daemon = house()
    answer = await call(daemon, bend(origin, key))
    assert (answer.status, answer.error()["code"]) == (401, "invalid_api_key")
    assert answer.error()["message"] == "The API key is not valid here."
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert all(request.target in (DISCOVERY, "/keys") for request in origin.requests)
    daemon.child.expect(re.compile("a token was refused"))


async def test_an_expired_token_is_told_so_that_clients_get_a_new_one(house, origin):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    answer = await call(house(), key.sign(claims(origin.root, exp=1000)))
    assert (answer.status, answer.error()["message"]) == (401, "The token has expired.")


async def test_tokens_that_begin_alike_are_not_taken_for_each_other(house, origin):
    """CVE-2026-35030: a cache that was keyed by the first bytes of a token."""
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    daemon = house()
    long = "x" * 150
    for name in ("a", "b", "a"):
        assert (await call(daemon, key.sign(claims(origin.root, iat=None, sub=long + name)))).status == 200
    assert [row["caller"] for row in daemon.rows("m")] == [f"{long}{name}@it" for name in "aba"]
    head, body, _ = key.sign(claims(origin.root)).split(".")
    assert (await call(daemon, f"{head}.{body}.{'A' * 86}")).status == 401


async def test_a_user_called_like_a_key_is_somebody_else(house, origin):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    daemon = house()
    await call(daemon, key.sign(claims(origin.root, sub="tester")))
    await ask(daemon.url, PATH, chat("m"))
    assert [row["caller"] for row in daemon.rows("m")] == ["tester@it", "tester"]


@pytest.mark.parametrize(
    ("discovery", "keys", "why"),
    [
        (whole(b"{}", status=500), None, "answered 500"),
        (whole(b"{}"), None, "not about this issuer"),
        (whole(b"<html>"), None, "not JSON"),
        (None, whole(b"", status=302, headers={"location": "/elsewhere"}), "answered 302"),
        (None, whole(b"{}"), "no key set"),
        (None, whole(b'{"keys":[]}'), "no key that can be used"),
        (None, whole(b'{"keys":[' + b" " * 300_000 + b"]}"), "larger than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_where_keys_cannot_be_had_nobody_is_let_in_and_the_log_says_why(house, origin, discovery, keys, why):
    if discovery is not None:
        origin.on(DISCOVERY, discovery)
    if keys is not None:
        origin.on("/keys", keys)
    daemon = house()
    answer = await call(daemon, Key("k").sign(claims(origin.root)))
    assert (answer.status, answer.error()["code"]) == (503, "auth_unavailable")
    assert answer.headers["retry-after"] == "5"
    daemon.child.expect(re.compile(re.escape(why)))
    assert (await ask(daemon.url, PATH, chat("m"))).status == 200  # keys of the file need no issuer


async def test_keys_on_another_address_must_come_over_tls(house, origin):
    origin.on(DISCOVERY, whole(json.dumps({"issuer": origin.root, "jwks_uri": "http://192.0.2.1/keys"}).encode()))
    daemon = house()
    assert (await call(daemon, Key("k").sign(claims(origin.root)))).status == 503
    daemon.child.expect(re.compile("names no https address"))


async def test_limits_of_an_issuer_hold_for_each_of_its_callers(house, origin):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    daemon = house({"issuer": origin.root, "audience": "proxyd", "limits": {"rpm": 1}})
    ada, bob = (key.sign(claims(origin.root, sub=name)) for name in ("ada", "bob"))
    assert [(await call(daemon, token)).status for token in (ada, ada, bob)] == [200, 429, 200]


async def test_a_token_s_own_limits_hold_and_what_it_leaves_out_is_the_issuer_s(house, origin):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    daemon = house({"issuer": origin.root, "audience": "proxyd", "limits": {"rpm": 1, "tpm": 5000}, "limits_claim": "limits"})
    paying, free = (key.sign(claims(origin.root, sub=name, limits=said)) for name, said in (("ada", {"rpm": 2}), ("bob", None)))
    answers = [await call(daemon, token) for token in (paying, paying, paying, free, free)]
    assert [answer.status for answer in answers] == [200, 200, 429, 200, 429]
    assert [answers[0].headers[f"x-ratelimit-limit-{of}"] for of in ("requests", "tokens")] == ["2", "5000"]
    # A token says other limits from one day to the next: the newest counts, for what was used before, too.
    assert (await call(daemon, key.sign(claims(origin.root, sub="ada", limits={"rpm": 4})))).status == 200


async def test_limits_that_a_token_says_wrongly_are_refused_and_client_and_log_are_told(house, origin):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    daemon = house({"issuer": origin.root, "audience": "proxyd", "limits_claim": "limits"}, limits={"auth_failures": 1})
    for _ in range(3):  # no attack: not braked
        answer = await call(daemon, key.sign(claims(origin.root, limits={"rpm": "60"})))
        assert (answer.status, answer.error()["code"]) == (401, "invalid_api_key")
        assert "in its claim limits, rpm is no whole number" in answer.error()["message"]
    daemon.child.expect(re.compile("a token of an issuer under auth.jwt was refused: in its claim limits"))
    assert not origin.asked("m")


async def test_the_budget_of_an_issuer_holds_for_each_of_its_callers_and_through_a_restart(house, origin):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    origin.on("m", whole(completion("hi", prompt=60, produced=40)))
    daemon = house({"issuer": origin.root, "audience": "proxyd", "budget": {"tokens": 100, "per": "month"}})
    ada, bob = (key.sign(claims(origin.root, sub=name)) for name in ("ada", "bob"))
    assert [(await call(daemon, token)).status for token in (ada, ada, bob)] == [200, 429, 200]
    daemon.kill()
    daemon.start()
    refused = await call(daemon, ada)
    assert (refused.status, refused.error()["code"]) == (429, "insufficient_quota")


def test_tokens_need_an_extra_and_the_start_says_which(tmp_path):
    """As it is without cryptography: the finder is told that it is not there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nf = u.find_spec\nu.find_spec = lambda name, *a: None if name == 'jwt' else f(name, *a)\n"
    )
    rules = [{"issuer": "https://a.example.com", "audience": "proxyd"}]
    config = settings(upstreams={"e": {"kind": "echo"}}, models={"m": "e"}, auth={"jwt": rules})
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    for command in ("serve", "check"):
        child = Child([command, "-c", "config.yaml"], tmp_path, {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
        child.expect(re.compile(r"pip install 'proxyd\[jwt\]'"))
        assert child.wait() == 1
        child.end()


async def test_tokens_that_do_not_hold_are_braked_and_expired_ones_are_not(house, origin):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    daemon = house(limits={"auth_failures": 3})
    good = key.sign(claims(origin.root))
    assert (await call(daemon, good)).status == 200
    for _ in range(6):
        assert (await call(daemon, key.sign(claims(origin.root, exp=1000)))).status == 401
    assert {(await call(daemon, key.sign(claims(origin.root, aud=f"x{number}")))).status for number in range(8)} == {401, 429}
    assert (await call(daemon, good)).status == 200
