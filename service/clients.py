"""Who sent a request, for limits that each client has. The only place that says how its address is found."""

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any


def client_of(request: Any) -> str:
    """The client of a starlette or Gradio request: an IPv4 address, or the /64 network of an IPv6 address.

    Choice: one subscriber usually has a whole /64 of IPv6 addresses, so limits per address would not limit anyone.
    """
    if request.client is None:
        return "local"  # a Unix socket
    host = request.client.host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"  # what a proxy passed on, unless it is an address, may be anything
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ip_network((address, 64), strict=False))
    return str(address)
