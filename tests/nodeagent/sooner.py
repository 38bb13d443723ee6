"""A program of ours with other limits than it has, so that a test sees what is over after a day.

``python -m tests.nodeagent.sooner MODULE:NAME=NUMBER[,…] PROGRAM ARGUMENT …`` runs ``isthmus ARGUMENT …``.
"""

from __future__ import annotations

import importlib
import sys

if __name__ == "__main__":
    for one in sys.argv[1].split(","):
        name, _, value = one.partition("=")
        module, _, attribute = name.partition(":")
        owner = importlib.import_module(module)
        assert isinstance(getattr(owner, attribute), float), name
        setattr(owner, attribute, float(value))
    sys.argv[:] = ["isthmus", *sys.argv[3:]]
    from controlplane.cli.main import main

    main()
