"""Who may reach a server, and how much of it one client may take: the settings, from the command line or variables."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from urllib.parse import urlsplit

PREFIX = "SPARSEGEN_"
LOOPBACK_NAMES = ("localhost", "ip6-localhost", "localhost.localdomain")
MIN_TOKEN = 16  # characters


def setting(default: object, variable: str) -> object:
    return field(default=default, metadata={"variable": PREFIX + variable})


@dataclass(frozen=True)
class Exposure:
    """Each field may be set by an environment variable, in which the parts of a list are separated by commas.

    Args:
        host: The address that the server listens on; None if BentoML was started without `sparsegen serve`.
        hosts: Names that a request may address the server by, beside loopback's and `host`; "*" is any.
        origins: Origins, as https://example.org, whose pages may use the API; "*" is any.
        frames: Origins whose pages may show the page in a frame; "*" is any.
        token: What a client has to present; None: nothing.
        proxies: Addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed; "*" is any.
        client_requests, client_streams: How many requests, and streams of the page, one client may hold at once.
        client_events: How many events of the page one client may have in the queue.

    Raises: ValueError for a value that cannot be used.
    """

    host: str | None = setting(None, "HOST")
    hosts: tuple[str, ...] = setting((), "ALLOW_HOST")
    origins: tuple[str, ...] = setting((), "ALLOW_ORIGIN")
    frames: tuple[str, ...] = setting((), "ALLOW_FRAME")
    token: str | None = field(default=None, repr=False, metadata={"variable": PREFIX + "TOKEN"})
    proxies: tuple[str, ...] = setting(("127.0.0.1", "::1"), "PROXY")
    client_requests: int = setting(64, "CLIENT_REQUESTS")
    client_streams: int = setting(64, "CLIENT_STREAMS")
    client_events: int = setting(16, "CLIENT_EVENTS")

    def __post_init__(self) -> None:
        if self.token is not None and not re.fullmatch(rf"[!-~]{{{MIN_TOKEN},}}", self.token):
            raise ValueError(
                f"a token has at least {MIN_TOKEN} visible ASCII characters and no spaces; this one, of "
                f"{len(self.token)} characters, does not: make one with `openssl rand -hex 16`"
            )
        for name in ("origins", "frames"):
            for origin in getattr(self, name):
                if origin != "*" and not _is_origin(origin):
                    option = next(f.metadata["variable"] for f in fields(self) if f.name == name)
                    raise ValueError(
                        f"{option} takes an origin such as https://example.org, or *; got {origin!r}"
                    )
        for host in self.hosts:
            if host != "*" and host_of(host) != host.lower():
                raise ValueError(
                    f"a host is a name such as example.org, without scheme and port; got {host!r}"
                )
        for proxy in self.proxies:
            if proxy != "*":
                try:
                    ipaddress.ip_network(proxy, strict=False)
                except ValueError:
                    raise ValueError(
                        f"a proxy is an address or a network such as 10.0.0.0/8, or *; got {proxy!r}"
                    ) from None
        for each in fields(self):
            if isinstance(each.default, int) and getattr(self, each.name) < 1:
                variable, value = each.metadata["variable"], getattr(self, each.name)
                raise ValueError(f"{variable} is an integer of at least 1; got {value}")

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ, **given: object) -> "Exposure":
        """Reads the settings; those `given` that are neither None nor empty come first."""
        values = {name: value for name, value in given.items() if value not in (None, (), [])}
        for setting in fields(cls):
            text = variables.get(setting.metadata["variable"])
            if setting.name not in values and text == "" and setting.name == "token":
                raise ValueError(
                    f"{PREFIX}TOKEN is empty, so the server would ask for no token: unset it, or give a token"
                )
            if setting.name not in values and text:
                values[setting.name] = _parse(setting.default, text, setting.metadata["variable"])
        return cls(**values)

    def environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads these settings from, and uvicorn the proxies."""
        values = {f.metadata["variable"]: getattr(self, f.name) for f in fields(self)}
        texts = {
            name: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }
        return texts | {"FORWARDED_ALLOW_IPS": ",".join(self.proxies)}

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        host = self.host or ""
        return host in LOOPBACK_NAMES or (_is_address(host) and ipaddress.ip_address(host).is_loopback)

    def allows_host(self, name: str) -> bool:
        """Whether a request may address the server by this name, without a port.

        An address is no danger: to send it, a web page has to come from it. A name may be a stranger's that was made
        to lead here (DNS rebinding).
        """
        name = name.lower().removesuffix(".")
        own = {*LOOPBACK_NAMES, (self.host or "localhost").lower(), *map(str.lower, self.hosts)}
        if "*" in self.hosts or name in own:
            return True
        return _is_address(name) and (not self.loopback or ipaddress.ip_address(name).is_loopback)

    def direct_warnings(self) -> list[str]:
        """What the operator is to know if BentoML was started without `sparsegen serve`; it listens on 0.0.0.0."""
        if self.host is not None or self.token is not None:
            return []
        return [
            f"the server asks for no token, and `bentoml serve` listens on all addresses unless --host is given: set "
            f"{PREFIX}TOKEN, or start `sparsegen serve`"
        ]

    def warnings(self) -> list[str]:
        """What the operator is to know about these settings."""
        if self.host is None or self.loopback or self.token is not None:
            return []
        return [
            f"--host {self.host}: everybody who reaches this machine over the network can use the server; --token or "
            f"{PREFIX}TOKEN asks for a token, --host 127.0.0.1 keeps others out"
        ]


def _parse(default: object, text: str, variable: str) -> object:
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, int):
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise ValueError(f"{variable} is an integer of at least 1; got {text!r}")
        return int(text)
    return text


def host_of(authority: str) -> str:
    """The name in an authority such as example.org:3000; "" if it is none."""
    try:
        parts = urlsplit(f"//{authority}")
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.netloc == authority and "@" not in authority else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_origin(text: str) -> bool:
    return re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?", text, re.ASCII) is not None
