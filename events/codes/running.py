"""Codes of the log, the bus, integrity and credentials: what a running system meets."""

from __future__ import annotations

from events.codes.code import Code

RUNNING_CODES: dict[str, Code] = {
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
    "record_unavailable": Code(
        "Unavailable",
        "A file beside the read model (recent traces, what the agents reported) cannot be read or written now.",
        "Make room on the controller's disk; the control plane itself goes on.",
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
    "service_account_invalid": Code(
        "Refused",
        "The API server does not vouch for a pod's token: expired, for another audience, its pod gone.",
        "Nothing, if the pod was just deleted: its successor asks anew. Else look at its projected volume.",
    ),
    "service_account_forbidden": Code(
        "Refused",
        "A pod's token is genuine, but its pod is no agent of that node: another account, Node, or no pod.",
        "An agent gets the credentials of the Node that it runs on; the message names both sides.",
    ),
    "token_invalid": Code(
        "Refused",
        "The join token is damaged, expired, or for another node or cluster.",
        "Make a new one with `isthmus token create NODE --bus URL`.",
    ),
    "token_used": Code(
        "Refused",
        "The join token was used as often as it is good for.",
        "If that was not you, revoke the node at once; else make a new token.",
    ),
    "no_admission": Code(
        "Unavailable",
        "No issuer that answers may let in machines by a join token for several of them.",
        "Run one with `isthmus credentials serve --admit`; repeating is safe.",
    ),
    "token_limits": Code(
        "Refused",
        "A node was let in by a join token of one kind or site, and asks to join as another.",
        "Set kind and site in its configuration to what the message says.",
    ),
    "token_unknown": Code(
        "Refused",
        "There is no record of that join token.",
        "See `isthmus token list`.",
    ),
    "node_name_taken": Code(
        "Refused",
        "A join token for several machines was to give one a name that somebody has or had.",
        "Rename the machine, or make a token for that name alone with `isthmus token create NODE --bus URL`.",
    ),
}
