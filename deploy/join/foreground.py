"""What becomes of an agent that takes the join's own place, told by a process beside it.

The join ends where the agent begins: whatever started it (a container, a supervisor, a person) keeps and
signals one and the same process. So somebody else must wait until the node is ready and ask its peers.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from deploy.join.joining import Joined, JoinRequest, at_work
from deploy.join.progress import Progress
from events.cli.options import run
from events.errors import IsthmusError


def watch_over(request: JoinRequest, joined: Joined, progress: Progress, say: Callable[[Joined], None]) -> None:
    """Leave a process that says what becomes of this one, and go on at once.

    It ends when it has said that, when this process does, or when nobody listens any more; it is nobody's
    child, so that the agent has none to wait for.
    """
    agent = os.pidfd_open(os.getpid())
    child = os.fork()
    if child:
        os.close(agent)
        os.waitpid(child, 0)
        return
    code = 0
    try:
        if os.fork() == 0:
            code = _watch(request, joined, progress, say, agent)
    finally:
        os._exit(code)


def _watch(
    request: JoinRequest, joined: Joined, progress: Progress, say: Callable[[Joined], None], agent: int
) -> int:
    ended = select.poll()
    ended.register(agent, select.POLLIN)
    try:
        say(run(at_work(request, joined, progress, lambda: not ended.poll(0))))
        sys.stdout.flush()
    except IsthmusError as error:
        if not ended.poll(0):  # an agent that has ended said why itself
            sys.stderr.write(f"isthmus: {error.message} [{error.code}]\n")
    except (OSError, KeyboardInterrupt, SystemExit):
        return 1
    return 0
