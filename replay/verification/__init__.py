"""Proving a log: the chain, every event's form, the invariants at each sequence, the states of others.

``fast_check`` judges stretches of event lines as a whole, ``full_check`` each line where something is unusual,
both in any process; ``folding`` judges what the events mean; ``verify`` drives them side by side, and
``report`` makes the paper that an auditor files. A finding locates what is wrong and the search goes on after
it, so that one run names all of it.
"""
