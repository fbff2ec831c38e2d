"""`tidegate top`: the plain table, and the view on a terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import urllib.request

import pytest
from conftest import BINARY
from load import Load


def once(running, **env):
    ran = subprocess.run(
        [BINARY, "top", "--once"], capture_output=True, text=True, timeout=30, env={"TIDEGATE_ADMIN": running.admin} | env
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_once_prints_a_plain_table_with_the_numbers_of_the_metrics(stack):
    running = stack(["--latency", "2m", "--ceiling", "4"], ["--ceiling", "4"])
    assert "Healthy: idle" in once(running) and "No account has been seen yet" in once(running)
    load = Load(running.base, 9)
    until = time.monotonic() + 60
    page = ""
    while not re.search(r"^tidegate_queue_depth{.*} 5$", page, re.M):
        assert time.monotonic() < until, "five wait"
        time.sleep(0.1)
        page = urllib.request.urlopen(f"{running.admin}/metrics").read().decode()
    table = once(running)
    load.end()
    lines = table.splitlines()
    assert lines[0].endswith(": Working at the ceiling") and "\x1b" not in table
    assert lines[1].startswith("4 in flight, 5 waiting; 9 client and ")
    row = next(line for line in lines if line.startswith("127.0.0.1 "))
    assert row.split()[2:6] == ["4", "4", "4", "5"] and row.endswith("the ceiling: 4 of 4 in flight; 5 waiting")


class Terminal:
    """A pseudo-terminal with our program on it."""

    def __init__(self, *args, rows=40, columns=150, **env):
        pid, self.master = pty.fork()
        if pid == 0:
            os.execve(BINARY, [str(BINARY), *args], {"TERM": "xterm-256color"} | env)
        self.pid, self.seen = pid, ""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, *words):
        end = time.monotonic() + 60
        # Blanks are not drawn where there were some already.
        while not all(word.replace(" ", "") in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]| ", "", self.seen) for word in words):
            assert time.monotonic() < end, (words, self.seen[-2000:])
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")

    def press(self, keys):
        os.write(self.master, keys.encode())

    def ended(self):
        end = time.monotonic() + 60
        while True:
            try:
                if select.select([self.master], [], [], 0.2)[0]:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError:
                pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, "it does not end"


def test_on_a_terminal_it_is_drawn_and_the_terminal_is_given_back(stack):
    running = stack(["--ceiling", "4", "--latency", "200ms"])
    load = Load(running.base, 12)
    until = time.monotonic() + 60
    # So that the first picture, which is drawn in full, shows it at work.
    while "Working at" not in once(running):
        assert time.monotonic() < until, "it works"
    terminal = Terminal("top", "--admin", running.admin)
    terminal.until("Accounts", "in flight", "refusals/s", "Recent events", "q quit", "all accounts")
    assert "\x1b[?1049h" in terminal.seen, "a screen of its own"
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.seen), "colours"
    terminal.seen = ""
    terminal.press("\x1b[B")
    # The chosen account's past, and its row reversed.
    terminal.until("127.0.0.1")
    assert "\x1b[7m" in terminal.seen
    terminal.press("q")
    assert terminal.ended() == 0
    assert "\x1b[?1049l" in terminal.seen, "the screen from before is back"
    load.end()


def test_without_colours_where_they_are_not_wanted(stack):
    running = stack(["--ceiling", "4"])
    terminal = Terminal("top", "--admin", running.admin, NO_COLOR="1")
    terminal.until("Healthy: idle", "No account has been seen yet")
    terminal.press("\x03")
    assert terminal.ended() == 0
    colours = {code for codes in re.findall(r"\x1b\[([0-9;]*)m", terminal.seen) for code in codes.split(";")}
    assert not colours & {str(code) for code in [*range(30, 38), *range(90, 98), 38]}, colours


def test_a_signal_gives_the_terminal_back(stack):
    running = stack(["--ceiling", "4"])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        terminal = Terminal("top", "--admin", running.admin)
        terminal.until("Healthy: idle", "No account has been seen yet")
        os.kill(terminal.pid, number)
        assert terminal.ended() == 0, number
        assert "\x1b[?1049l" in terminal.seen and "\x1b[?25h" in terminal.seen, number


def test_a_port_that_hangs_keeps_nobody(stack):
    running = stack(["--ceiling", "4"])
    terminal = Terminal("top", "--admin", running.admin)
    terminal.until("Healthy: idle")
    os.kill(running.proxy.process.pid, signal.SIGSTOP)
    try:
        # By now it has asked, and has no answer.
        time.sleep(1.5)
        terminal.press("q")
        assert terminal.ended() == 0
        assert "\x1b[?1049l" in terminal.seen and "did not answer" not in terminal.seen
    finally:
        os.kill(running.proxy.process.pid, signal.SIGCONT)


def test_a_terminal_that_takes_no_escapes_gets_none(stack):
    running = stack(["--ceiling", "4"])
    terminal = Terminal("top", "--admin", running.admin, TERM="dumb")
    assert terminal.ended() == 1
    assert "--once prints a plain table" in terminal.seen and "\x1b" not in terminal.seen
    terminal = Terminal("--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--admin", "off", TERM="dumb")
    terminal.until("tidegate ready")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.ended() == 0 and "\x1b" not in terminal.seen, terminal.seen


def test_it_ends_where_the_terminal_goes_away(stack):
    running = stack()
    terminal = Terminal("top", "--admin", running.admin)
    terminal.until("q quit")
    os.close(terminal.master)
    end = time.monotonic() + 60
    while not os.waitpid(terminal.pid, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(terminal.pid, signal.SIGKILL)
            pytest.fail("it goes on without a terminal")
        time.sleep(0.05)


def test_nobody_to_ask_is_one_line():
    for args, code, words in [
        (["--admin", "http://127.0.0.1:1"], 1, "cannot connect to http://127.0.0.1:1 ("),
        (["--admin", "nonsense"], 2, '"nonsense" is no admin port; name it like http://127.0.0.1:9090'),
    ]:
        ran = subprocess.run([BINARY, "top", "--once", *args], capture_output=True, text=True, timeout=30)
        assert ran.returncode == code and ran.stdout == ""
        assert ran.stderr.startswith(f"tidegate: top: {words}") and ran.stderr.count("\n") == 1
