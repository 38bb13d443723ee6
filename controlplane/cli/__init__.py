"""The command line of the control plane, and the root command that gathers everybody's.

``main``     the root: finds each command by its entry point, and says what went wrong
``common``   what several commands share; ``serving``, ``controller_process``: a controller that runs here
Each other module has the verbs of one subject. Nothing here decides: commands go over the bus.
"""
