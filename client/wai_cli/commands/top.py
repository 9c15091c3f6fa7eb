"""`wai top`: show the relay's nodes and requests on a screen that refreshes itself.

This module handles the terminal: keys, size, colours, and restoring it. `top_view` renders the
lines from the state in `live_state`, which `live_feed` keeps up to date.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import termios
import time
import tty
from types import FrameType, TracebackType
from typing import Any, Final

from wai_cli.client.admin_client import AdminClient
from wai_cli.client.live_feed import FeedConnected, FeedThread, Lost, read_feed
from wai_cli.client.live_state import LiveState
from wai_cli.client.target import add_target_options, find_target
from wai_cli.output.tables import print_json
from wai_cli.output.top_view import Screen, render
from wai_protocol.errors import RequestError, TransportError, WaiError

DEFAULT_INTERVAL_S: Final = 1.0
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600.0
PLAIN_COLUMNS: Final = 160  # width of a snapshot into a file or pipe
FALLBACK_COLUMNS, FALLBACK_LINES = 80, 24  # for terminals that report a size of 0
_QUIT: Final = frozenset(b"qQ\x04")  # and Ctrl-D
_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_EXAMPLES: Final = """\
examples:
  wai top                                    q quits
  wai top --interval 5 --relay https://relay.example --token-file admin.token
  wai top --json | jq .pulse.tokens_per_s    one snapshot, for scripts

Into a file or a pipe it prints one snapshot and exits. NO_COLOR=1 switches colours off."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai top`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--json", action="store_true", help="print one snapshot as JSON and exit")
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=float,
        default=DEFAULT_INTERVAL_S,
        help="seconds between two drawings (default: 1)",
    )
    add_target_options(parser)
    parser.set_defaults(run=_top)


def _top(parsed: argparse.Namespace) -> int:
    if not MIN_INTERVAL_S <= parsed.interval <= MAX_INTERVAL_S:
        raise RequestError(f"--interval is {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g} seconds")
    if parsed.json or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return _print_snapshot(parsed)
    find_target(parsed)  # wrong options are reported before the screen is taken
    top = _Top(FeedThread(lambda: find_target(parsed)), parsed.interval)
    with _Terminal(top.feed):
        end = top.run()
    if end is not None:
        raise end
    return 0


def _print_snapshot(parsed: argparse.Namespace) -> int:
    state, title = LiveState(), ""
    target = find_target(parsed)
    for update in read_feed(target):
        if isinstance(update, FeedConnected):
            state.clock_ahead_s = update.clock_ahead_s
            title = _title(update)
        else:
            state.apply(update.name, update.value)
        if state.whole:
            break
    else:
        raise TransportError("the relay ended its feed at once; it may be stopping: try again")
    with AdminClient(target) as admin:  # a feed that has just begun may lack some
        deployed = admin.get("/deployments")["data"]
    state.apply("deployments", {"full": True, "set": deployed})
    if parsed.json:
        print_json(state.as_json(time.time()))
    else:
        for line in render(state, time.time(), Screen(PLAIN_COLUMNS), title=title):
            print(line)
    return 0


class _Top:
    """The loop: waits for keys, events and the next drawing."""

    def __init__(self, feed: FeedThread, interval_s: float) -> None:
        self.feed = feed
        self._interval_s = interval_s
        self._state = LiveState()
        self._title = "wai top"
        self._note = "connecting to the relay"

    def run(self) -> WaiError | None:
        """Run until the user quits or an error ends it; return that error, else None."""
        keys = [sys.stdin] if sys.stdin.isatty() else []
        due = 0.0
        while True:
            if (now := time.monotonic()) >= due:
                self._draw()
                due = now + self._interval_s
            ready, _, _ = select.select([self.feed, *keys], [], [], max(0.0, due - now))
            if sys.stdin in ready:
                pressed = os.read(sys.stdin.fileno(), 1024)
                if not pressed or _QUIT & set(pressed):
                    return None
            if self.feed in ready:
                known = self._state.whole
                for update in self.feed.take():
                    if isinstance(update, Lost):
                        due = 0.0
                        if update.fatal:
                            return TransportError(update.why)
                        self._note = f"trying again, what is shown is old: {update.why}"
                    elif isinstance(update, FeedConnected):
                        self._state = LiveState(clock_ahead_s=update.clock_ahead_s)
                        self._title, self._note, known = _title(update), "", False
                    else:
                        self._state.apply(update.name, update.value)
                if _Terminal.resized or (self._state.whole and not known):
                    due = 0.0
                    _Terminal.resized = False

    def _draw(self) -> None:
        screen = Screen(*_size(), colour=not os.environ.get("NO_COLOR"))
        clock = time.strftime("%H:%M:%S")
        title = f"{self._title}   {clock}   q quits"
        lines = render(self._state, time.time(), screen, title=title, note=self._note)
        text = "\r\n".join(line + "\x1b[K" for line in lines)
        sys.stdout.write(f"\x1b[H{text}\x1b[J")
        sys.stdout.flush()


class _Terminal:
    """Context manager for the terminal: single keys and the alternate screen.

    The terminal is restored at the end, whatever the reason, and while Ctrl-Z stops the process.
    """

    resized = False

    def __init__(self, feed: FeedThread) -> None:
        self._feed = feed
        self._saved: list[Any] | None = None
        self._wakeup = -1
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _Terminal:
        # A signal just before `select` would only be handled after it; this byte ends `select`.
        self._wakeup = signal.set_wakeup_fd(self._feed.wakeup, warn_on_full_buffer=False)
        for number, handler in (
            (signal.SIGWINCH, self._on_resize),
            (signal.SIGTERM, self._on_end),
            (signal.SIGHUP, self._on_end),
            (signal.SIGTSTP, self._on_stop),
        ):
            self._handlers[number] = signal.signal(number, handler)
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)

    def _take(self) -> None:
        if sys.stdin.isatty():
            self._saved = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    def _give_back(self) -> None:
        try:
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
            if self._saved is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)
        except (OSError, termios.error):
            return  # the terminal was closed

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        _Terminal.resized = True
        self._feed.wake()  # the signal's own byte may have been read before this ran

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # stops here, until SIGCONT
        signal.signal(signal.SIGTSTP, self._on_stop)
        self._take()
        self._on_resize(number, frame)


def _size() -> tuple[int, int]:
    """Return the window's columns and lines, without COLUMNS and LINES, which may be outdated."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return size.columns or FALLBACK_COLUMNS, size.lines or FALLBACK_LINES


def _title(connected: FeedConnected) -> str:
    return f"wai top   {connected.target.url}   {connected.version}"
