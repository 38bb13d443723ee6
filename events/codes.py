"""Every stable error code: which branch of the error tree, what it means, what to do.

This table is the one source: :mod:`events.errors` accepts no other code, and the documentation's
table is generated from it. A code is never renamed or reused once released.
The ``cidr_conflict_*`` names follow the cloud provider's ``InternalError.CidrConflictWith…``.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """One row of the table. ``kind`` is a class name of :mod:`events.errors`."""

    kind: str
    meaning: str
    remedy: str


CODES: dict[str, Code] = {
    # --- requests -------------------------------------------------------------------------------
    "bad_request": Code(
        "BadRequest",
        "The request is not valid JSON of the expected shape.",
        "Correct the field that the message names; `isthmus COMMAND --help` shows the accepted form.",
    ),
    "payload_too_large": Code(
        "BadRequest",
        "The request is larger than the controller accepts.",
        "Send fewer items per request; the message gives the size and the limit.",
    ),
    "unsupported_schema": Code(
        "BadRequest",
        "The request was made for another version of the command schema.",
        "Bring the client and the controller to versions that share a schema; the message lists both.",
    ),
    "unknown_command": Code(
        "BadRequest", "No command of that name exists.", "Check the spelling and the controller's version."
    ),
    "wrong_cluster": Code(
        "BadRequest",
        "The request names another cluster than the controller serves.",
        "Point the client at the right cluster (`--cluster`, ISTHMUS_CLUSTER).",
    ),
    "forbidden": Code(
        "Refused",
        "The caller may not do this: a node asked for another node, or its credentials do not reach so far.",
        "Use credentials that cover the action; an agent acts for its own node only.",
    ),
    "unknown_code": Code(
        "Refused",
        "The other side answered with a code that this version does not know.",
        "Upgrade this side; the message carries the original code.",
    ),
    # --- cluster and address plan ------------------------------------------------------------------
    "cluster_not_defined": Code(
        "Refused",
        "No cluster is defined on this log yet.",
        "Define one first: `isthmus cluster define --cidr … --pods … --services …`.",
    ),
    "cluster_already_defined": Code(
        "Refused",
        "The cluster exists with another plan; a container CIDR never changes in place.",
        "Append a further CIDR (`isthmus cluster append`), or define another cluster.",
    ),
    "cluster_deleted": Code(
        "Refused",
        "The cluster was deleted; its log stays readable and takes no further command.",
        "Define another cluster under another name.",
    ),
    "cluster_has_live_nodes": Code(
        "Refused",
        "A cluster with live nodes cannot be deleted.",
        "Remove the nodes that the message lists, then repeat.",
    ),
    "cidr_invalid": Code(
        "Refused",
        "The text is not an IPv4 network, or it has host bits set.",
        "Write the network address, for example 10.3.0.0/16; the message shows the nearest valid one.",
    ),
    "cidr_not_private": Code(
        "Refused",
        "A container CIDR lies in a private range (9/8, 10/8, 172.16/12, 192.168/16).",
        "Choose a network from one of these ranges.",
    ),
    "cidr_too_small": Code(
        "Refused",
        "The Service range leaves no room for a single node.",
        "Take a larger CIDR, fewer pods per node or fewer Services; the message gives the smallest change.",
    ),
    "pods_out_of_range": Code(
        "Refused",
        "Pods per node is outside 4 … the size of the CIDR.",
        "Choose a value inside the bounds that the message names.",
    ),
    "services_out_of_range": Code(
        "Refused",
        "Services is outside 32 … 32768.",
        "Choose a value inside these bounds.",
    ),
    "cidr_conflict_with_vpc": Code(
        "Refused",
        "The container network overlaps a VPC CIDR.",
        "Choose another CIDR, or record the exception with --override and a reason.",
    ),
    "cidr_conflict_with_idc": Code(
        "Refused",
        "The container network overlaps a data-centre network.",
        "Choose another CIDR, or record the exception with --override and a reason.",
    ),
    "cidr_conflict_with_clb_subnet": Code(
        "Refused",
        "The container network overlaps the subnet of a CLB reservation.",
        "Choose another subnet or CIDR, or record the exception with --override and a reason.",
    ),
    "cidr_conflict_with_route": Code(
        "Refused",
        "The container network overlaps a known route.",
        "Choose another CIDR, or record the exception with --override and a reason.",
    ),
    "cidr_conflict_with_other_cluster": Code(
        "Refused",
        "The container network overlaps another cluster's container network on the same bus.",
        "Choose a CIDR that no other cluster uses, or record the exception with --override and a reason.",
    ),
    "cidr_conflict_with_own_cidr": Code(
        "Refused",
        "The CIDR overlaps a container CIDR that this cluster already has.",
        "Append a disjoint CIDR.",
    ),
    "cidr_conflict_with_node": Code(
        "Refused",
        "A node's underlay address lies inside the container network.",
        "Give the node an address outside it, choose another CIDR, or --override with a reason.",
    ),
    "network_unknown": Code(
        "Refused",
        "No network of that CIDR is declared.",
        "List them: `isthmus cluster network list`.",
    ),
    "override_invalid": Code(
        "BadRequest",
        "The override names no check that can be overridden, or gives no reason.",
        "Name one of the codes that the message lists and say why: --override CODE=REASON.",
    ),
    # --- nodes -------------------------------------------------------------------------------------
    "node_unknown": Code("Refused", "No live node has that name.", "List the nodes: `isthmus node list`."),
    "node_name_invalid": Code(
        "BadRequest",
        "A node's name is a DNS-1123 subdomain of at most 253 characters.",
        "Use lower-case letters, digits, '-' and '.'.",
    ),
    "node_fenced": Code(
        "Refused",
        "That uid was fenced: another machine has taken the name, or an operator removed it.",
        "Join again with a new uid (reinstall), or under another name.",
    ),
    "uid_in_use": Code(
        "Refused",
        "A live node of another name has the same uid: a cloned machine, or a renamed one.",
        "Give the clone a uid of its own, or remove the node of the old name first.",
    ),
    "node_attribute_fixed": Code(
        "Refused",
        "A member's kind (cloud or external) and site do not change while it is a member.",
        "Let the node leave (`isthmus node remove`) and join again, or correct its configuration.",
    ),
    "underlay_address_in_use": Code(
        "Refused",
        "Another live node, or a CLB reservation, already uses that underlay address.",
        "Remove the other node or reservation first, or correct the address.",
    ),
    "underlay_address_invalid": Code(
        "BadRequest",
        "The underlay address is not a usable IPv4 unicast address.",
        "Give the address by which other nodes reach this one.",
    ),
    "static_range_refused": Code(
        "Refused",
        "Ranges are assigned cyclically and sequentially; a wish for a particular range is refused.",
        "Join without a wish; the answer names the range.",
    ),
    "static_pod_ip_refused": Code(
        "Refused",
        "Static pod addresses do not exist in this network mode.",
        "Let the node assign the pod's address; use a Service for a stable one.",
    ),
    "no_free_range": Code(
        "Refused",
        "Every range of the pool is allocated, draining or quarantined.",
        "Append a CIDR, remove nodes, or wait until the moment that the message names.",
    ),
    "import_refused": Code(
        "Refused",
        "At least one line of a batch of nodes was refused, so nothing of the batch was written.",
        "Correct the lines that the report names and import the file again: members are left as they are.",
    ),
    "import_unreadable": Code(
        "BadRequest",
        "The file is no CSV, JSON or kubectl node list that can be imported.",
        "The message names the line and the accepted forms; `isthmus node import --help` shows them.",
    ),
    # --- CLB -----------------------------------------------------------------------------------------
    "clb_unknown": Code("Refused", "No CLB reservation has that name.", "List them: `isthmus clb list`."),
    "clb_already_reserved": Code(
        "Refused",
        "A reservation of that name exists with another subnet or other purposes.",
        "Release it first, or choose another name.",
    ),
    "clb_subnet_too_small": Code(
        "Refused",
        "Fewer than two addresses of the subnet are usable.",
        "Choose a larger subnet or shorten the exclusion list; the message counts the addresses.",
    ),
    "clb_not_gateway": Code(
        "Refused",
        "Only a cloud node can be a gateway, and only an address whose provider is `gateway` has backends.",
        "Choose a cloud node; reserve with `isthmus clb reserve NAME --provider gateway`.",
    ),
    "clb_backend_unknown": Code(
        "Refused", "The reservation has no such backend or purpose.", "List them: `isthmus clb show NAME`."
    ),
    "clb_not_holder": Code(
        "Refused",
        "The node reports about an address that it does not hold at that epoch.",
        "Nothing to do: the agent learns of the new holder from the log.",
    ),
    # --- the log and the bus ----------------------------------------------------------------------------
    "bus_unreachable": Code(
        "Unavailable",
        "No NATS server answers at the given address.",
        "Check the address (`--bus`, ISTHMUS_BUS), the server, the network and the credentials.",
    ),
    "log_missing": Code(
        "Unavailable",
        "The bus has no stream for that cluster.",
        "Check `--cluster`; a controller creates the stream when it first starts.",
    ),
    "log_unavailable": Code(
        "Unavailable",
        "The stream did not answer in time (no quorum, or the server is starting).",
        "Wait or check the JetStream servers; nothing was lost.",
    ),
    "log_settings_differ": Code(
        "Refused",
        "A stream of that name exists with other settings than the log needs.",
        "Correct the settings that the message lists, or use another bus or cluster name.",
    ),
    "no_controller": Code(
        "Unavailable",
        "No controller answers for that cluster.",
        "Start one: `isthmus controller` or `isthmus up`.",
    ),
    "overloaded": Code(
        "Overloaded",
        "The controller's queue of commands is full.",
        "Repeat after the time that the message names; repeating is safe.",
    ),
    "outcome_unknown": Code(
        "OutcomeUnknown",
        "The acknowledgement was lost; the command may have taken effect.",
        "Repeat with the same command id: it has no second effect.",
    ),
    "wrong_last_sequence": Code(
        "Refused",
        "The log has grown since the state that the decision was made on.",
        "Read up to the present and decide again (the controller does this by itself).",
    ),
    "event_too_large": Code(
        "Refused",
        "An event exceeds the largest message of the bus, or a batch 1,000 messages.",
        "Split the request.",
    ),
    "trace_unknown": Code(
        "Refused",
        "No span of what was asked for is kept.",
        "Look at `isthmus trace list`; sampling and the size of the built-in store decide what is kept.",
    ),
    # --- integrity --------------------------------------------------------------------------------------
    "chain_broken": Code(
        "VerificationFailed",
        "An event's hash does not follow from its predecessor and its content.",
        "Treat the log as tampered or damaged from the named sequence on; restore from an archive.",
    ),
    "sequence_gap": Code(
        "VerificationFailed",
        "A sequence is missing; the log is gap-free by construction.",
        "Treat the log as damaged at the named sequence; restore from an archive or a mirror.",
    ),
    "snapshot_invalid": Code(
        "VerificationFailed",
        "A snapshot contradicts itself or the log that it is of.",
        "Nothing is lost: agents then read the log from its beginning; the next snapshot replaces it.",
    ),
    "event_unknown": Code(
        "VerificationFailed",
        "An event's type or version is unknown to this program.",
        "Upgrade this program; a projection stops rather than guess.",
    ),
    "event_malformed": Code(
        "VerificationFailed",
        "A stored event cannot be decoded.",
        "Look at the named sequence with `isthmus replay log`; somebody wrote past the controller.",
    ),
    "invariant_violated": Code(
        "VerificationFailed",
        "The state contradicts an invariant of the design.",
        "Report it with the named sequence; `isthmus replay bisect` shows the event that did it.",
    ),
    # --- credentials ------------------------------------------------------------------------------------
    "credentials_missing": Code(
        "Refused",
        "A key or credentials file is not there or cannot be read.",
        "Make it with `isthmus credentials …`, or point at the right folder or file.",
    ),
    "credentials_invalid": Code(
        "Refused",
        "A key, a JWT or a credentials file is damaged or of the wrong kind.",
        "Fetch or make it anew; the message says what is wrong, never what was in it.",
    ),
    "credentials_exist": Code(
        "Refused",
        "Credentials are there already and would be replaced.",
        "Use `isthmus credentials rotate` to replace them, or name another folder.",
    ),
    "credentials_revoked": Code(
        "Refused",
        "The credentials of that name were revoked.",
        "If the machine is to come back, make new ones with `isthmus credentials node NAME --again`.",
    ),
    "token_invalid": Code(
        "Refused",
        "The join token is damaged, expired, or for another node or cluster.",
        "Make a new one with `isthmus credentials token NODE`.",
    ),
    "token_used": Code(
        "Refused",
        "The join token was used before; each is good for one machine.",
        "If that was not you, revoke the node at once; else make a new token.",
    ),
    # --- configuration ----------------------------------------------------------------------------------
    "config_invalid": Code(
        "Usage",
        "The configuration is wrong; every fault is listed with its line.",
        "Correct the listed lines and repeat `isthmus config check`.",
    ),
    "log_truncated": Code(
        "VerificationFailed",
        "The log ends before a sequence that is known to have existed.",
        "Restore the missing end from an archive or a mirror; the message names the last sound sequence.",
    ),
    "checkpoint_mismatch": Code(
        "VerificationFailed",
        "A signed checkpoint does not agree with the log, or its signature is not of the given key.",
        "Treat the log as rewritten somewhere at or before the named sequence.",
    ),
    "digest_mismatch": Code(
        "VerificationFailed",
        "Two states at the same sequence, which must be equal, are not.",
        "Rebuild the read model; if the controller itself differs, report it with both digests.",
    ),
    # --- archives and questions about the past -----------------------------------------------------------
    "archive_damaged": Code(
        "VerificationFailed",
        "An archive file is not what it states: cut short, altered, or unreadable at the named byte.",
        "`isthmus replay verify --archive FILE` lists all damage; take another copy.",
    ),
    "archive_foreign": Code(
        "Refused",
        "The file is no archive of a format that this program reads, or cannot be opened.",
        "Check the path; `isthmus replay export` makes archives.",
    ),
    "archive_exists": Code(
        "Refused",
        "The file to be written exists already.",
        "Choose another name; an archive is continued with `--continue`.",
    ),
    "archive_mismatch": Code(
        "Refused",
        "Two logs or archives that should join do not: another cluster, or another history.",
        "Give the files of one log; the message names both ends.",
    ),
    "stream_not_empty": Code(
        "Refused",
        "An import goes into an empty stream only.",
        "Import under another cluster name's bus, or into a fresh server.",
    ),
    "not_in_history": Code(
        "Refused",
        "The log holds no such sequence, time or thing.",
        "The message says what the log does hold.",
    ),
    # --- local -------------------------------------------------------------------------------------------
    "usage": Code("Usage", "The command line is wrong.", "See --help."),
    "overlay_conflict": Code(
        "Refused",
        "The overlay's device name, VNI or UDP port is taken by something else on this node.",
        "Remove the other device or program that the message names, or use another name, VNI or port.",
    ),
    "route_conflict": Code(
        "Refused",
        "A route of this node that is not ours overlaps the container network.",
        "Remove the route that the message names, or choose another container CIDR.",
    ),
    "firewall_refused": Code(
        "Refused",
        "The kernel or the nft program refused the agent's nftables table; the table before it stays.",
        "Run `isthmus doctor`: it names the missing kernel feature or program.",
    ),
    "agent_running": Code(
        "Refused",
        "An agent already runs on this node with the same state directory.",
        "Stop it first (`systemctl stop isthmus-agent`), or give the second one a --state-dir of its own.",
    ),
    "agent_not_running": Code(
        "Unavailable",
        "No agent answers on this node.",
        "Start it (`systemctl start isthmus-agent`), or point --state-dir at its state directory.",
    ),
    "log_poisoned": Code(
        "VerificationFailed",
        "The log holds an event that this controller cannot follow; the message names it. Questions are "
        "answered from the state before it, commands are refused, packets flow.",
        "`isthmus replay verify` says what is wrong; a newer release may know the event. Else: "
        "the part on poison events in deploy/README.md.",
    ),
    "events_parked": Code(
        "VerificationFailed",
        "The log says that events are parked which this reader has followed; it begins anew without them.",
        "Nothing: it is done by itself. An archive that lacks the parking event is an older one.",
    ),
    "log_replaced": Code(
        "VerificationFailed",
        "The log on the bus is not the one that this node followed before.",
        "If the log was restored from a backup: stop the agent, `isthmus agent forget`, start it; the rows "
        "stay. If the cluster was made anew on purpose: `isthmus agent clean`.",
    ),
    "not_permitted": Code(
        "Refused",
        "The operating system denies a capability that this needs.",
        "Run with the capability that the message names.",
    ),
    "data_in_use": Code(
        "Refused",
        "Another process holds the data directory.",
        "Stop the other process, or give this one a directory of its own (`--data`).",
    ),
    "prerequisite_missing": Code(
        "Refused",
        "A program or kernel feature that this needs is not installed.",
        "Install it with the command that the message gives.",
    ),
    "lab_running": Code(
        "Refused",
        "A lab of that name is running on this machine.",
        "End it with `isthmus lab down`, or give the new one another --name.",
    ),
    "internal": Code(
        "Refused",
        "The program met a state that it does not expect; this is a defect.",
        "Report it with the log lines around it.",
    ),
}
