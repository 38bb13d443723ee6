"""The embedded nats-server: its configuration and its process.

``config``    the settings that every server of ours has, as text
``process``   one server as a child: started, watched, restarted, ended with its owner
"""
