"""Proving a log: the chain, every event's form, the invariants at each sequence, the states of others.

``lines_check`` judges event lines one segment at a time, in any process; ``verify`` drives it and the
fold side by side; ``report`` makes the paper that an auditor files. A finding locates what is wrong
and the search goes on behind it, so that one run names all of it.
"""
