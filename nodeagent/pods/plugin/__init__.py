"""The end of the CNI chain: a plugin of our own, and the socket at which the agent hears of pods from it.

``isthmus.c``, ``system.h``, ``build.sh``   the program (:mod:`nodeagent.pods.chain` finds and installs it)
``requests``, ``server``, ``answers``       what it says, taken at a Unix socket, and what the agent answers
"""
