"""Where a listener stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080), True),
        ("127.9.9.9:1", Address("127.9.9.9", 1), True),
        ("localhost:0", Address("localhost", 0), True),
        ("[::1]:8080", Address("::1", 8080), True),
        ("[::ffff:127.0.0.1]:80", Address("::ffff:127.0.0.1", 80), True),
        ("unix:/run/x.sock", Address(path="/run/x.sock"), True),
        ("0.0.0.0:8080", Address("0.0.0.0", 8080), False),
        ("[::]:8080", Address("::", 8080), False),
        ("192.168.1.2:65535", Address("192.168.1.2", 65535), False),
        ("my-host.lan:80", Address("my-host.lan", 80), False),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80), False),
    ],
)
def test_an_address_is_read_and_known_to_be_near_or_far(text, address, loopback):
    assert parse_address(text) == address
    assert address.loopback is loopback


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8080",
        ":8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "1.2.3:80",
        "1.2.3.4.5:80",
        "::1:8080",
        "[::1]",
        "[::1]:",
        "[127.0.0.1]:80",
        "[x]:80",
        "a b:80",
        "-a:80",
        "unix:",
        "unix:x",
        "unix:/x/",
        "unix:/" + "x" * 107,
        "127.0.0.1:٨٠",
        "h:+80",
        "http://h:80",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=r"^(is|has) "):
        parse_address(text)


@pytest.mark.parametrize(
    ("one", "other", "collides"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "[::]:80", True),
        ("localhost:80", "[::1]:80", True),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        ("127.0.0.1:80", "192.168.0.1:80", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("unix:/a", "127.0.0.1:80", False),
    ],
)
def test_two_listeners_collide_either_way_round(one, other, collides):
    assert parse_address(one).collides(parse_address(other)) is collides
    assert parse_address(other).collides(parse_address(one)) is collides


@given(st.text() | st.from_regex(r"\[?[0-9a-f:.]*\]?:[0-9]*", fullmatch=True))
def test_any_text_is_an_address_or_refused(text):
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert 0 <= address.port <= 65535
    assert address.path or address.host
