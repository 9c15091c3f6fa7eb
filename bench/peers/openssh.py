"""`ssh -R` with nginx in front: the tunnel most people have at hand."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from bench.clients import Target
from bench.peers import nginx
from bench.place import Place, find_program, free_port

NAME: Final = "ssh -R + nginx"


def missing() -> str | None:
    """Why it can't run here."""
    for program in ("sshd", "ssh", "ssh-keygen"):
        if find_program(program) is None:
            return f"{program} is not installed (Debian: openssh-server, openssh-client)"
    return nginx.missing()


def server_config(port: int, folder: Path) -> str:
    """sshd on `port` of loopback, with keys of its own and nothing but the tunnel allowed."""
    return f"""Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
AllowTcpForwarding remote
LogLevel ERROR
"""


def start(place: Place) -> Target:
    """sshd, one ssh client with a remote forward to the origin, and nginx for the callers' TLS."""
    folder = place.folder
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd's privilege separation insists on it
    port, inner, public = free_port(), free_port(), free_port()
    path = place.write("sshd.conf", server_config(port, folder))
    sshd = place.spawn("sshd", [find_program("sshd") or "sshd", "-D", "-e", "-f", str(path)])
    place.wait_for_port("sshd", port)
    known = place.write(
        "known_hosts", f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}"
    )
    options = {
        "UserKnownHostsFile": str(known),
        "IdentitiesOnly": "yes",
        "ExitOnForwardFailure": "yes",
        "BatchMode": "yes",
    }
    command = ["ssh", "-N", "-F", "none", "-p", str(port), "-i", str(folder / "user_key")]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    forward = f"127.0.0.1:{inner}:127.0.0.1:{place.origin_port}"
    ssh = place.spawn("ssh", [*command, "-R", forward, "127.0.0.1"])
    place.wait_for_port("ssh", inner)
    front = nginx.spawn(place, "nginx", public, f"http://127.0.0.1:{inner}")
    return Target(
        url=f"https://127.0.0.1:{public}",
        ca=str(place.certificate.cert),
        watch={"agent": [ssh], "sshd": [sshd], "nginx": [front]},
    )
