"""`maru serve`: run the daemon of this host's pool until it is told to end."""

from __future__ import annotations

import os
import signal
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maru.address import TIERS_VARIABLE
from maru.config import has_password, redact
from maru.credentials.memory import keep_out_of_dumps
from maru.errors import MaruError
from maru.terminal import complain, config_of, print_json

if TYPE_CHECKING:
    from maru.daemon.peers import PeerSettings

REGISTRY_VARIABLE, TOKEN_VARIABLE = "MARU_REGISTRY", "MARU_PEER_TOKEN"
IN_VARIABLE = f"give it by {TIERS_VARIABLE}, or {REGISTRY_VARIABLE}"
SERVE_MODULES = frozenset({"cryptography", "msgspec", "prometheus_client", "starlette", "uvicorn", "zmq"})


def serve(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="NAME or maru:/// URL; made when it is not there.")],
    listen: Annotated[
        str, typer.Option("--listen", metavar="URL", help="Where other hosts ask: tcp://ADDRESS:PORT.")
    ] = "tcp://127.0.0.1:6555",
    http: Annotated[
        str,
        typer.Option("--http", metavar="ADDRESS:PORT", help="Dashboard, /metrics and admin API; 'off' for none."),
    ] = "127.0.0.1:6556",
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="DIR", help="Who may ask, by RPC and HTTP: the folder of `maru keys`."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Serve other hosts without encryption. On a network you trust wholly.")
    ] = False,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME=URL", help="An OpenAI-compatible engine that may be asked to prewarm."),
    ] = None,
    kv_events: Annotated[
        str,
        typer.Option("--kv-events", metavar="URL[,URL]", help="KV events for routers: where to send, and to replay."),
    ] = "",
    chunk_tokens: Annotated[
        int, typer.Option("--chunk-tokens", min=0, help="Tokens in a chunk, if all engines agree: told in KV events.")
    ] = 0,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            "--tier",
            metavar="URL",
            envvar=TIERS_VARIABLE,
            show_default=False,
            help="A place below the pool, the nearest first: file:///DIR?size=1TiB, s3://BUCKET/PREFIX, redis://HOST. "
            "A password goes into the variable.",
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="NAME=URL", help="Another daemon's http(s) address, to show; may be repeated."),
    ] = None,
    peer_ca: Annotated[
        Path | None, typer.Option("--peer-ca", metavar="FILE", help="Certificates to trust, of peers by https.")
    ] = None,
    registry: Annotated[
        str,
        typer.Option(
            "--registry",
            metavar="URL",
            envvar=REGISTRY_VARIABLE,
            show_default=False,
            help="Valkey or Redis where daemons find each other: redis://HOST:PORT. A password goes into the variable.",
        ),
    ] = "",
    audit: Annotated[
        Path | None,
        typer.Option("--audit", metavar="FOLDER", help="Keep a log there of who stored, hit, was refused, changed."),
    ] = None,
    audit_key: Annotated[
        Path | None,
        typer.Option("--audit-key", metavar="FILE", help="Its key, when not FOLDER/audit.key: maru audit key FILE."),
    ] = None,
    local: Annotated[
        Path | None,
        typer.Option("--local", metavar="PATH", help="A Unix socket for users of this host, by `maru keys add --uid`."),
    ] = None,
    lease_s: Annotated[
        float, typer.Option("--lease", min=2, max=300, help="Seconds after which a silent host has given back all.")
    ] = 10.0,
    core_dumps: Annotated[
        bool, typer.Option("--core-dumps", help="Let this process be dumped and debugged, with the keys it holds.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Say where it listens as one JSON line.")] = False,
) -> None:
    """Serve this host's pool to those who cannot share its memory: other hosts, people, Prometheus, routers.

    Instances on this host need no daemon, and do not notice when it ends: the pool is theirs too.

    [bold]Examples[/bold]

    [cyan]maru serve kv[/cyan]   for clients on this host, and to try it
    [cyan]maru serve 'maru:///kv?size=64GiB' --listen tcp://10.0.0.7:6555 --keys ~/.config/maru/keys[/cyan]
    [cyan]python -c "import maru; print(maru.connect('maru://10.0.0.7:6555', key='b.key').stats())"[/cyan]
    """
    try:
        from maru.daemon.kv_publisher import EventSettings
        from maru.daemon.serve import Daemon, ServeConfig
        from maru.daemon.sessions import Limits
        from maru.daemon.web_settings import Engine, WebSettings
    except ModuleNotFoundError as error:
        if error.name not in SERVE_MODULES:
            raise
        complain(f"the daemon needs {error.name}: pip install 'maru-kvcache[serve]'")
        raise typer.Exit(1) from None
    for secret in [url for url in (*(tier or []), registry) if url in sys.argv[1:] and has_password(url)]:
        complain(f"everybody on this host sees the password of {redact(secret)} among the processes: {IN_VARIABLE}")
    if not core_dumps:
        keep_out_of_dumps()
    config_of(pool, None)
    url = pool if pool.startswith("maru:") else f"maru:///{pool}"
    web = None
    if http != "off":
        host, port = _place(http)
        engines = {}
        for text in engine or []:
            name, equals, engine_url = text.partition("=")
            try:
                engines[name] = Engine(engine_url)
            except ValueError as error:
                raise typer.BadParameter(f"--engine {name}{equals}...: {error}") from None
        web = WebSettings(host=host, port=port, plain=plain, engines=engines)
    events = None
    if kv_events:
        endpoint, _, replay = kv_events.partition(",")
        events = EventSettings(endpoint, replay or _next_port(endpoint), chunk_tokens=chunk_tokens)
    limits = Limits(lease_s=lease_s, guard_s=min(1.0, lease_s / 4))
    found = _peers(peer or [], peer_ca, registry)
    daemon = Daemon(
        ServeConfig(url, listen, plain, keys, web, events, limits, found, tuple(tier or []), audit, audit_key, local)
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with daemon:
            told = {"pool": daemon.pool.config.url, "rpc": daemon.rpc_server.url}
            if daemon.web_server:
                told["http"] = daemon.web_server.url
            if local:
                told["local"] = f"unix://{local.absolute()}"
            if daemon.events:
                told["kv_events"] = endpoint
            if json_output:
                print_json(told)
                sys.stdout.flush()
            else:
                typer.echo(f"serving {redact(told['pool'])} at {told['rpc']}; Ctrl-C ends it, and loses nothing")
                if "http" in told:
                    typer.echo(f"people look at {told['http']}/")
            daemon.wait()
            raise MaruError(f"nothing more to serve: {daemon.is_ready()[1]}")
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _peers(named: list[str], ca: Path | None, registry: str) -> PeerSettings:
    from maru.daemon.peers import PeerAddress, PeerSettings

    try:
        peers = tuple(PeerAddress(name, url) for name, _, url in (text.partition("=") for text in named))
        context = ssl.create_default_context(cafile=str(ca)) if ca else None
        return PeerSettings(peers, os.environ.get(TOKEN_VARIABLE, "").strip(), context, registry)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"--peer: {error}") from None


def _next_port(endpoint: str) -> str:
    """The port after this one, where replay is by default."""
    head, colon, port = endpoint.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        raise typer.BadParameter(f"--kv-events {endpoint}: write tcp://ADDRESS:PORT")
    return f"{head}:{int(port) + 1 if int(port) else 0}"


def _place(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise typer.BadParameter(f"--http {text}: write ADDRESS:PORT, or off")
    return host.strip("[]"), int(port)
