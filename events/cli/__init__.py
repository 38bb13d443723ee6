"""What every role's command line shares. Nothing here knows a command of the product.

``options``         bus options, and running a command's coroutine; ``traced_client`` asks the controllers
``tables``          tables for people, JSON for programs
``config``          one TOML file, then the environment, then flags
``config_command``  ``isthmus config``
"""
