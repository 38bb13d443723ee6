"""The application, and the server that runs it inside a controller's event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from litestar import Litestar, Request, Router
from litestar.config.compression import CompressionConfig
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, License, SecurityScheme, Tag
from litestar.static_files import create_static_files_router
from litestar.types import Guard, Message, Scope

from controlplane.console import routes
from controlplane.console.errors import (
    NotFound,
    on_defect,
    on_http_exception,
    on_isthmus_error,
    on_malformed,
    on_not_found,
)
from controlplane.console.inspector import Inspector
from controlplane.console.limits import RequestLimits, connection_class
from controlplane.console.live_feed import LiveFeed
from controlplane.console.security import COOKIE, HEADERS, Authenticator, caller_of, check_exposure
from events.codes.extras import our_version
from events.errors import IsthmusError, Unavailable
from events.protocol.queries import (
    CidrView,
    ClbAddressView,
    ClbBackendView,
    ClbView,
    PoolView,
    RangeView,
)

STATIC = Path(__file__).parent / "static"
BODY_LIMIT_BYTES = 16 * 1024


def create_app(source: Inspector, feed: LiveFeed, *, token: str = "") -> Litestar:
    """The API and the console of one controller.

    With a token, everything needs it but ``/healthz``, the session routes and the console's own files,
    which hold no data.
    """
    gate = Authenticator(token)

    def allowed(request: Request[Any, Any, Any]) -> bool:
        return gate.allows(
            request.headers.get("authorization", ""), request.cookies.get(COOKIE, ""), caller_of(request)
        )

    def here(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        gate.check_host(connection.headers.get("host", ""))

    # The framework copies its guards deeply; a plain function keeps the one gate.
    def let_in(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        gate.check(connection)

    guarded = Router(
        "/",
        route_handlers=[
            routes.OverlayController,
            routes.HistoryController,
            routes.TraceController,
            routes.LiveController,
            routes.metrics,
        ],
        guards=[let_in],
        security=[{"token": []}] if token else None,
    )
    public = Router("/", route_handlers=[routes.SessionController, routes.health], guards=[here])
    files = create_static_files_router(path="/", directories=[STATIC], html_mode=True, guards=[here])
    return Litestar(
        route_handlers=[guarded, public, files],
        dependencies={
            "source": Provide(lambda: source, sync_to_thread=False),
            "feed": Provide(lambda: feed, sync_to_thread=False),
            "gate": Provide(lambda: gate, sync_to_thread=False),
            "allowed": Provide(allowed, sync_to_thread=False),
        },
        exception_handlers={
            IsthmusError: on_isthmus_error,
            NotFound: on_not_found,
            RecursionError: on_malformed,
            HTTPException: on_http_exception,
            Exception: on_defect,
        },
        before_send=[_add_headers],
        compression_config=CompressionConfig(
            backend="gzip", minimum_size=4096, gzip_compress_level=1, exclude=["/api/v1/live"]
        ),
        openapi_config=_openapi(let_in),
        request_max_body_size=BODY_LIMIT_BYTES,
        debug=False,
        logging_config=None,
    )


_WHOLE = (CidrView, PoolView, RangeView, ClbView, ClbAddressView, ClbBackendView)
"""Shapes shared with the bus: their defaults are for answers of older controllers; here every field is sent."""


class _Document(JsonRenderPlugin):
    """The OpenAPI document; it says of shared shapes, too, which fields are always there."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        schemas = openapi_schema["components"]["schemas"]
        for shape in _WHOLE:
            schemas[shape.__name__]["required"] = sorted(schemas[shape.__name__]["properties"])
        return super().render(request, openapi_schema)


def _openapi(guard: Guard) -> OpenAPIConfig:
    # The framework's documentation pages load scripts from other hosts; only the document is served.
    return OpenAPIConfig(
        title="Isthmus",
        version=our_version(),
        description="The overlay of one cluster, now and at any sequence of its log. "
        "Reading only: commands go over the bus.",
        license=License(name="Apache-2.0", identifier="Apache-2.0"),
        openapi_router=Router("/api", route_handlers=[], guards=[guard], include_in_schema=False),
        render_plugins=[_Document(path="/openapi.json")],
        use_handler_docstrings=True,
        components=Components(
            security_schemes={
                "token": SecurityScheme(type="http", scheme="bearer", description="On loopback none is needed.")
            }
        ),
        tags=[
            Tag(name="overlay", description="The overlay itself, now or at any sequence."),
            Tag(name="history", description="The log, the time line, and how the agents follow."),
            Tag(name="traces", description="The built-in span store."),
            Tag(name="live", description="The stream of changes."),
            Tag(name="session", description="Being let in."),
            Tag(name="operation", description="For monitoring."),
        ],
    )


async def _add_headers(message: Message, _: Scope) -> None:
    """What every answer says to browsers, errors included. Nothing is cached: data moves, files may."""
    if message["type"] != "http.response.start":
        return
    present = {name.lower() for name, _ in message["headers"]}
    extra = [(name, value) for name, value in _HEADER_BYTES if name not in present]
    message["headers"] = [*message["headers"], *extra]


_HEADER_BYTES = [
    (name.encode(), value.encode()) for name, value in {**HEADERS, "cache-control": "no-store"}.items()
]


class _Server(uvicorn.Server):
    """uvicorn inside a process that handles its own signals."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the controller."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def serve(
    source: Inspector, *, host: str = "127.0.0.1", port: int = 0, token: str = "", feed: LiveFeed | None = None
) -> AsyncIterator[str]:
    """Serve API and console until the block is left; yields the address (``http://127.0.0.1:7480``).

    Raises Usage(usage) when the address demands a token that is not given, and
    Unavailable(prerequisite_missing) when it cannot be bound. Leaving takes at most about two seconds, open
    streams included. A cancellation inside of the block ends it, too.
    """
    check_exposure(host, token)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise Unavailable(
            "prerequisite_missing",
            f"the console cannot listen on {host}:{port}: {error.strerror or error}; choose another",
        ) from error
    feed = feed or LiveFeed(source)
    server = _Server(
        uvicorn.Config(
            RequestLimits(create_app(source, feed, token=token)),  # type: ignore[arg-type]  # its own names of the same
            http=connection_class(),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=True,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=1,
        )
    )
    feeding = asyncio.create_task(feed.run(), name="console-feed")
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="console-http")
    try:
        ready = asyncio.create_task(server.ready.wait())
        await asyncio.wait({ready, serving}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        ready.cancel()
        number = listener.getsockname()[1] if serving.done() is False else port
        yield f"http://{f'[{host}]' if ':' in host else host}:{number}"
    finally:
        feeding.cancel()
        server.should_exit = True
        await asyncio.wait({feeding, serving}, timeout=3)
        serving.cancel()
        await asyncio.gather(feeding, serving, return_exceptions=True)
        listener.close()
