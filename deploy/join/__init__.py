"""``isthmus join`` and ``isthmus leave``: one command that makes a machine a node, and one that undoes it.

``files``     what is written where, as text; pure
``progress``  the steps with their outcome, for people and programs
``host``      this machine: systemd, accounts, the ``isthmus`` executable
``containers`` the agent as a container: engine, command, taking it away
``joining``   the steps of a join
``alone``     the file that installs Isthmus on a machine with only Python, and joins
``foreground`` what becomes of an agent in the join's own place
``leaving``   the steps of a leave
``peers``     asking each peer through the tunnel whether it answers
``cli``       the commands
"""
