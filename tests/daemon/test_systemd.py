"""What systemd is told and what it hands over, with real datagrams, real descriptors, and the shipped units under its own analysis."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.schema import Streams
from proxyd.daemon.systemd import Notifier, listen_fds, watchdog_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNITS = Path(__file__).parent.parent.parent / "systemd"

PID = str(os.getpid())


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[tuple[socket.socket, Notifier]]:
    """The manager's end of NOTIFY_SOCKET, and a notifier that knows it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        yield manager, notifier
        notifier.close()


class TestNotifier:
    def test_each_message_is_one_datagram(self, supervisor: tuple[socket.socket, Notifier]) -> None:
        manager, notifier = supervisor
        messages: tuple[tuple[Callable[[], bool], bytes], ...] = (
            (lambda: notifier.ready("listening"), b"READY=1\nSTATUS=listening"),
            (notifier.ready, b"READY=1"),
            (lambda: notifier.reloading(1_234_567), b"RELOADING=1\nMONOTONIC_USEC=1234567"),
            (lambda: notifier.reloading(7, "reading"), b"RELOADING=1\nMONOTONIC_USEC=7\nSTATUS=reading"),
            (lambda: notifier.stopping("3 streams"), b"STOPPING=1\nSTATUS=3 streams"),
            (notifier.watchdog, b"WATCHDOG=1"),
            (lambda: notifier.status("12 streams"), b"STATUS=12 streams"),
            (lambda: notifier.extend_timeout(1.5), b"EXTEND_TIMEOUT_USEC=1500000"),
        )
        for tell, said in messages:
            assert tell() is True
            assert manager.recv(4096) == said

    def test_an_abstract_socket_is_reached(self) -> None:
        name = f"proxyd-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("\0" + name)
            manager.settimeout(10)
            notifier = Notifier({"NOTIFY_SOCKET": "@" + name})
            assert notifier.ready()
            assert manager.recv(100) == b"READY=1"
            notifier.close()

    def test_without_a_supervisor_nothing_happens(self) -> None:
        notifier = Notifier({})
        assert [notifier.ready(), notifier.reloading(1), notifier.stopping(), notifier.watchdog(), notifier.status("x")] == [False] * 5
        notifier.close()

    @pytest.mark.parametrize("address", ["vsock:2:1234", "/nowhere/notify", "relative", "/" + "x" * 200, "@" + "x" * 200])
    def test_a_supervisor_that_cannot_be_reached_stops_nothing(self, address: str, caplog: pytest.LogCaptureFixture) -> None:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        assert notifier.ready() is False
        assert "NOTIFY_SOCKET" in caplog.text
        notifier.close()

    def test_a_supervisor_that_went_away_stops_nothing(self, supervisor: tuple[socket.socket, Notifier]) -> None:
        manager, notifier = supervisor
        manager.close()
        assert notifier.ready() is False
        assert notifier.watchdog() is False

    def test_the_watchdog_never_waits_for_a_full_queue(self, supervisor: tuple[socket.socket, Notifier]) -> None:
        _, notifier = supervisor
        assert any(not notifier.watchdog() for _ in range(10_000)), "nobody reads: were it to wait, this would never end"

    @given(st.text())
    def test_no_status_can_become_another_variable(self, text: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs:
            notifier = Notifier({})
            notifier._socket = ours
            assert notifier.status(text)
            said = theirs.recv(65536)
            assert said.startswith(b"STATUS=")
            assert b"\n" not in said

    def test_closed_it_is_silent(self, supervisor: tuple[socket.socket, Notifier]) -> None:
        _, notifier = supervisor
        notifier.close()
        assert notifier.ready() is False
        notifier.close()


class TestWatchdog:
    def test_it_is_fed_twice_as_often_as_it_bites(self) -> None:
        assert watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": PID}) == 15.0
        assert watchdog_interval({"WATCHDOG_USEC": "30000000"}) == 15.0

    def test_it_is_off_when_unset_or_meant_for_another_process(self) -> None:
        assert watchdog_interval({}) is None
        assert watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None

    @pytest.mark.parametrize("value", ["0", "-1", "soon", "1e6", "²"])
    def test_nonsense_is_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match="WATCHDOG_USEC"):
            watchdog_interval({"WATCHDOG_USEC": value})


CHILD = """
import fcntl, json, os, sys
from proxyd.daemon.systemd import listen_fds
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 50) for fd in sys.argv[2:]]
for at, fd in enumerate(high, 3):
    os.dup2(fd, at, inheritable=True)
pid = os.getpid() if sys.argv[1] == "mine" else os.getpid() + 1
try:
    taken = listen_fds({**os.environ, "LISTEN_PID": str(pid)})
except ValueError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps({name: [one.fileno(), one.getsockname(), one.get_inheritable()] for name, one in taken.items()}))
    sys.stdout.flush()
    for one in taken.values():
        one.accept()[0].sendall(b"served by fd %d" % one.fileno())
"""


def listener() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


def hand_over(sockets: list[socket.socket], whose: str = "mine", **environ: str) -> subprocess.Popen[str]:
    fds = [one.fileno() for one in sockets]
    command = [sys.executable, "-c", CHILD, whose, *map(str, fds)]
    return subprocess.Popen(command, pass_fds=fds, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True)


