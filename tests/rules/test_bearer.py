"""Signed tokens: what holds, and every trick that has worked somewhere."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.schema import MOST, Allowance, Budget, Jwt
from proxyd.model import Limits, Per
from proxyd.rules import bearer
from proxyd.rules.bearer import Expired, Malformed, Refused, UnknownKey, judge, read_keys, read_token, verify
from tests.issuer import Key, claims, forged, key_set

ISSUER = "https://issuer.example.com"
RULE = Jwt(issuer=ISSUER, audience="proxyd")
RSA, EC, ED = Key("rsa", "RS256"), Key("ec", "ES256"), Key("ed", "EdDSA")
KEYS = read_keys(key_set(RSA, EC, ED))


def admitted(token: str, keys=KEYS, now: float | None = None, rule: Jwt = RULE):
    found = verify(read_token(token.encode()), keys)
    return judge(found, [rule], found["iat"] if now is None else now)


def refused(token: str, keys=KEYS, **more) -> str:
    with pytest.raises(Refused) as caught:
        admitted(token, keys, **more)
    return str(caught.value)


@pytest.mark.parametrize("key", [RSA, EC, ED, Key("e3", "ES384")], ids=lambda key: key.algorithm)
def test_a_token_of_each_accepted_kind_holds(key):
    said = claims(ISSUER)
    caller, expires = admitted(key.sign(said), read_keys(key_set(key)))
    assert caller.name == "user_1@issuer.example.com"
    assert (caller.models, caller.admin, bool(caller.limits)) == (("*",), False, False)
    assert expires == said["exp"]


# Algorithms and keys


@pytest.mark.parametrize("name", ["none", "None", "nOnE", "", "HS256", "HS512", "PS256", "ES256K", None, 5, ["RS256"]])
def test_an_algorithm_that_is_not_asymmetric_and_known_is_refused(name):
    assert "algorithm" in refused(forged({"alg": name, "kid": "rsa"}, claims(ISSUER), b"x"))


@pytest.mark.parametrize("name", ["HS256", "RS256"])
@pytest.mark.parametrize("form", [Encoding.PEM, Encoding.DER])
def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(name, form):
    public = RSA.private.public_key().public_bytes(form, PublicFormat.SubjectPublicKeyInfo)
    token = forged({"alg": name, "kid": "rsa"}, claims(ISSUER))
    signature = hmac.new(public, token.rstrip(".").encode(), hashlib.sha256).digest()
    refused(forged({"alg": name, "kid": "rsa"}, claims(ISSUER), signature))


@pytest.mark.parametrize("secret", [b"", b"secret", b"\0"])
def test_an_empty_or_short_secret_signs_nothing(secret):
    head = {"alg": "HS256"}
    token = forged(head, claims(ISSUER))
    refused(forged(head, claims(ISSUER), hmac.new(secret, token.rstrip(".").encode(), hashlib.sha256).digest()))


def test_a_key_that_the_token_brings_along_counts_for_nothing():
    own = Key("rsa", "RS256")
    assert "signature" in refused(own.sign(claims(ISSUER), jwk=own.jwk))
    assert "signature" in refused(own.sign(claims(ISSUER), jku="https://evil.example.com/keys", x5u="https://evil.example.com/cert"))
    assert "no key" in refused(Key("mine", "RS256").sign(claims(ISSUER), x5c=["MIIB"]))


def test_what_is_declared_critical_is_refused_as_nothing_is_understood():
    assert "extensions" in refused(RSA.sign(claims(ISSUER), crit=["exp"], exp=1))
    assert "extensions" in refused(forged({"alg": "RS256", "kid": "rsa", "b64": False, "crit": ["b64"]}, claims(ISSUER), b"x"))


def test_an_algorithm_of_another_kind_of_key_finds_no_key():
    with pytest.raises(UnknownKey):
        admitted(forged({"alg": "RS256", "kid": "ec"}, claims(ISSUER), b"x" * 64))


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "rsa", "alg": "HS256"},
        RSA.leaked,
        EC.leaked,
        ED.leaked,
        {**RSA.jwk, "use": "enc"},
        {**RSA.jwk, "key_ops": ["sign"]},
        {**RSA.jwk, "alg": "RSA-OAEP"},
        {**RSA.jwk, "n": "AQAB"},
        {**RSA.jwk, "n": 5},
        {**RSA.jwk, "kid": 5},
        {**EC.jwk, "crv": "secp256k1"},
        {**EC.jwk, "crv": "P-384"},
        {"kty": "RSA"},
        {"kty": ["RSA"]},
        {},
    ],
    ids=str,
)
def test_a_key_that_is_not_for_verifying_is_left_out(jwk):
    assert read_keys(key_set(jwk)) == ()


def test_a_weak_key_is_left_out():
    weak = Key("weak", "RS256")
    weak.private = rsa.generate_private_key(65537, 1024)
    assert read_keys(key_set(weak)) == ()


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"keys": 5}', b"<html>", b"\xff"])
def test_what_is_no_key_set_is_told(document):
    with pytest.raises(ValueError):
        read_keys(document)


def test_two_keys_of_one_name_are_both_the_issuers():
    first, second, stranger = Key("same"), Key("same"), Key("same")
    keys = read_keys(key_set(first, second))
    assert admitted(first.sign(claims(ISSUER)), keys)
    assert admitted(second.sign(claims(ISSUER)), keys)
    assert "signature" in refused(stranger.sign(claims(ISSUER)), keys)


def test_a_token_without_the_name_of_its_key_holds_only_where_there_is_one():
    nameless = Key(None)
    assert admitted(nameless.sign(claims(ISSUER)), read_keys(key_set(nameless)))
    assert "which of" in refused(nameless.sign(claims(ISSUER)), read_keys(key_set(nameless, Key("other"))))


def test_a_changed_token_is_refused():
    head, body, signature = EC.sign(claims(ISSUER)).split(".")
    other = EC.sign(claims(ISSUER, sub="root")).split(".")[1]
    assert "signature" in refused(f"{head}.{other}.{signature}")
    assert "signature" in refused(f"{head}.{body}.{'A' * len(signature)}")


# Claims


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"exp": None}, "never expires"),
        ({"exp": "tomorrow"}, "no time"),
        ({"exp": True}, "no time"),
        ({"exp": 1}, "expired"),
        ({"nbf": 9_999_999_999}, "not hold yet"),
        ({"aud": None}, "audience"),
        ({"aud": "other"}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": ["a", "b"]}, "audience"),
        ({"aud": {"proxyd": 1}}, "audience"),
        ({"aud": "proxydx"}, "audience"),
        ({"sub": None}, "caller"),
        ({"sub": ""}, "caller"),
        ({"sub": 5}, "caller"),
        ({"sub": "a\nb"}, "caller"),
        ({"sub": "x" * 201}, "caller"),
        ({"iss": "https://issuer.example.com/"}, "audience"),
    ],
    ids=str,
)
def test_a_claim_that_does_not_hold_is_refused(more, why):
    token = EC.sign(claims(ISSUER, **more))
    with pytest.raises(Refused, match=why):
        judge(verify(read_token(token.encode()), KEYS), [RULE], claims(ISSUER)["iat"])


def test_one_of_several_audiences_is_enough():
    assert admitted(EC.sign(claims(ISSUER, aud=["account", "proxyd"])))


def test_clocks_may_differ_by_a_minute():
    said = claims(ISSUER)
    token = EC.sign(said)
    assert admitted(token, now=said["exp"] + 59)
    with pytest.raises(Expired):
        admitted(token, now=said["exp"] + 60)
    assert admitted(token, now=said["nbf"] - 59)
    assert "in the future" in refused(token, now=said["iat"] - 61.5) or "not hold" in refused(token, now=said["iat"] - 61.5)


# What a token allows


def test_a_keycloak_token_names_its_models_and_its_admins_by_paths():
    rule = Jwt(
        issuer="https://kc.example.com/realms/main",
        audience="proxyd",
        name="main",
        caller="preferred_username",
        models_claim="resource_access.proxyd.roles",
        admin_claim="realm_access.roles=proxyd-admin",
        limits=Allowance(rpm=5),
    )
    said = claims(
        rule.issuer,
        aud=["proxyd", "account"],
        typ="Bearer",
        azp="app",
        preferred_username="ada",
        realm_access={"roles": ["offline_access", "proxyd-admin"]},
        resource_access={"proxyd": {"roles": ["gpt-4o*", "llama3.2"]}},
    )
    caller, _ = admitted(RSA.sign(said), rule=rule)
    assert (caller.name, caller.models, caller.admin, caller.limits) == ("ada@main", ("gpt-4o*", "llama3.2"), True, Limits(rpm=5))
    caller, _ = admitted(RSA.sign({**said, "realm_access": {}, "resource_access": []}), rule=rule)
    assert (caller.models, caller.admin) == ((), False)


def test_a_claim_may_have_dots_in_its_name_and_words_in_one_text():
    rule = Jwt(issuer=ISSUER, audience="proxyd", models_claim="https://example.com/models", admin_claim="scope=admin")
    caller, _ = admitted(EC.sign(claims(ISSUER, **{"https://example.com/models": ["a"], "scope": "read admin"})), rule=rule)
    assert (caller.models, caller.admin) == (("a",), True)
    caller, _ = admitted(EC.sign(claims(ISSUER, scope="administrator")), rule=rule)
    assert (caller.models, caller.admin) == ((), False)


@pytest.mark.parametrize(
    ("said", "limits"),
    [
        ({"rpm": 60, "tpm": MOST, "concurrency": 1}, Limits(60, MOST, 1)),
        ({"rpm": 60}, Limits(60, 1000)),
        ({}, Limits(None, 1000)),
        (None, Limits(None, 1000)),
    ],
)
def test_limits_come_from_a_claim_as_far_as_it_says_them(said, limits):
    rule = Jwt(issuer=ISSUER, audience="proxyd", limits_claim="app.limits", limits=Allowance(tpm=1000))
    assert admitted(EC.sign(claims(ISSUER, app={"limits": said})), rule=rule)[0].limits == limits


@pytest.mark.parametrize("amount", [0, -1, MOST + 1, 10**30, 1.0, 1.5, "60", True, None, [1], {}])
def test_a_limit_that_is_no_whole_number_from_one_up_is_refused(amount):
    rule = Jwt(issuer=ISSUER, audience="proxyd", limits_claim="limits", limits=Allowance(tpm=1000))
    with pytest.raises(Malformed, match="in its claim limits, rpm is no whole number"):
        admitted(EC.sign(claims(ISSUER, limits={"rpm": amount})), rule=rule)


@pytest.mark.parametrize("said", [5, "60", [], ["rpm"], True, {"rmp": 60}, {"rpm": 60, "budget": 5}])
def test_limits_that_are_no_object_of_the_known_ones_are_refused(said):
    rule = Jwt(issuer=ISSUER, audience="proxyd", limits_claim="limits")
    with pytest.raises(Malformed, match="its claim limits is no object of concurrency, rpm, tpm"):
        admitted(EC.sign(claims(ISSUER, limits=said)), rule=rule)


def test_the_budget_of_an_issuer_is_each_caller_s():
    rule = Jwt(issuer=ISSUER, audience="proxyd", budget=Budget(amount=2.5, currency="eur", per=Per.DAY))
    budget = admitted(EC.sign(claims(ISSUER)), rule=rule)[0].budget
    assert budget is not None
    assert (budget.amount, budget.unit, budget.per) == (2_500_000_000, "EUR", "day")


# Form


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"a.b",
        b"a.b.c.d",
        b"ey.ey.",
        b"eyJ.eyJ.x",
        forged([], {}, b"x").encode(),
        forged({"alg": "RS256"}, [], b"x").encode(),
        forged(b'{"alg":"none","alg":"RS256"}', {"iss": "a"}, b"x").encode(),
        forged({"alg": "RS256"}, b'{"iss":"a","iss":"b"}', b"x").encode(),
        forged({"alg": "RS256"}, {}, b"x").encode(),
        forged({"alg": "RS256", "kid": 5}, {"iss": "a"}, b"x").encode(),
        forged({"alg": "RS256"}, {"iss": ["a"]}, b"x").encode(),
        forged({"alg": "RS256"}, b"[" * 9000, b"x").encode(),
        b"e" * 20_000,
        EC.sign(claims(ISSUER)).encode() + b"=",
        EC.sign(claims(ISSUER)).encode() + b"\n",
    ],
)
def test_what_is_no_token_is_refused(token):
    with pytest.raises(Refused):
        read_token(token)


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=90))
def test_any_bytes_are_refused_and_nothing_else_is_raised(head, body, signature):
    token = forged(head, body, signature).encode()
    with pytest.raises(Refused):
        verify(read_token(token), KEYS)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["exp", "aud", "sub", "iss", "nbf", "a"]), inner),
    )
)
def test_any_claims_are_judged(found):
    said = found if isinstance(found, dict) else {"exp": found, "sub": found, "aud": found}
    with pytest.raises(Refused):
        judge(json.loads(json.dumps({**said, "iss": "other"})), [RULE], 0.0)


def test_only_what_looks_signed_is_taken_for_a_token():
    assert bearer.looks_signed(EC.sign(claims(ISSUER)).encode())
    assert not bearer.looks_signed(b"pxd_0123456789")
    assert not bearer.looks_signed(b"sk.or.v1")
