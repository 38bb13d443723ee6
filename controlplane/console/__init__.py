"""The HTTP API of a controller and the web console on top of it. Read-only: commands go over the bus.

================  ==============================================================================
``schemas``       the shapes of answers that only HTTP has; those shared with the bus: ``events.protocol``
``presenters``    cluster state → answers; pure (``clb_presenters``: those of one reservation)
``source``        the port: what the API needs from a controller; ``inspector`` is it, over a running one
``as_of``         from a sequence or a time to the state, and the reports, of that moment
``event_queries`` which events, and the log in buckets; ``event_text``: each event as a sentence
``routes``        the routes
``live_feed``     the stream of changes (Server-Sent Events)
``security``      who may ask: loopback without a token, anybody else with it; headers of every answer
``server``        the application, and the server that runs it inside a controller
``static/``       the console: plain HTML, CSS and JavaScript, nothing to build, nothing from outside
================  ==============================================================================
"""
