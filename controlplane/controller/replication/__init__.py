"""The cluster's state in this process: folded from the log, with its hash chain verified.

``replica``        the fold, and waiting for a sequence
``command_dedup``  which command ids have already happened
``restore``        the state at start, from the own read model if it is of this very log
``parker``         parks a poison event by saying so in the log
``rollback``       opens the way back to an earlier release, by parking what it cannot follow
``halted_log``     keeps a controller up whose log holds an event that cannot be followed
"""
