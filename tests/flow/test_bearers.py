"""Keys of issuers over time: rotated, withdrawn, out of reach. A real key set over a real socket; only the clock is turned by hand."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from proxyd.config.schema import Jwt
from proxyd.errors import ProxyError
from proxyd.flow import bearers
from proxyd.flow.bearers import Bearers
from tests.e2e.client import happens
from tests.issuer import Key, claims, key_set
from tests.origin import Gate, whole


@dataclass
class Clock:
    ahead: float = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def now_us(self) -> int:
        return time.time_ns() // 1000 + int(self.ahead * 1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def found(origin, clock):
    """Find callers; what was spawned is waited for."""
    tasks: list[asyncio.Task] = []
    rules = (Jwt(issuer=origin.root, audience="proxyd", jwks_url=f"{origin.root}/keys", name="it"),)

    def spawn(work):
        tasks.append(asyncio.get_running_loop().create_task(work))
        return tasks[-1]

    own = Bearers(clock, spawn)

    async def find(key: Key | str, rules=rules, **more) -> str:
        token = key if isinstance(key, str) else key.sign(claims(origin.root, exp=int(time.time()) + 1_000_000, **more))
        try:
            caller = await own.find(token.encode(), rules)
            return "invalid_api_key" if caller is None else caller.name
        except ProxyError as error:
            return error.code
        finally:
            await asyncio.gather(*tasks)

    find.bearers = own
    find.rules = rules
    return find


async def test_keys_are_rotated_and_what_a_withdrawn_one_has_signed_is_believed_no_longer(origin, clock, found):
    old, new = Key("old"), Key("new")
    origin.on("/keys", whole(key_set(old)), whole(key_set(old, new)), whole(key_set(new)))
    token = old.sign(claims(origin.root, exp=int(time.time()) + 1_000_000))
    assert await found(token) == "user_1@it"
    assert await found(new) == "user_1@it"  # however soon after the first fetch
    assert await found(token) == "user_1@it"
    clock.ahead += bearers.FRESH
    assert await found(old) == "user_1@it"  # verified by what is there; the new set comes meanwhile
    assert await found(token) == "invalid_api_key"
    assert len(origin.requests) == 4  # the withdrawn key is looked for once more


async def test_keys_that_cannot_be_fetched_again_are_believed_for_a_day(origin, clock, found):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)), whole(b"", status=500))
    assert await found(key) == "user_1@it"
    clock.ahead += bearers.FRESH
    assert await found(key, sub="again") == "again@it"
    clock.ahead += bearers.STALE
    assert await found(key, sub="late") == "auth_unavailable"


async def test_an_issuer_that_comes_up_late_is_asked_again_soon(origin, clock, found):
    key = Key("k")
    origin.on("/keys", whole(b"", status=500), whole(key_set(key)))
    assert await found(key) == "auth_unavailable"
    assert await found(key) == "auth_unavailable"
    assert len(origin.requests) == 1
    clock.ahead += bearers.AGAIN_EMPTY
    assert await found(key) == "user_1@it"


async def test_a_token_is_remembered_until_it_expires_and_no_longer(origin, clock, found):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    token = key.sign(claims(origin.root))
    assert await found(token) == "user_1@it"
    clock.ahead += 300 + 59
    assert await found(token) == "user_1@it"  # within the skew, verified anew
    clock.ahead += 2
    assert await found(token) == "invalid_api_key"


async def test_what_is_remembered_is_bounded_and_goes_with_the_rules(origin, clock, found, monkeypatch):
    monkeypatch.setattr(bearers, "KEPT", 3)
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    for number in range(6):
        assert await found(key, sub=f"u{number}") == f"u{number}@it"
    assert len(found.bearers._verified) == 3
    token = key.sign(claims(origin.root))
    assert await found(token) == "user_1@it"
    other = (Jwt(issuer=origin.root, audience="somebody-else", jwks_url=f"{origin.root}/keys"),)
    assert await found(token, rules=other) == "invalid_api_key"
    assert await found(token) == "user_1@it"


async def test_a_client_that_leaves_takes_nobodys_keys_away(origin, found):
    key = Key("k")
    origin.on("/keys", [0.1, *whole(key_set(key))])
    token = key.sign(claims(origin.root)).encode()
    first = asyncio.get_running_loop().create_task(found.bearers.find(token, found.rules))
    await asyncio.sleep(0)
    second = asyncio.get_running_loop().create_task(found.bearers.find(token, found.rules))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).name == "user_1@it"


async def test_each_audience_of_an_issuer_has_its_own_rule(origin, found):
    key = Key("k")
    origin.on("/keys", whole(key_set(key)))
    url = f"{origin.root}/keys"
    rules = tuple(Jwt(issuer=origin.root, audience=name, jwks_url=url, name=name) for name in ("one", "two"))
    assert await found(key, rules=rules, aud=["x", "two"]) == "user_1@two"
    assert await found(key, rules=rules, aud="one") == "user_1@one"
    assert await found(key, rules=rules, aud="three") == "invalid_api_key"


async def test_what_old_rules_let_in_is_not_remembered_under_new_ones(origin, found):
    """The rules change while the keys are fetched."""
    key, gate = Key("k"), Gate()
    origin.on("/keys", [gate, *whole(key_set(key))])
    token = key.sign(claims(origin.root))
    waiting = asyncio.get_running_loop().create_task(found(token))
    await happens(gate.reached)
    other = (Jwt(issuer="https://elsewhere.example", audience="somebody-else", jwks_url=f"{origin.root}/keys"),)
    assert await found.bearers.find(token.encode(), other) is None
    gate.open()
    assert await waiting == "user_1@it"  # it came before the change
    assert await found.bearers.find(token.encode(), other) is None