def told(child: subprocess.Popen[str]) -> object:
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return json.loads(out)


class TestListenFds:
    def test_a_child_serves_on_the_sockets_it_inherited_by_their_names(self) -> None:
        with listener() as clients, listener() as ops:
            child = hand_over([clients, ops], LISTEN_FDS="2", LISTEN_FDNAMES="clients:ops")
            for fd, one in ((3, clients), (4, ops)):
                with socket.create_connection(one.getsockname(), timeout=60) as connection:
                    assert connection.recv(100) == b"served by fd %d" % fd
            assert told(child) == {"clients": [3, list(clients.getsockname()), False], "ops": [4, list(ops.getsockname()), False]}

    def test_a_child_leaves_alone_what_was_meant_for_another_process(self) -> None:
        with listener() as clients:
            assert told(hand_over([clients], "another's", LISTEN_FDS="1", LISTEN_FDNAMES="clients")) == {}

    def test_a_socket_without_a_name_is_unknown(self) -> None:
        with listener() as clients:
            child = hand_over([clients], LISTEN_FDS="1")
            socket.create_connection(clients.getsockname(), timeout=60).close()
            assert list(told(child)) == ["unknown"]  # type: ignore[call-overload]

    def test_a_datagram_or_a_deaf_socket_is_refused_by_name(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram, socket.socket() as deaf:
            for wrong in (datagram, deaf):
                message = told(hand_over([wrong], LISTEN_FDS="1", LISTEN_FDNAMES="clients"))
                assert message == "descriptor 3 ('clients') that was handed over does not listen for streams"

    def test_a_descriptor_that_is_no_socket_is_refused(self) -> None:
        message = told(hand_over([], LISTEN_FDS="60", LISTEN_FDNAMES=":".join(f"n{n}" for n in range(60))))
        assert "is no socket" in str(message)

    def test_two_sockets_of_one_name_are_refused_rather_than_one_left_deaf(self) -> None:
        with listener() as one, listener() as two:
            assert "FileDescriptorName" in str(told(hand_over([one, two], LISTEN_FDS="2", LISTEN_FDNAMES="http:http")))

    @pytest.mark.parametrize(("count", "names"), [("two", None), ("2", "one"), ("-1", None), ("9999", None)])
    def test_nonsense_is_refused(self, count: str, names: str | None) -> None:
        environ = {"LISTEN_PID": PID, "LISTEN_FDS": count} | ({"LISTEN_FDNAMES": names} if names else {})
        with pytest.raises(ValueError, match="LISTEN_FD"):
            listen_fds(environ)

    def test_without_systemd_there_are_none(self) -> None:
        assert listen_fds({}) == {}
        assert listen_fds({"LISTEN_PID": PID}) == {}

    @pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not installed")
    def test_systemds_own_tool_hands_over_what_is_understood(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        program = (
            "import os; from proxyd.daemon.systemd import listen_fds\n"
            "(name, one), = listen_fds(os.environ).items()\n"
            "one.accept()[0].sendall(name.encode())"
        )
        command = ["systemd-socket-activate", "-l", str(path), "--fdname=clients", sys.executable, "-c", program]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(60)
                for _ in range(1500):  # until it is bound, and then until it listens
                    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                        client.connect(str(path))
                        break
                    time.sleep(0.02)
                assert client.recv(100) == b"clients"
            assert child.wait(60) == 0
        finally:
            child.kill()
            child.wait()


def seconds(text: str) -> float:
    return float(re.fullmatch(r"(\d+)s?", text)[1])  # type: ignore[index]


def setting(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)


class TestUnits:
    """The files that an operator copies to /etc/systemd/system."""

    @pytest.fixture
    def installed(self, tmp_path: Path) -> Path:
        """The units, with a program that exists here in the place of the one that exists there."""
        for unit in ("proxyd.service", "proxyd.socket"):
            text = (UNITS / unit).read_text()
            (tmp_path / unit).write_text(re.sub(r"/opt/proxyd/bin/proxyd", shutil.which("true") or "/bin/true", text))
        return tmp_path

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
    def test_systemd_finds_no_fault_with_them(self, installed: Path) -> None:
        for unit in ("proxyd.service", "proxyd.socket"):
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", str(installed / unit)], capture_output=True, text=True, check=False
            )
            faults = [line for line in done.stderr.splitlines() if "proxyd" in line]
            assert faults == []
            assert done.returncode == 0, done.stderr

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
    def test_the_service_is_exposed_to_no_more_than_1_5(self, installed: Path) -> None:
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(installed / "proxyd.service")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()

    def test_a_stop_leaves_time_to_drain(self) -> None:
        assert seconds(setting("proxyd.service", "TimeoutStopSec")[0]) > Streams().drain + 30

    def test_the_daemon_is_told_of_reloads_by_the_signal_it_knows(self) -> None:
        assert setting("proxyd.service", "ExecReload")[-1] == "/bin/kill -HUP $MAINPID"
        assert setting("proxyd.service", "Type") == ["notify"], "Debian 12 has no notify-reload, and falls back to simple"

    def test_the_socket_hands_over_under_the_name_that_is_served(self) -> None:
        assert setting("proxyd.socket", "FileDescriptorName") == ["clients"]
