"""When not to start."""

import msgspec
import pytest

from proxyd.config.safety import Made, refusals
from proxyd.config.schema import Auth, Config, Environment, Key, Ops

STRONG, WEAK = Key(name="a", key="0123456789abcdef"), Key(name="b", key="0123456789abcde")
NEAR, FAR, NOBODY = "127.0.0.1:8080", "0.0.0.0:8080", Auth()
DEV, TEST, STAGING, PRODUCTION = Environment


@pytest.mark.parametrize(
    ("environment", "auth", "listen", "count"),
    [
        (PRODUCTION, Auth(keys=(STRONG,)), FAR, 0),
        (PRODUCTION, Auth(keys=(STRONG, WEAK)), NEAR, 1),
        (STAGING, Auth(keys=(WEAK,)), NEAR, 1),
        (PRODUCTION, NOBODY, NEAR, 1),
        (STAGING, NOBODY, NEAR, 1),
        (PRODUCTION, NOBODY, FAR, 2),
        (PRODUCTION, None, NEAR, 1),
        (STAGING, None, FAR, 1),
        (DEV, NOBODY, NEAR, 0),
        (DEV, NOBODY, FAR, 1),
        (DEV, None, FAR, 0),
        (DEV, Auth(keys=(WEAK,)), FAR, 0),
        (TEST, NOBODY, NEAR, 0),
        (TEST, NOBODY, FAR, 1),
        (TEST, NOBODY, "unix:/run/x", 0),
    ],
)
def test_what_is_not_safe_is_refused(environment, auth, listen, count):
    config = Config(upstreams={}, models={}, environment=environment, auth=auth, listen=listen)
    assert len(refusals(config)) == count


def test_the_addresses_that_are_really_listened_on_count():
    """Systemd's sockets stand above the file's `listen`."""
    config = Config(upstreams={}, models={})
    assert refusals(config) == []
    assert len(refusals(config, [NEAR, FAR, "[::]:80"])) == 2
    assert refusals(msgspec.structs.replace(config, listen=FAR), [NEAR]) == []


def test_a_refusal_holds_no_key():
    config = Config(upstreams={}, models={}, environment=PRODUCTION, auth=Auth(keys=(WEAK,)))
    assert WEAK.key not in "".join(refusals(config))


def test_keys_of_the_database_count():
    config = Config(upstreams={}, models={}, environment=PRODUCTION, listen=FAR)
    assert len(refusals(config)) == 2
    assert refusals(config, made=Made(keys=1)) == []


@pytest.mark.parametrize(
    ("listen", "admin", "made", "count"),
    [
        ("0.0.0.0:9464", False, Made(), 1),
        ("0.0.0.0:9464", False, Made(keys=3), 1),
        ("0.0.0.0:9464", True, Made(), 0),
        ("0.0.0.0:9464", False, Made(keys=1, admins=1), 0),
        ("127.0.0.1:9464", False, Made(), 0),
        ("unix:/run/ops.sock", False, Made(), 0),
        (None, False, Made(), 0),
    ],
)
def test_an_operators_port_that_others_reach_needs_an_admin(listen, admin, made, count):
    key = Key(name="a", key="0123456789abcdef", admin=admin)
    config = Config(upstreams={}, models={}, ops=Ops(listen=listen), auth=Auth(keys=(key,)))
    assert len(refusals(config, made=made)) == count
