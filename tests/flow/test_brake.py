"""The brake's memory: bounded, by address, and forgetful in time."""

import pytest

from proxyd.clock import Clock
from proxyd.errors import ProxyError
from proxyd.flow import brake
from proxyd.flow.brake import Brake


class Hands(Clock):
    """A clock that stands until it is set."""

    __slots__ = ("now",)

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


def braked(held, address, presented=b"x", most=3):
    try:
        held.check(address, presented, most)
    except ProxyError as error:
        return error.retry_after
    return None


def test_it_lets_go_with_time():
    clock = Hands()
    held = Brake(clock)
    for _ in range(3):
        assert braked(held, "192.0.2.1") is None
        held.failed("192.0.2.1", 3)
    assert braked(held, "192.0.2.1") == pytest.approx(20.0)
    clock.now += 20.0
    assert braked(held, "192.0.2.1") is None


def test_other_addresses_are_others_and_a_64_of_ipv6_is_one():
    held = Brake(Hands())
    for number in range(3):
        held.failed(f"2001:db8::{number}", 3)
    assert braked(held, "2001:db8::ffff") is not None
    assert braked(held, "2001:db8:0:1::1") is None
    assert braked(held, "192.0.2.1") is None


def test_who_got_in_from_an_address_is_known_there_only():
    held = Brake(Hands())
    held.succeeded("192.0.2.1", b"good")
    for address in ("192.0.2.1", "192.0.2.2"):
        for _ in range(3):
            held.failed(address, 3)
    assert braked(held, "192.0.2.1", b"good") is None
    assert braked(held, "192.0.2.2", b"good") is not None


def test_unix_sockets_and_no_end_are_never_braked():
    held = Brake(Hands())
    for _ in range(10):
        held.failed("", 3)
        held.failed("192.0.2.1", None)
    assert braked(held, "") is None
    assert braked(held, "192.0.2.1") is None


def test_its_memory_is_bounded():
    held = Brake(Hands())
    for number in range(brake.MOST + 50):
        held.failed(f"198.51.{number >> 8}.{number & 255}", 3)
        held.succeeded("192.0.2.1", b"%d" % number)
    assert len(held._levels) == len(held._known) == brake.MOST
