"""The private networks that nothing takes: set arithmetic on netaddr's sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from netaddr import IPNetwork, IPSet

from controlplane.cluster.addressing.addresses import Net
from controlplane.cluster.addressing.plan import PRIVATE


def next_free_network(size: int, taken: Sequence[Net]) -> Net | None:
    """The first of :func:`free_networks`; None if there is none."""
    return next(free_networks(size, taken), None)


def free_networks(size: int, taken: Sequence[Net]) -> Iterator[Net]:
    """The private networks of ``size`` addresses that overlap none of ``taken``, in order.

    10/8 first, then 172.16/12 and 192.168/16; 9/8 is never proposed, it belongs to somebody else
    on most networks. The set arithmetic is netaddr's: a free network of that size lies in one of the
    largest free ones. For conflicts and proposals only: a taken network costs microseconds.
    """
    blocks = IPSet(IPNetwork(str(block)) for block in PRIVATE[1:])
    reach = [block for block in PRIVATE[1:] if block.size >= size]
    aligned = {Net(net.first & -size, size) if net.size < size else net for net in taken}  # many hosts are few
    blocked = IPSet(IPNetwork(str(net)) for net in aligned if any(block.overlaps(net) for block in reach))
    for free in (blocks - blocked).iter_cidrs():
        for first in range(free.first, free.last + 2 - size, size):
            yield Net(first, size)
