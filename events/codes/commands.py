"""Codes of requests, the address plan, nodes and CLB reservations: what a controller refuses."""

from __future__ import annotations

from events.codes.code import Code

COMMAND_CODES: dict[str, Code] = {
    # --- requests -------------------------------------------------------------------------------
    "bad_request": Code(
        "BadRequest",
        "The request is not valid JSON of the expected shape.",
        "Correct the field that the message names; `isthmus COMMAND --help` shows the accepted form.",
    ),
    "not_found": Code(
        "Refused",
        "There is no such path, event or record.",
        "The message says what was looked for and where it ends.",
    ),
    "too_many_attempts": Code(
        "Overloaded",
        "Too many wrong tokens came from this address.",
        "Wait for the time that the answer names, then use the right token.",
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
    "older_release": Code(
        "Refused",
        "The command would write an event that somebody who takes part in the cluster is too old to follow.",
        "Upgrade (or stop) the agents and controllers that the message names, then repeat.",
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
    "adoption_closed": Code(
        "Refused",
        "A range is to be adopted, and the cluster is in no adoption.",
        "Begin an adoption, with the plan that was made.",
    ),
    "adoption_open": Code(
        "Refused",
        "The cluster is in adoption from something else already.",
        "End that adoption first: `isthmus adopt end`.",
    ),
    "adoption_refused": Code(
        "Refused",
        "Nodes cannot be adopted as they are; nothing was written. The details list all findings.",
        "Correct what each finding names, make the plan anew, and run it.",
    ),
    "adopt_plan_invalid": Code(
        "BadRequest",
        "The file is no plan of an adoption, or was changed since it was made.",
        "Make the plan anew from the cluster's own objects; a plan is not edited.",
    ),
    "adopt_node_unreadable": Code(
        "Refused",
        "What the object says of the node does not suffice: no machine id, no one address, no kind.",
        "The message says what is missing and which option or annotation gives it.",
    ),
    "adopt_node_unnamed": Code(
        "Refused",
        "A lease or a CiliumNode belongs to no node of the input.",
        "Give the list of nodes that has it (`--nodes`, `--hosts`), or remove what a gone node has left.",
    ),
    "adopt_annotation_missing": Code(
        "Refused",
        "The node lacks annotations that flannel writes: there is no device to take over, or flannel is off.",
        "Start flannel on it, or leave the node out (`--skip`).",
    ),
    "adopt_annotation_unreadable": Code(
        "Refused",
        "Flannel's annotation with the VTEP's MAC is no JSON object.",
        "Restart flannel on that node, which writes it anew.",
    ),
    "adopt_backend": Code(
        "Refused",
        "Flannel's backend on the node is not vxlan; only a VXLAN device can be taken over.",
        "Bring flannel to its vxlan backend first, or leave the node out (`--skip`).",
    ),
    "adopt_vni_differs": Code(
        "Refused",
        "The node has another VNI than the others.",
        "Give it the others' VNI in flannel's configuration, or leave the node out (`--skip`).",
    ),
    "adopt_port_differs": Code(
        "Refused",
        "The node has another VXLAN port than the others.",
        "Give it the others' port in flannel's configuration, or leave the node out (`--skip`).",
    ),
    "adopt_mtu_differs": Code(
        "Refused",
        "The node's inner MTU is another one than that of the others.",
        "Say one that suits all by `--mtu`, or make the nodes' underlays alike first.",
    ),
    "adopt_kernel_old": Code(
        "Refused",
        "The node's kernel is older than what taking its device over needs.",
        "Plan with `--keep-name` (devices keep their names), update the kernel, or leave it out (`--skip`).",
    ),
    "adopt_halted": Code(
        "Refused",
        "A node lost packets, or its agent was not ready in time; it was given back, and the run halted.",
        "The message names the probes and what the agent says; when that is mended, run it again.",
    ),
    "adopt_range_missing": Code(
        "Refused",
        "The node has no range.",
        "Let the present network give it one, or leave the node out: it joins as a new one.",
    ),
    "adopt_range_unreadable": Code(
        "Refused",
        "What is given as the node's range is no IPv4 network (masked by whoever passed the file on, perhaps).",
        "Make the plan from the cluster's own objects.",
    ),
    "adopt_range_ipv6": Code(
        "Refused",
        "The node's range is an IPv6 one; the overlay carries IPv4.",
        "Leave the node out, or give it an IPv4 range in the present network first.",
    ),
    "adopt_range_several": Code(
        "Refused",
        "The node has several ranges; here every node has exactly one.",
        "Drain the node and let it join as a new one, or free the further ranges first.",
    ),
    "adopt_range_host_bits": Code(
        "Refused",
        "The range's address is not the first one of the range.",
        "The message shows the range that is probably meant.",
    ),
    "adopt_range_size": Code(
        "Refused",
        "The node's range has another size than the cluster's ranges.",
        "Plan with the size that most nodes have; drain the others and let them join as new ones.",
    ),
    "adopt_range_outside": Code(
        "Refused",
        "The range lies outside the container CIDRs.",
        "Plan with the CIDR that the present network uses, or append one: `isthmus cluster append CIDR`.",
    ),
    "adopt_range_service": Code(
        "Refused",
        "The range overlaps the Service range, the last segment of the container CIDR.",
        "Plan with fewer Services (`--services`), or drain the node and let it join as a new one.",
    ),
    "adopt_range_taken": Code(
        "Refused",
        "Another node has the range, or had it until just now; the message names both.",
        "Only one of the two can keep it: drain the other and let it join as a new one.",
    ),
    "adopt_range_fixed": Code(
        "Refused",
        "The node is a member with another range or another MAC.",
        "A member's range does not change: remove the node first, or make the plan anew.",
    ),
    "adopt_mac_invalid": Code(
        "Refused",
        "The VTEP's MAC is missing or is no locally administered unicast address.",
        "Restart the present network's daemon on that node, which gives its device a MAC and announces it.",
    ),
    "adopt_mac_taken": Code(
        "Refused",
        "Two nodes have one VTEP MAC (a cloned machine); the message names both.",
        "Delete the device on one of them and restart the present network's daemon, which makes a new one.",
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
        "Give the machine a new identity (`isthmus agent new-identity --yes`), and let it join again.",
    ),
    "uid_in_use": Code(
        "Refused",
        "A live node of another name has the same uid: a cloned machine, or a renamed one.",
        "Give the clone a uid of its own (isthmus agent new-identity --yes), or remove the node of the old "
        "name first.",
    ),
    "identity_twice": Code(
        "Refused",
        "Two machines have one identity (a clone): the one that reports keeps its place, the other is held.",
        "On the copy stop the agent, run `isthmus agent new-identity --yes`, and start it.",
    ),
    "node_alive": Code(
        "Refused",
        "The name belongs to a member that has been heard: only a decision that names it replaces it.",
        "Give the machine one uid, or say that the member is to go: `isthmus node fence NODE --yes`, or "
        "`isthmus node import --replace NODE FILE`.",
    ),
    "name_repeated": Code(
        "Refused",
        "One batch of an import gives a name to two machines.",
        "Give each machine a name of its own.",
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
        "Ranges are assigned cyclically and sequentially; a request for a particular range is refused.",
        "Join without asking for one; the answer names the range.",
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
    "wireguard_missing": Code(
        "Refused",
        "The cluster encrypts, or is to, and nodes cannot: they have no WireGuard.",
        "Upgrade their agents; `isthmus doctor` on the node says why. Remove members that are gone.",
    ),
    "node_key_in_use": Code(
        "Refused",
        "Another live node has the same key: a cloned machine.",
        "On the copy stop the agent, run `isthmus agent new-identity --yes`, and start it.",
    ),
    # --- CLB -----------------------------------------------------------------------------------------
    "clb_unknown": Code("Refused", "No CLB reservation has that name.", "List them: `isthmus clb list`."),
    "clb_in_use": Code(
        "Refused",
        "Sources outside of the overlay come in by an address of the pair.",
        "Remove the entry that the message names, or move it to another address.",
    ),
    "entry_unknown": Code("Refused", "No entry has that name.", "List them: `isthmus entry list`."),
    "entry_address_unknown": Code(
        "Refused",
        "The address by which an entry's sources are to come is none that gateways hold.",
        "Reserve a pair for gateways: `isthmus clb reserve NAME --subnet CIDR --provider gateway`.",
    ),
    "cidr_conflict_with_entry": Code(
        "Refused",
        "A source of an entry and a container CIDR overlap.",
        "Choose another network; an entry lists hosts outside of the container network.",
    ),
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
        "Choose a cloud node; reserve with `isthmus clb reserve NAME --subnet CIDR --provider gateway`.",
    ),
    "clb_backend_unknown": Code(
        "Refused", "The reservation has no such backend or purpose.", "List them: `isthmus clb show NAME`."
    ),
    "clb_not_holder": Code(
        "Refused",
        "The node reports about an address that it does not hold at that epoch.",
        "Nothing to do: the agent learns of the new holder from the log.",
    ),
}
