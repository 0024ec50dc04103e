"""The web face of the daemon: the app with all its paths, and the server that runs it in a thread.

Promises:   start() returns when it listens, or raises a named error; stop() ends within its deadline. Nothing that
            walks a pool holds up the event loop. A connection that sends its request too slowly is closed.
Leaves:     who may ask to `access`, what is answered to `admin`, `metrics`, `feed` and the dashboard's own files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as PathRoute
from starlette.types import ASGIApp

from maru.daemon.access import READING, Access, role_of
from maru.daemon.admin import Admin
from maru.daemon.answers import Refused, answer, read_body, refusal, refused_by_pool
from maru.daemon.audited_web import WebAudit
from maru.daemon.facts import Facts
from maru.daemon.feed import SAMPLE_S, Feed, Followers
from maru.daemon.keeps import KeptPrefixes
from maru.daemon.looks import Looks
from maru.daemon.metrics import CONTENT_TYPE, Metrics
from maru.daemon.openapi import describe
from maru.daemon.patient_http import BoundedProtocol
from maru.daemon.prewarm import Prewarmer
from maru.daemon.routes import ROUTES, Route
from maru.daemon.web_settings import WebSettings
from maru.errors import CannotListen, MaruError

DASHBOARD = {
    "index.html": "text/html; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "figures.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", *(f"/dashboard/{name}" for name in DASHBOARD)})
BEAT_S = 1.0
START_DEADLINE_S = 10.0
_log = logging.getLogger("maru.daemon")
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def make_app(facts: Facts, settings: WebSettings) -> Starlette:
    """The app. Its lifespan keeps time: keeps end, history is sampled; at its end all keeps and streams end.

    Raises NotProtected for settings that would show pools, or tokens, to a network.
    """
    settings.refuse_unprotected()
    looks = Looks(facts, settings.look_age_s_max)
    keeps = KeptPrefixes(settings.keeps_max, settings.keep_share_max)
    prewarmer = Prewarmer(settings.engines, settings.prewarm_queue_max, settings.prewarm_deadline_s)
    admin, metrics, feed = Admin(facts, looks, keeps, prewarmer), Metrics(facts, looks), Feed(facts, looks, keeps)
    authenticate = settings.authenticate
    description = describe(ROUTES, facts.identity.version, authenticate is not None)

    def still_allowed(request: Request) -> bool:
        return authenticate is None or role_of(request.headers.get("authorization", ""), authenticate) is not None

    followers = Followers(feed, settings.listeners_max, still_allowed)

    async def page(request: Request) -> Response:
        name = request.path_params.get("file", "index.html")
        if name not in DASHBOARD:
            raise HTTPException(404)
        return Response(_file(name), media_type=DASHBOARD[name])

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        is_ready, why_not = await run_in_threadpool(facts.is_ready)
        told = f"not ready: {why_not}" if request.state.role and why_not else "not ready"
        return PlainTextResponse("ready\n" if is_ready else told + "\n", 200 if is_ready else 503)

    async def scrape(_: Request) -> Response:
        return Response(await run_in_threadpool(metrics.text), headers={"Content-Type": CONTENT_TYPE})

    async def events(request: Request) -> ASGIApp:
        return Response(media_type="text/event-stream") if request.method == "HEAD" else followers.follow(request)

    async def openapi(_: Request) -> Response:
        return answer(description)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        beat = asyncio.create_task(_beat(keeps, feed))
        try:
            yield
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
            await run_in_threadpool(prewarmer.stop, settings.stop_deadline_s)
            keeps.end_all()

    plain: list[tuple[str, Endpoint]] = [
        ("/", page),
        ("/dashboard/{file}", page),
        ("/healthz", healthz),
        ("/readyz", readyz),
        ("/metrics", scrape),
        ("/events", events),
        ("/v1/openapi.json", openapi),
    ]
    routes = [PathRoute(path, _guarded(endpoint), methods=["GET"]) for path, endpoint in plain]
    by_path: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        by_path.setdefault(route.path, {})[route.method] = route
    for path, methods in by_path.items():
        endpoint = _endpoint(admin, methods, settings.audit)
        routes.append(PathRoute(path, _guarded(endpoint, settings.audit), methods=list(methods)))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Access, authenticate=authenticate, open_paths=OPEN_PATHS, audit=settings.audit)],
        exception_handlers={HTTPException: _no_such_path},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.followers = followers
    return app


async def _beat(keeps: KeptPrefixes, feed: Feed) -> None:
    """What has to happen as time goes by. A pool that fails meanwhile stops none of it."""
    beats = 0
    while True:
        try:
            await run_in_threadpool(keeps.end_late)
            if beats % round(SAMPLE_S / BEAT_S) == 0:
                await run_in_threadpool(feed.sample)
        except Exception:
            _log.exception("the daemon's beat failed")
        beats += 1
        await asyncio.sleep(BEAT_S)


def _endpoint(admin: Admin, methods: dict[str, Route], audit: WebAudit | None) -> Endpoint:
    """One path of the admin API, all its methods."""

    async def endpoint(request: Request) -> Response:
        route = methods["GET" if request.method == "HEAD" else request.method]
        body = await read_body(request, route.body) if route.body else None
        told = request.path_params if body is None else {**request.path_params, "body": body}
        done = await run_in_threadpool(getattr(admin, route.does), **told)
        if audit is not None:
            audit.changed(request, route, told, done)
        return answer(done, route.status)

    return endpoint


def _guarded(endpoint: Endpoint, audit: WebAudit | None = None) -> Callable[[Request], Awaitable[Response]]:
    """Every failure becomes an answer in the one form that refusals have; one of a change is noted."""

    def refuse(request: Request, refused: Refused) -> Response:
        if audit is not None and request.method not in READING:
            audit.refused(refused.status, refused.problem.error, request.headers.get("authorization", ""), request)
        return refusal(refused)

    async def guarded(request: Request) -> ASGIApp:
        try:
            return await endpoint(request)
        except Refused as refused:
            return refuse(request, refused)
        except MaruError as error:
            return refuse(request, refused_by_pool(error))
        except HTTPException:
            raise
        except Exception:
            _log.exception("%s %s failed", request.method, request.url.path)
            return refusal(Refused(500, "InternalError", "this daemon made a mistake; its log says which"))

    return guarded  # type: ignore[return-value]  # Starlette's types want a Response; any ASGI app does.


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 405:
        told = Refused(405, "WrongMethod", f"{request.method} is not a method of this path", "see /v1/openapi.json")
    else:
        told = Refused(404, "UnknownPath", "there is nothing at this path", "GET /v1/openapi.json lists what there is")
    response = refusal(told)
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


def _file(name: str) -> bytes:
    return (resources.files("maru.daemon") / "dashboard" / name).read_bytes()


class WebServer:
    """The app on a socket, in a thread of its own. Started once, stopped once."""

    def __init__(self, app: Starlette, settings: WebSettings) -> None:
        self.app, self._settings = app, settings
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began = threading.Event()
        self.port = 0
        """The one that it listens on, once started."""

    @property
    def url(self) -> str:
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        return f"{self._settings.scheme}://{host}:{self.port}"

    def start(self) -> None:
        """Listen. Raises CannotListen: the address is taken or foreign, or the certificate cannot be used."""
        settings = self._settings
        config = uvicorn.Config(
            self.app,
            http=BoundedProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.connections_max,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=max(1, round(settings.stop_deadline_s)),
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            ssl_ciphers="DEFAULT",  # Of OpenSSL; uvicorn's own default is a list from the time of TLS 1.0.
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise self._cannot(f"its certificate cannot be used: {error}") from error
        try:
            wire = _listening(settings.host, settings.port)
        except OSError as error:
            raise self._cannot(error.strerror or str(error)) from error
        self.port = wire.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, args=(wire,), name="maru-web", daemon=True)
        self._thread.start()
        if not self._began.wait(START_DEADLINE_S) or not self._server.started:
            self.stop()
            raise self._cannot("the server did not begin; the log says why")

    def stop(self) -> None:
        """End all streams, answer what is being asked, and let go of the port; within the settings' deadline."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        with contextlib.suppress(RuntimeError):  # The loop ended by itself.
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self.app.state.followers.closing.set)
        self._thread.join(self._settings.stop_deadline_s + 1)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1)

    def _run(self, wire: socket.socket) -> None:
        assert self._server is not None
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                runner.run(self._serve(self._server, wire))
        except SystemExit:  # uvicorn's way of saying that the lifespan failed; it has logged why.
            return
        finally:
            wire.close()
            self._began.set()

    async def _serve(self, server: uvicorn.Server, wire: socket.socket) -> None:
        serving = asyncio.ensure_future(server.serve(sockets=[wire]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        self._began.set()
        await serving

    def _cannot(self, why: str) -> CannotListen:
        host, port = self._settings.host, self._settings.port
        return CannotListen(f"cannot listen at {host}:{port}: {why}", host=host, port=port)


def _listening(host: str, port: int) -> socket.socket:
    """A bound socket. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    wire = socket.socket(family, kind, protocol)
    try:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wire.bind(address)
        wire.listen(128)
    except OSError:
        wire.close()
        raise
    return wire
