"""Codes of configuration, archives, questions about the past, and the machine itself."""

from __future__ import annotations

from events.codes.code import Code

LOCAL_CODES: dict[str, Code] = {
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
    "evidence_missing": Code(
        "VerificationFailed",
        "A log was to be proven by a key, and nothing that the key signed is about it.",
        "Give the checkpoints that the controller signed (--checkpoints), or an archive that is signed.",
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
    "read_model_damaged": Code(
        "VerificationFailed",
        "The file of a read model is not what was written. Everything in it follows from the log.",
        "Leave out --read-model; a controller makes its own anew when it meets the damage.",
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
    "file_unusable": Code(
        "Usage",
        "A file that the command line names, or the input, cannot be read or written.",
        "Correct the path, its permissions or its encoding (UTF-8).",
    ),
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
    "adopt_device_differs": Code(
        "Refused",
        "The device to take over is not the one that the log knows, or the kernel cannot rename it.",
        "The message names what differs; it is left as it is. Plan the adoption anew.",
    ),
    "agent_running": Code(
        "Refused",
        "An agent already runs on this node with the same state directory.",
        "Stop it first (`systemctl stop isthmus-agent`), or give the second one a --state-dir of its own.",
    ),
    "join_running": Code(
        "Refused",
        "Another join or leave is at work on this machine.",
        "When it has ended, the same command goes on from there.",
    ),
    "identity_unreadable": Code(
        "Refused",
        "The files that say who this installation is are damaged or contradict each other.",
        "Restore them, give the uid by --uid, or run `isthmus agent new-identity --yes`, as the message says.",
    ),
    "pods_running": Code(
        "Refused",
        "Pods still run on this node, with addresses of a range that it gives up.",
        "End them first, or say --yes: the range is not reused before they are gone.",
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
        "If the log was restored from a backup: stop the agent, `isthmus agent forget --yes`, start it; the "
        "rows stay. If the cluster was made anew on purpose: `isthmus agent clean --yes`.",
    ),
    "not_permitted": Code(
        "Refused",
        "The operating system denies a capability that this needs.",
        "Run with the capability, or as the account, that the message names.",
    ),
    "data_in_use": Code(
        "Refused",
        "Another process holds the data directory.",
        "Stop the other process, or give this one a directory of its own (`--data`).",
    ),
    "agent_not_ready": Code(
        "Unavailable",
        "The agent was started and did not become ready in time; the message says what it waits for.",
        "Look with `isthmus agent status` and at its journal, mend that, and repeat the same command.",
    ),
    "bus_elsewhere": Code(
        "Refused",
        "The bus of this Kubernetes cluster, and its log, are on another node: a second log is not begun here.",
        "Let the pod run on the node that the message names; back the log up by `isthmus replay export FILE`.",
    ),
    "command_failed": Code(
        "Refused",
        "A program of the system that was needed ended with an error; its own words are in the message.",
        "Mend what it complains of and repeat the same command.",
    ),
    "file_exists": Code(
        "Refused",
        "A file that had to be written is there already, is somebody else's, and says something else.",
        "Move it away or remove it, and repeat the same command.",
    ),
    "kubernetes_config": Code(
        "Refused",
        "There is no readable access to a Kubernetes API server.",
        "Run as a pod with its ServiceAccount, or say --kubeconfig FILE.",
    ),
    "kubernetes_refused": Code(
        "Refused",
        "The Kubernetes API server refuses a request of the bridge: rights, or a value that it does not take.",
        "The message has its words; the rights are in the manifests' rbac.yaml.",
    ),
    "kubernetes_unreachable": Code(
        "Unavailable",
        "The Kubernetes API server does not answer; members, ranges and packets go on without it.",
        "Nothing: what is missing on Nodes is written once it answers. Look at the API server if it lasts.",
    ),
    "machine_is_a_node": Code(
        "Refused",
        "This machine is a node already, of another name or cluster than the token's.",
        "`isthmus leave --yes` makes it a bare machine again; then repeat the join.",
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
