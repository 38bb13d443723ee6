"""The HTTP API of a controller and the web console on top of it. Read-only: commands go over the bus.

=============  ==============================================================================
``views``      the shapes of every answer
``build``      cluster state → answers; pure
``source``     the port: what the API needs from a controller
``api``        the routes
``live``       the stream of changes (Server-Sent Events)
``security``   who may ask: loopback without a token, anybody else with it; headers of every answer
``server``     the application, and the server that runs it inside a controller
``static/``    the console: plain HTML, CSS and JavaScript, nothing to build, nothing from outside
=============  ==============================================================================
"""
