"""What crosses the bus besides events: every command, question and answer, as frozen structs.

``commands``  what can be asked of a controller, and the reply to it
``queries``   questions about the present, and their answers
``clb``       who holds which CLB address, and what stands behind it: the shapes that both sides share

Shapes only. Nothing here decides, sends or stores.
"""
