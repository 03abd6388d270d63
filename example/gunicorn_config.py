"""How gunicorn serves the example: several processes, all of which listen for aborts."""

from __future__ import annotations

wsgi_app = "example.wsgi"
worker_class = "gthread"
threads = 4
graceful_timeout = 3
# Newer versions put a socket into the home directory, which two fleets would fight for.
control_socket_disable = True
