"""The command line of the control plane, and the root command that gathers everybody's."""
