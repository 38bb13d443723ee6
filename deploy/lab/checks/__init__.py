"""The lab's checks, with counted packets and real kernel tables; none takes the controller's word for it.

``overlay``, ``bus``, ``leaf``, ``clb``, ``clb_failures``   the checks, in the order in which the lab runs them
``nat``, ``joining``, ``direct``, ``encryption``, ``mesh``   those of one option each
``waiting``   what several of them wait for and count
"""
