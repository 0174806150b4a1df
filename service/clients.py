"""Identifies the client of a request, for limits per client."""

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any


def client_of(request: Any) -> str:
    """The client of a starlette or Gradio request: an IPv4 address, or the /64 network of an IPv6 address.

    Choice: one subscriber usually has a whole /64 of IPv6 addresses, so limits per address would have no effect.
    """
    if request.client is None:
        return "local"  # a Unix socket
    host = request.client.host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"  # a proxy may pass on any text
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ip_network((address, 64), strict=False))
    return str(address)
