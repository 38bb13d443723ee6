"""Whose an address is at a moment: the log says the node, the node's word says the pod."""

from __future__ import annotations

from controlplane.cluster.addressing.addresses import address_value
from controlplane.console.as_of import AsOf
from controlplane.console.inspector import Inspector
from controlplane.console.schemas import AddressDetail
from controlplane.controller.agents.pod_answer import PodAnswer, not_at_hand, pod_at
from controlplane.controller.agents.pod_facts import range_of
from controlplane.controller.answers import ask
from events.errors import IsthmusError
from events.protocol.queries import AddressOwner, WhoHas


async def address_detail(source: Inspector, then: AsOf, address: str) -> AddressDetail:
    """Raises BadRequest(bad_request) for what is no IPv4 address. Cancelled, it leaves nothing behind."""
    owner = ask(then.state, WhoHas(address=address))
    assert isinstance(owner, AddressOwner)  # noqa: S101  the answer to that question
    held = range_of(then.state, address) if address_value(address) is not None else None
    pod: PodAnswer | None = None
    if held is not None and owner.kind == "range":
        pod = not_at_hand("nobody here keeps what nodes tell of their pods")
        if source.pods_of is not None:
            try:
                pod = pod_at(await source.pods_of(address, held.node), held, then.moment)
            except IsthmusError as error:
                pod = not_at_hand(error.message)
    return AddressDetail(
        position=then.position,
        address=address,
        kind=owner.kind,
        cidr=owner.cidr,
        node=owner.node,
        uid=held.uid if held is not None else "",
        epoch=held.epoch if held is not None else 0,
        phase=owner.range.phase if owner.range is not None else "",
        reservation=owner.reservation,
        purpose=owner.purpose,
        pod=pod,
    )
