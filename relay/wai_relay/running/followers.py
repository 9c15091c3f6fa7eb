"""The parts of a running relay that follow its configuration (SIGHUP), for `reload.LiveConfig`."""

from __future__ import annotations

from collections.abc import Callable

from wai_relay.config import RelayConfig
from wai_relay.http.trusted_proxies import TrustedProxies
from wai_relay.identity import load_admin_token
from wai_relay.notify.notifier import receivers_of
from wai_relay.policy.model_names import ModelNames
from wai_relay.port_tls import PortTls
from wai_transport.folder import DataFolder

from .parts import Parts, relay_address, session_limits
from .reload import Prepare, Use
from .stored import Stored


def followers(
    parts: Parts,
    stored: Stored,
    tls: PortTls | None,
    folder: DataFolder,
    *,
    port: int,
    show_log: Callable[[RelayConfig], None],
) -> list[Prepare]:
    """Who takes over a changed configuration, in the order in which they are asked."""

    def prepare_providers(new: RelayConfig) -> Use:
        return parts.upstreams.prepare(new.providers, new.proxies)

    def prepare_settings(new: RelayConfig) -> Use:
        names = ModelNames(new.aliases, new.fallbacks)

        def use() -> None:
            show_log(new)
            parts.fleet.limits = session_limits(new)
            parts.gateway.configure(new.gateway, names)
            parts.cross_origin.configure(new.cors)
            parts.edge.proxies = TrustedProxies(new.proxy.trusted, new.proxy.header)
            weight = new.routing.first_token_weight
            parts.dispatcher.configure(names, new.provider_after_s, weight)
            parts.metrics_page.token = new.metrics_token
            parts.context.health.config = new.health
            parts.context.address = relay_address(new, stored.relay_key, tls, port)
            parts.context.node_url = new.node_url

        return use

    def prepare_notifications(new: RelayConfig) -> Use:
        receivers = receivers_of(new.notify, new.proxies)
        return lambda: parts.notifier.configure(new.notify, receivers)

    def prepare_admin_token(_: RelayConfig) -> Use:
        token = load_admin_token(folder)
        return lambda: stored.admins.replace_local(token)

    certificate = [tls.prepare] if tls is not None else []
    return [
        prepare_providers,
        *certificate,
        prepare_settings,
        prepare_notifications,
        prepare_admin_token,
    ]
