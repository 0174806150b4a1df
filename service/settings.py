"""The settings of a server and its workers, read from environment variables; `sparsegen serve` has options for some."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sparsegen.common.devices import AUTO, check_name
from sparsegen.common.extras import install_command, is_installed
from sparsegen.service.prefix import check_prefix

PREFIX = "SPARSEGEN_"
LOOPBACK_NAMES = ("localhost", "ip6-localhost", "localhost.localdomain")
LOG_FORMATS = ("text", "json")
MIN_TOKEN = 16  # characters
Number = TypeVar("Number", int, float)


def _limit(default: Number, low: float, high: float, meaning: str) -> Number:
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The setting `job_hours` has the environment variable SPARSEGEN_JOB_HOURS; commas separate the parts of a list.

    Args:
        host: Address that the server listens on; None if BentoML was started without `sparsegen serve`.
        allow_host: Host names that requests may use besides the loopback names and `host`; "*" allows any.
        allow_origin: Origins, such as https://example.org, whose pages may use the API; "*" allows any.
        allow_frame: Origins whose pages may embed the page in a frame, or https://*.example.org for all subdomains;
            "*" allows any.
        token: Token that clients must present; None: no token is required.
        proxy: Addresses or networks whose X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Prefix are trusted; "*"
            trusts any.
        root_path: Path below which a proxy shows the server, such as /images; "": at the root of the site.
        log_format: "text", or "json" for one JSON object per line.
        device: Device of the samples and of the restorations: "auto", "cpu", "cuda", "cuda:1", "mps" or "xpu".

    The other settings are limits; each states its range and meaning.

    Raises:
        ValueError: With the setting, the allowed values and the value.
    """

    host: str | None = None
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    allow_frame: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    proxy: tuple[str, ...] = ("127.0.0.1", "::1")
    root_path: str = ""
    log_format: str = "text"
    device: str = AUTO
    workers: int = _limit(1, 0, 61, "processes of this server that restore pictures")
    client_requests: int = _limit(64, 1, 1_000_000, "concurrent requests per client")
    client_streams: int = _limit(64, 1, 1_000_000, "concurrent streams of the page per client")
    client_events: int = _limit(16, 1, 1_000_000, "queued events of the page per client")
    job_hours: float = _limit(8, 0.01, 10_000, "maximum estimated worker hours of one restoration")
    job_memory_gb: float = _limit(4, 0.9, 10_000, "maximum estimated memory of one restoration, in gigabytes")
    job_deadline_hours: float = _limit(12, 0.0001, 10_000, "hours after which a running restoration is ended")
    jobs_per_client: int = _limit(4, 1, 10_000, "unfinished restorations per client")
    sync_pixels: int = _limit(16_384, 256, 1_000_000, "pixels of a result that the client waits for")
    sync_seconds: float = _limit(120, 0.1, 3600, "maximum seconds that a client waits for a result")
    results_mb: int = _limit(
        4096, 64, 1_000_000, "megabytes of all finished restorations; beyond it the oldest are removed"
    )
    decoders: int = _limit(3, 1, 64, "processes that decode uploaded pictures")
    decoder_mb: int = _limit(1024, 256, 100_000, "megabytes of address space per decoder process")
    decoder_seconds: int = _limit(10, 1, 3600, "processor seconds to decode one picture")
    uploads_mb: int = _limit(2048, 64, 1_000_000, "megabytes of all uploads in the temporary folder")

    def __post_init__(self) -> None:
        if self.token is not None and not re.fullmatch(rf"[!-~]{{{MIN_TOKEN},}}", self.token):
            raise ValueError(
                f"a token must have at least {MIN_TOKEN} visible ASCII characters and no spaces; the given one, of "
                f"{len(self.token)} characters, does not: create one with `openssl rand -hex 16`"
            )
        for name, origins in (("allow_origin", self.allow_origin), ("allow_frame", self.allow_frame)):
            for given in origins:
                origin = given.replace("://*.", "://", 1) if name == "allow_frame" else given
                if origin != "*" and not _is_origin(origin):
                    raise ValueError(
                        f"{variable(name)} takes an origin such as https://example.org, or *; got {given!r}"
                    )
        object.__setattr__(self, "root_path", check_prefix(self.root_path))
        if self.log_format not in LOG_FORMATS:
            raise ValueError(f"{variable('log_format')} must be text or json; got {self.log_format!r:.40}")
        check_name(self.device)
        for host in self.allow_host:
            if host != "*" and host_of(host) != host.lower():
                raise ValueError(
                    f"an allowed host is a name such as example.org, without scheme and port; got {host!r}"
                )
        for proxy in self.proxy:
            if proxy != "*" and not _is_network(proxy):
                raise ValueError(
                    f"a proxy is an address or a network such as 10.0.0.0/8, or *; got {proxy!r}"
                )
        for each in fields(self):
            if limit := each.metadata:
                value = getattr(self, each.name)
                if not limit["low"] <= value <= limit["high"]:  # false for NaN, too
                    raise _out_of_range(each, value)
        if self.workers and not is_installed("torch"):
            raise ValueError(
                f"{variable('workers')} is {self.workers}, but a worker needs PyTorch, which is not installed: "
                f"{install_command('restore')}, or set it to 0"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **given: Any) -> "ServiceSettings":
        """Reads the settings. Those `given` take precedence unless they are None or an empty list.

        Without PyTorch, the server has no workers unless they are asked for.

        Raises:
            ValueError: As the class, and for an empty SPARSEGEN_TOKEN.
        """
        values = {name: value for name, value in given.items() if value not in (None, (), [])}
        for each in fields(cls):
            text = environment.get(variable(each.name))
            if each.name not in values and text == "" and each.name == "token":
                raise ValueError(
                    f"{PREFIX}TOKEN is empty, so the server would require no token: unset it, or give a token"
                )
            if each.name not in values and text:
                values[each.name] = _parse(each, text)
        return cls(**{"workers": int(is_installed("torch"))} | values)

    def environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads these settings from, and uvicorn the proxies."""
        values = {variable(each.name): getattr(self, each.name) for each in fields(self)}
        texts = {
            name: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }
        return texts | {"FORWARDED_ALLOW_IPS": ",".join(self.proxy)}

    @property
    def loopback(self) -> bool:
        """Whether the server is reachable from this machine only."""
        host = self.host or ""
        return host in LOOPBACK_NAMES or (_is_address(host) and ipaddress.ip_address(host).is_loopback)

    def allows_host(self, name: str) -> bool:
        """Whether a request may use this host name, without a port.

        An address is safe: a web page that sends it was loaded from it. A name may belong to an attacker who points
        it at this server (DNS rebinding).
        """
        name = name.lower().removesuffix(".")
        own = {*LOOPBACK_NAMES, (self.host or "localhost").lower(), *map(str.lower, self.allow_host)}
        if "*" in self.allow_host or name in own:
            return True
        return _is_address(name) and (not self.loopback or ipaddress.ip_address(name).is_loopback)

    def direct_warnings(self) -> list[str]:
        """Warnings for a BentoML that was started without `sparsegen serve`; it listens on 0.0.0.0."""
        if self.host is not None or self.token is not None:
            return self._torch_warnings()
        return [
            *self._torch_warnings(),
            f"the server requires no token, and `bentoml serve` listens on all addresses unless --host is given: set "
            f"{PREFIX}TOKEN, or start `sparsegen serve`",
        ]

    def warnings(self) -> list[str]:
        """Warnings for `sparsegen serve`."""
        if self.host is None or self.loopback or self.token is not None:
            return []
        return [
            f"--host {self.host}: anyone who can reach this machine over the network can use the server; --token or "
            f"{PREFIX}TOKEN requires a token, --host 127.0.0.1 restricts the server to this machine"
        ]

    def _torch_warnings(self) -> list[str]:
        if is_installed("torch"):
            return []
        return [
            f"no pictures are restored here, since PyTorch is not installed: {install_command('restore')}"
        ]


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def _parse(setting: Field[Any], text: str) -> object:
    if setting.metadata:
        try:
            return int(text) if setting.type is int else float(text)
        except ValueError:
            raise _out_of_range(setting, text) from None
    if isinstance(setting.default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _out_of_range(setting: Field[Any], value: object) -> ValueError:
    limit, kind = setting.metadata, "an integer" if setting.type is int else "a number"
    return ValueError(
        f"{variable(setting.name)} is {kind} from {limit['low']} to {limit['high']:,}: {limit['meaning']}; "
        f"got {value!r:.40}"
    )


def host_of(authority: str) -> str:
    """The host name in an authority such as example.org:3000; "" if there is none."""
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


def _is_network(name: str) -> bool:
    try:
        ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
    return True


def _is_origin(text: str) -> bool:
    return re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?", text, re.ASCII) is not None
