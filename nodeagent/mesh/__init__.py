"""Whether pods of this node reach those of each other node: measured through the tunnel, sparsely.

``schedule``  whom to ask when (pure)
``book``      what was asked, answered and heard, and what that means (pure)
``packets``   the questions and answers as bytes (pure)
``prober``    sends, answers and reports
``tracing``   follows the way to one peer hop by hop
``requests``  hears whose way somebody wants traced
"""
