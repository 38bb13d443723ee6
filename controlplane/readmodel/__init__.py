"""The read model: the log projected into SQLite, so that the present and the past can be queried.

==============  ===========================================================================
``schema``      the tables: every row valid from one sequence to another, with times
``rows``        one event → its rows
``store``       the files, one transaction per batch with the checkpoint in it
``projector``   feeds the store from the log; stops or parks at an event that it cannot apply
``asof``        rows → the cluster's state at any sequence, and its digest
``rebuild``     a new file beside the live one, switched in when its digest matches
==============  ===========================================================================

It is a cache: everything in it follows from the log, and losing it loses nothing. It must never import the
write side (:mod:`controlplane.controller`).
"""
