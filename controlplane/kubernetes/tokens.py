"""Which node a pod runs on, by its projected ServiceAccount token. Shapes and the rule; no I/O.

The API server says whose token it is (TokenReview): of which account, for which audience, and, since
Kubernetes 1.30, on which Node the pod runs that the token is bound to. A token of a pod that was deleted,
one that has expired and one for another audience are not vouched for.
Source: ``authentication.k8s.io/v1 TokenReview`` of Kubernetes 1.36.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from events.errors import Refused

AUDIENCE = "isthmus"
ACCOUNT = "isthmus-system/isthmus-agent"
"""Namespace and name of the ServiceAccount that agents run as."""
_EXTRA = "authentication.kubernetes.io/"


class ReviewedUser(msgspec.Struct, frozen=True):
    """``status.user``. ``extra`` has the Node and the pod, each as a list of one."""

    username: str = ""
    extra: dict[str, tuple[str, ...]] | None = None


class ReviewStatus(msgspec.Struct, frozen=True):
    """``status``. ``audiences`` are those asked for that the token is meant for."""

    authenticated: bool = False
    user: ReviewedUser = ReviewedUser()
    audiences: tuple[str, ...] | None = None
    error: str = ""


class TokenReview(msgspec.Struct, frozen=True):
    """What the API server says of a token."""

    status: ReviewStatus = ReviewStatus()


class Reviewer(Protocol):
    """Who can say whose token it is."""

    async def review_token(self, token: str, audience: str) -> TokenReview:
        """Raises Unavailable(kubernetes_unreachable), Refused(kubernetes_refused).

        Cancelled, it leaves nothing behind.
        """
        ...


class Pod(NamedTuple):
    """A pod that proved itself, and where it runs. ``name`` is its namespace and name."""

    node: str
    node_uid: str
    name: str
    uid: str


def review(token: str, audience: str) -> dict[str, Any]:
    """The request."""
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }


def pod_of(found: TokenReview, node: str, *, audience: str = AUDIENCE, account: str = ACCOUNT) -> Pod:
    """The pod, if it is one of ``account`` that runs on ``node``; ``account`` is NAMESPACE/NAME.

    Raises Refused: ``service_account_invalid`` when the API server does not vouch for the token,
    ``service_account_forbidden`` when it is another account's, no pod's, or on another Node.
    """
    said = found.status
    if not said.authenticated or audience not in (said.audiences or ()):
        audiences = ", ".join(said.audiences or ()) or "no audience that it names"
        meant = f"it is for {audiences}" if said.authenticated else "it has expired, or is none of this cluster"
        why = said.error or meant
        raise Refused(
            "service_account_invalid",
            f"the API server does not vouch for the token of the pod on {node} for the audience "
            f"{audience!r}: {why}",
            node=node,
        )
    user, extra = said.user.username, said.user.extra or {}
    namespace, _, name = account.partition("/")
    wanted = f"system:serviceaccount:{namespace}:{name}"
    if user != wanted:
        raise Refused(
            "service_account_forbidden",
            f"the token is one of {user or 'nobody'}, agents are {wanted}",
            node=node,
        )
    values = [_one(extra, key) for key in ("node-name", "node-uid", "pod-name", "pod-uid")]
    if not all(values):
        raise Refused(
            "service_account_forbidden",
            "the API server does not say on which Node the token's pod runs: the token is bound to no pod, or "
            "Kubernetes is older than 1.30; such nodes join by `isthmus token create NODE --bus URL`",
            node=node,
        )
    pod = Pod(values[0], values[1], f"{namespace}/{values[2]}", values[3])
    if pod.node != node:
        raise Refused(
            "service_account_forbidden",
            f"the token's pod {pod.name} runs on the Node {pod.node}, and asks for the credentials of {node}",
            node=node,
        )
    return pod


def _one(extra: dict[str, tuple[str, ...]], key: str) -> str:
    found = extra.get(f"{_EXTRA}{key}", ())
    return found[0] if len(found) == 1 else ""
