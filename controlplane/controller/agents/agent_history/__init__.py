"""What the agents reported and how fast they followed, kept for a while so that the past can be shown whole.

The log remembers every decision for ever, and nothing of what the agents said about themselves: their
reports are observations and may be lost. So each controller keeps its own record of them, bounded and
beside the read model. Before it, and while no controller of this directory ran, the past view says
"not recorded" rather than guess.
"""
