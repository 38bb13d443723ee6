"""The shared contract: what was decided (the log) and what is said on the bus, and nothing else.

Here may live only what at least two of ``controlplane``, ``nodeagent``, ``replay`` and ``deploy`` need, and
which must be the same on both sides of a wire, a file or a command line. It imports nothing of ours.
Bottom up, each importing only what stands before it: the core (the modules of this folder: events, their
envelope, codec and chain, the log as a port), ``protocol/`` (commands, questions, answers), then ``bus/``,
``jetstream/`` and ``telemetry/`` (reaching the bus, the log on it, traces), and ``cli/``.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


class _ReadWhenUsed(ModuleType):
    """A module that is there by name; the first question for anything in it reads it."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if spec is None or spec.loader is None:
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        try:
            spec.loader.exec_module(self)
        except BaseException:
            sys.modules.pop(spec.name, None)
            raise
        return getattr(self, name)


def _read_when_used(name: str) -> None:
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    del module.__path__  # so that an import of a part of it reads it first
    module.__class__ = _ReadWhenUsed
    sys.modules[name] = module


# The bus client imports it for WebSockets: more than a third of the start of an agent and of most commands.
# (importlib's LazyLoader reads a module at the next `import` of it already.)
_read_when_used("aiohttp")
