"""The shared contract: what was decided (the log) and what is said on the bus, and nothing else.

Here may live only what at least two of ``controlplane``, ``nodeagent``, ``replay`` and ``deploy`` need, and
which must be the same on both sides of a wire, a file or a command line. It imports nothing of ours.
Bottom up, each importing only what stands before it: the core (the modules of this folder: events, their
envelope, codec and chain, the log as a port), ``protocol/`` (commands, questions, answers), then ``bus/``,
``jetstream/`` and ``telemetry/`` (reaching the bus, the log on it, traces), and ``cli/``.
"""
