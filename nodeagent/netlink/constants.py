"""Numbers of the kernel's rtnetlink interface that this package uses.

Sources: ``include/uapi/linux/netlink.h``, ``rtnetlink.h``, ``neighbour.h``, ``if_link.h``.
"""

from __future__ import annotations

# struct nlmsghdr
NLMSG_HEADER = 16
NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_CREATE = 0x400
NLM_F_CAPPED = 0x100  # in NLMSG_ERROR: the request is not repeated behind its header
NLMSGERR_ATTR_MSG = 1

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

RTNLGRP_LINK = 1
RTNLGRP_NEIGH = 3
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV4_ROUTE = 7

AF_INET = 2
AF_BRIDGE = 7

NDA_DST, NDA_LLADDR = 1, 2
NDA_PORT, NDA_VNI, NDA_IFINDEX = 6, 7, 8
NDA_SRC_VNI, NDA_PROTOCOL, NDA_NH_ID = 11, 12, 13
NTF_SELF = 0x02
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
FDB_STATE = NUD_PERMANENT | NUD_NOARP  # what pyroute2 writes for a permanent FDB row

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_METRICS, RTA_TABLE = 8, 15
RTAX_MTU = 2  # within RTA_METRICS
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTN_UNICAST = 1
RTN_BLACKHOLE = 6
RTNH_F_ONLINK = 4
RTNH_STATE = 0x01 | 0x10
"""Dead, link down: what the kernel thinks of a next hop, no part of what was written."""

IFF_UP = 1
IFF_LOWER_UP = 0x10000
IFF_NOARP = 0x80
ADDRESSES_BY_HAND = 1  # linux/if_link.h: IN6_ADDR_GEN_MODE_NONE

PROTOCOL = 84
"""Our number in the protocol field of routes (RTA) and neighbours (NDA_PROTOCOL): the mark of ownership."""

PROBE_PROTOCOL = 86
"""Marks routes by which only probes go: neither rows nor somebody else's routes."""

RTM_F_LOOKUP_TABLE = 0x1000
"""Without it the kernel calls every routing table the main one."""
