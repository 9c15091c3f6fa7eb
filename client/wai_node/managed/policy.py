"""What this node's owner lets admins deploy, and where files are stored. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from wai_node.config import EngineInstalls
from wai_protocol.errors import AuthError, Fault, StoreError
from wai_transport.http_proxy import DIRECT, ProxySettings

from .options import ServeOptions
from .wanted import WantedModel


class ManagedSettings(msgspec.Struct, frozen=True):
    """The owner's settings for managed models.

    `folder` holds the wanted state and the logs, `models_folder` the model files. `server` is the
    configured llama-server, and `extra_flags` are added to its arguments. `allowed_publishers`
    None: any. `disk_quota_bytes` None: the whole disk except `kept_free_bytes`. `load_timeout_s`
    None: computed from the model's size. `engine`: whether a deployment may install one;
    `engine_mirror` and `engine_manifest` say from where, None: as shipped. `allow_engine_flags`:
    admins may add flags to a model's server. `allow_environment`: the variables that they may set.
    `file_folders`: whose files may be deployed.
    """

    folder: Path
    models_folder: Path
    server: str | None = None
    extra_flags: tuple[str, ...] = ()
    threads: int | None = None
    allow_deploy: bool = True
    allowed_publishers: frozenset[str] | None = None
    disk_quota_bytes: int | None = None
    kept_free_bytes: int = 1 << 30
    load_timeout_s: float | None = None
    engine: EngineInstalls = "ask"
    engine_mirror: str | None = None
    engine_manifest: Path | None = None
    proxies: ProxySettings = DIRECT
    allow_engine_flags: bool = False
    allow_environment: tuple[str, ...] = ()
    file_folders: tuple[Path, ...] = ()

    @property
    def sockets_folder(self) -> Path:
        """The folder of the servers' unix sockets, private to this user."""
        return self.folder / "run"

    def check_allowed(self) -> None:
        """Raise `AuthError` if the owner allows no deployments."""
        if not self.allow_deploy:
            raise AuthError(
                "this node takes no deployments (it was joined with --no-deploy); its owner can "
                "change that on the node",
                Fault.FORBIDDEN,
            )

    def check_options(self, options: ServeOptions) -> None:
        """Raise `AuthError` if the owner does not allow these options."""
        options.check(
            flags_allowed=self.allow_engine_flags, environment_allowed=self.allow_environment
        )

    def check_publisher(self, repo: str) -> None:
        """Raise `AuthError` if the publisher of `repo` is not allowed."""
        allowed = self.allowed_publishers
        publisher = repo.split("/", 1)[0]
        if allowed is not None and publisher.lower() not in {name.lower() for name in allowed}:
            raise AuthError(
                f"this node takes no models by {publisher}; "
                f"it allows: {', '.join(sorted(allowed))}",
                Fault.FORBIDDEN,
            )

    def check_quota(
        self, models: Iterable[WantedModel], size_bytes: int, other_bytes: int = 0
    ) -> None:
        """Raise `StoreError` if `size_bytes` more would exceed the quota; `other_bytes` are used
        beside those of `models`."""
        if self.disk_quota_bytes is None:
            return
        used = sum(model.size_bytes for model in models) + other_bytes
        if used + size_bytes > self.disk_quota_bytes:
            gib = 1 << 30
            raise StoreError(
                f"the model takes {size_bytes / gib:.1f} GiB, and {used / gib:.1f} of this node's "
                f"quota of {self.disk_quota_bytes / gib:.1f} GiB are used; remove a model first"
            )
