"""`maru keys …`: who may speak to a daemon.

Holds what a person types and reads; `maru.credentials` does it. A secret is printed once, where it is the answer (a new
token), and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from maru import credentials
from maru.audit import AuditLog, Entry, this_process
from maru.audit.log import default_key
from maru.credentials import Certificate, Client, Token
from maru.errors import CredentialNotFound, MaruError, MissingPackage
from maru.terminal import SETTINGS, JsonFlag, complain, console, print_json

keys_app = typer.Typer(**SETTINGS)
token_app = typer.Typer(**SETTINGS)
keys_app.add_typer(token_app, name="token")

FolderOption = Annotated[
    Path | None,
    typer.Option("--dir", metavar="FOLDER", help="Folder of the keys, when not ~/.config/maru/keys."),
]
AUDIT_VARIABLE = "MARU_AUDIT"
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What the client is called here, say its host.")]
TenantOption = Annotated[str, typer.Option(metavar="TENANT", help="Whose client it is.")]
MayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--may",
        metavar="LEVEL[=DIGEST]",
        help="lookup, read or write; with the first digits of a namespace's digest only there. May be given often. "
        "Without it: everything, within its tenant.",
    ),
]
MapOption = Annotated[
    bool | None,
    typer.Option(
        "--may-map/--no-map",
        help="May it map the pool's memory, where it sees every tenant's bytes? Unless told, only a client of the "
        "tenant default may.",
        show_default=False,
    ),
]


@keys_app.callback()
def _keys(
    ctx: typer.Context,
    audit: Annotated[
        Path | None,
        typer.Option(
            "--audit",
            metavar="FOLDER",
            envvar=AUDIT_VARIABLE,
            help="Note changes in this audit log, before the command.",
        ),
    ] = None,
) -> None:
    """Say who may speak to a daemon: keys for other hosts, tokens, a certificate.

    A daemon need not be restarted: who is added or revoked is let in or kept out from that moment on.

    [bold]Once, where the daemon runs[/bold]

    [cyan]maru keys generate[/cyan]   the daemon's own keys
    [cyan]maru keys generate node7[/cyan]   a key file for the host node7; copy it there, readable by its user alone
    [cyan]maru keys certificate --host maru.example.org[/cyan]   for https
    [cyan]maru keys token add prometheus --role read[/cyan]   for who reads the figures
    """
    ctx.obj = audit


@keys_app.command("generate")
def generate(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The client; leave it out for the daemon's own keys.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="PUBLIC_KEY", help="Make the file on the client's own host, for the daemon with this public key."
        ),
    ] = None,
    tenant: TenantOption = credentials.DEFAULT_TENANT,
    may: MayOption = None,
    may_map: MapOption = None,
    folder: FolderOption = None,
    json_output: JsonFlag = False,
) -> None:
    """Make the daemon's keys, or a client's key file and let that client in.

    A client's file holds its keys and the daemon's public one; nothing else is needed to connect. Hand it over by a way
    that nobody reads along, [cyan]scp[/cyan] for one. With [bold]--server[/bold] it is made where it is used, and only
    its public key travels.

    [bold]Examples[/bold]

    [cyan]maru keys generate[/cyan]   the daemon's, before its first start
    [cyan]maru keys generate node7[/cyan]   a client's; then scp what it wrote to node7
    [cyan]maru keys generate node8 --tenant blue --may read[/cyan]   one that reads what blue has, and stores nothing
    [cyan]maru keys generate node7 --server '…40 characters…'[/cyan]   on node7 itself
    """
    place = _place(folder)
    grants = credentials.read_grants(may or [])
    if name is None and server is not None:
        raise typer.BadParameter("--server makes a client's key file; say its NAME")
    if name is None:
        keys = credentials.generate_server(place)
        _note(ctx, "the daemon's keys were made")
        told: dict[str, Any] = {"kind": "server", "public_key": keys.public_z85, "folder": str(place)}
        _tell(json_output, told, "The daemon has its keys", {"public key": keys.public_z85, "folder": str(place)})
        _advise(json_output, "maru keys generate NAME", "makes a key file for a client")
        return
    if server is not None:
        path, public = credentials.generate_remote(place, name, server)
        _note(ctx, "a key file was made for a daemon elsewhere", name)
        told = {"kind": "client", "name": name, "public_key": public, "file": str(path), "is_authorised": False}
        _tell(json_output, told, f"Made a key file for {name}", {"public key": public, "file": str(path)})
        _advise(json_output, f"maru keys add {name} '{public}'", "where the daemon runs, lets it in")
        return
    client, path = credentials.generate_client(place, name, tenant, may_map=may_map, grants=grants)
    _note(ctx, "a client was let in with a key made here", client.name, client.tenant)
    told = {**_client_json(client), "kind": "client", "file": str(path), "is_authorised": True}
    _tell(
        json_output,
        told,
        f"{name} may speak to the daemon",
        {**_client_facts(client), "key file": str(path)},
    )
    if not json_output:
        console().print("Copy the key file to that host, readable by its user alone (mode 0600), then remove it here.")


@keys_app.command("add")
def add(
    ctx: typer.Context,
    name: NameArgument,
    public_key: Annotated[
        str | None, typer.Argument(metavar="[PUBLIC_KEY]", help="40 characters; put single quotes around.")
    ] = None,
    uid: Annotated[
        int | None, typer.Option("--uid", metavar="UID", help="Instead of a key: a user of this host, as `id -u` says.")
    ] = None,
    tenant: TenantOption = credentials.DEFAULT_TENANT,
    may: MayOption = None,
    may_map: MapOption = None,
    folder: FolderOption = None,
    json_output: JsonFlag = False,
) -> None:
    """Let in a client that made its keys itself, or a user of this host.

    A user needs no key: the local socket of [cyan]maru serve --local PATH[/cyan] knows them by their uid.

    [bold]Examples[/bold]

    [cyan]maru keys add node7 '…40 characters…'[/cyan]   what `maru keys generate node7 --server` said there
    [cyan]maru keys add blue --uid 1007 --tenant blue --may read[/cyan]   then, as that user: maru.connect("unix:///PATH")
    """
    grants, place = credentials.read_grants(may or []), _place(folder)
    if (public_key is None) == (uid is None):
        raise typer.BadParameter("say a client's PUBLIC_KEY, or a user's --uid")
    if uid is None:
        client = credentials.add_client(place, name, public_key or "", tenant, may_map=may_map, grants=grants)
        _note(ctx, "a client was let in with a key of its own", client.name, client.tenant)
    else:
        client = credentials.add_user(place, name, uid, tenant, may_map=may_map, grants=grants)
        _note(ctx, f"the user {uid} was let in", client.name, client.tenant)
    _tell(json_output, _client_json(client), f"{name} may speak to the daemon", _client_facts(client))


@keys_app.command("list")
def list_keys(folder: FolderOption = None, json_output: JsonFlag = False) -> None:
    """Show the daemon's public key, who may speak to it, its tokens and its certificate. No secret is shown.

    [bold]Examples[/bold]

    [cyan]maru keys list[/cyan]   for people
    [cyan]maru keys list --json | jq -r .server_public_key[/cyan]   for `maru keys generate --server`
    """
    place = _place(folder)
    clients, tokens = credentials.list_clients(place), credentials.list_tokens(place)
    server, certificate = _server_public(place), _certificate(place)
    if json_output:
        print_json(
            {
                "folder": str(place),
                "server_public_key": server,
                "clients": [_client_json(one) for one in clients],
                "tokens": [_token_json(one) for one in tokens],
                "certificate": certificate and _certificate_json(certificate),
            }
        )
        return
    facts = {"folder": str(place), "public key": server or "none yet: maru keys generate makes it"}
    if certificate:
        is_over = " (it has run out: maru keys certificate makes a new one)" if _is_expired(certificate) else ""
        until = _day(certificate.expires_unix_s)
        facts["certificate"] = f"for {', '.join(certificate.hosts)} until {until}{is_over}"
    _show(facts)
    if not clients:
        console().print("No client may speak to it. [cyan]maru keys generate NAME[/cyan] lets one in.", style="yellow")
    else:
        rows = [(one.name, one.tenant, _may(one), _known_by(one), _day(one.added_unix_s)) for one in clients]
        _show_table(("client", "tenant", "may", "known by", "added"), rows)
    if tokens:
        _show_tokens(tokens)


@keys_app.command("revoke")
def revoke(ctx: typer.Context, name: NameArgument, folder: FolderOption = None, json_output: JsonFlag = False) -> None:
    """Let a client in no more. A running daemon answers it no more either.

    [bold]Examples[/bold]

    [cyan]maru keys revoke node7[/cyan]   and [cyan]maru keys list[/cyan] shows who is left
    """
    client = credentials.revoke_client(_place(folder), name)
    _note(ctx, "a client was revoked", client.name, client.tenant)
    _tell(json_output, _client_json(client), f"{name} may not speak to the daemon any more", {})


# ---- maru keys tenant-secret ------------------------------------------------------------------------------


@keys_app.command("tenant-secret")
def tenant_secret(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it into this new file, which only you can read.")
    ] = None,
    folder: FolderOption = None,
) -> None:
    """Show the secret that seeds a tenant's keys, for that tenant's processes on this host.

    Its clients on other hosts need none: the daemon seeds their keys. A process here that is to share with them
    attaches with [cyan]maru:///NAME?tenant_secret=file:/PATH[/cyan]. Who has the secret can compute the tenant's keys.
    That of the tenant default counts for its clients where the daemon's own pool is given it so, and only there.

    [bold]Examples[/bold]

    [cyan]maru keys tenant-secret blue --out blue.secret[/cyan]   into a file of mode 0600
    [cyan]maru keys tenant-secret blue | ssh node7 'umask 077; cat > blue.secret'[/cyan]   to another host of one pool
    """
    if out is None:
        typer.echo(credentials.tenant_secret_line(_place(folder), tenant))
        return
    credentials.write_tenant_secret(_place(folder), tenant, out)
    console(json_output=True).print(f"The secret of {tenant} is in {out}", soft_wrap=True)


# ---- maru keys token --------------------------------------------------------------------------------------


class RoleName(StrEnum):
    """What a token allows."""

    read = "read"
    admin = "admin"


@token_app.callback()
def _tokens() -> None:
    """Make, list and revoke bearer tokens for the daemon's HTTP face: metrics, the dashboard, the admin API.

    [bold]read[/bold] sees figures. [bold]admin[/bold] also changes things. Only a token's SHA-256 is kept.
    """


@token_app.command("add")
def add_token(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use it.")],
    role: Annotated[RoleName, typer.Option(help="read: see figures. admin: also change things.")],
    folder: FolderOption = None,
    json_output: JsonFlag = False,
) -> None:
    """Make a token and show it: this once, and never again.

    Without --json the token alone goes to stdout, so that it can be put where it is needed.

    [bold]Examples[/bold]

    [cyan]maru keys token add prometheus --role read > token[/cyan]   into a file
    [cyan]maru keys token add alice --role admin[/cyan]   for a person
    """
    token = credentials.add_token(_place(folder), name, role.value)
    _note(ctx, f"a token of role {role.value} was made", name)
    if json_output:
        print_json({"name": name, "role": role.value, "token": token})
        return
    console(json_output=True).print(f"{name} has the role {role.value}. This is shown once; only its hash is kept:")
    typer.echo(token)


@token_app.command("list")
def list_tokens(folder: FolderOption = None, json_output: JsonFlag = False) -> None:
    """Show the tokens' names and roles.

    [bold]Examples[/bold]

    [cyan]maru keys token list[/cyan]
    """
    tokens = credentials.list_tokens(_place(folder))
    if json_output:
        print_json([_token_json(one) for one in tokens])
    elif tokens:
        _show_tokens(tokens)
    else:
        console().print("No tokens. [cyan]maru keys token add NAME --role read[/cyan] makes one.", style="yellow")


@token_app.command("revoke")
def revoke_token(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `maru keys token list` shows it.")],
    folder: FolderOption = None,
    json_output: JsonFlag = False,
) -> None:
    """Let a token count no more, from now on.

    [bold]Examples[/bold]

    [cyan]maru keys token revoke alice[/cyan]
    """
    token = credentials.revoke_token(_place(folder), name)
    _note(ctx, f"a token of role {token.role} was revoked", name)
    _tell(json_output, _token_json(token), f"The token {name} counts no more", {})


# ---- maru keys certificate --------------------------------------------------------------------------------


@keys_app.command("certificate")
def certificate(
    ctx: typer.Context,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A name or address that clients use for this host; may be given often."),
    ] = None,
    folder: FolderOption = None,
    json_output: JsonFlag = False,
) -> None:
    """Make a TLS certificate for the daemon's HTTP face: self-signed, ECDSA P-256, valid for a year.

    It takes the earlier one's place; the daemon uses it from its next start. Clients cannot know a self-signed
    certificate, so they are told which one to expect: that is the file and the fingerprint shown.

    [bold]Examples[/bold]

    [cyan]maru keys certificate[/cyan]   for localhost and this host's own name
    [cyan]maru keys certificate --host maru.example.org --host 10.0.0.7[/cyan]   for clients elsewhere
    """
    made = credentials.make_certificate(_place(folder), host or credentials.default_hosts())
    _note(ctx, "a certificate was made")
    facts = {
        "hosts": ", ".join(made.hosts),
        "valid until": _day(made.expires_unix_s),
        "fingerprint": made.sha256_fingerprint,
        "for clients": str(made.client_pem),
    }
    _tell(json_output, _certificate_json(made), "The daemon has a certificate", facts)
    _advise(json_output, f"curl --cacert {made.client_pem} https://{made.hosts[0]}:PORT/healthz", "trusts it alone")
    _advise(json_output, f"curl --insecure --pinnedpubkey {made.public_key_pin} …", "pins it by its public key")


# ---- what is noted ----------------------------------------------------------------------------------------


def _note(ctx: typer.Context, reason: str, client: str = "", tenant: str = "") -> None:
    """Tell the audit log, if there is one, what was changed. The change is made already, and stays if this fails."""
    folder = ctx.find_object(Path)
    if folder is None:
        return
    who = this_process()._replace(tenant=tenant, client=client)
    try:
        AuditLog(folder, default_key(folder)).write([Entry("keys", "command", who, reason=reason)])
    except (MaruError, OSError) as error:
        complain(f"this was done, but not noted: {error}")


# ---- what is shown ----------------------------------------------------------------------------------------


def _place(folder: Path | None) -> Path:
    return folder.absolute() if folder else credentials.default_folder()


def _tell(json_output: bool, document: dict[str, Any], headline: str, facts: dict[str, str]) -> None:
    if json_output:
        print_json(document)
        return
    console().print(Text(headline, style="bold"), soft_wrap=True)
    _show(facts)


def _advise(json_output: bool, command: str, what: str) -> None:
    if not json_output:
        console().print(Text.assemble((command, "cyan"), f"   {what}"), soft_wrap=True)


def _show(facts: dict[str, str]) -> None:
    """Names and values, one a line, never cut: a key of which a part is missing is none."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        console().print(Text.assemble((f"{name:<{width}}  ", "dim"), value), soft_wrap=True)


def _show_table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Columns under their heads, never cut."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    for style, row in [("bold", heads), *(("", row) for row in rows)]:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        console().print(Text(line.rstrip(), style=style), soft_wrap=True)


def _show_tokens(tokens: list[Token]) -> None:
    rows = [(one.name, one.role, _day(one.added_unix_s)) for one in tokens]
    _show_table(("token", "role", "added"), rows)


def _day(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")


def _server_public(place: Path) -> str | None:
    try:
        return credentials.load_server_keys(place).public_z85
    except CredentialNotFound:
        return None


def _certificate(place: Path) -> Certificate | None:
    try:
        return credentials.read_certificate(place)
    except (CredentialNotFound, MissingPackage):
        return None


def _is_expired(certificate: Certificate) -> bool:
    return certificate.expires_unix_s <= time.time()


def _may(client: Client) -> str:
    """What it may, in one word for each grant."""
    return " ".join([*map(str, client.grants), *(["map"] if client.may_map else [])])


def _known_by(client: Client) -> str:
    return client.public_z85 if client.uid is None else f"uid {client.uid}"


def _client_facts(client: Client) -> dict[str, str]:
    return {"known by": _known_by(client), "tenant": client.tenant, "may": _may(client)}


def _client_json(client: Client) -> dict[str, Any]:
    return {
        "name": client.name,
        "public_key": client.public_z85,
        "uid": client.uid,
        "tenant": client.tenant,
        "may": [str(grant) for grant in client.grants],
        "may_map": client.may_map,
        "added_unix_s": client.added_unix_s,
    }


def _token_json(token: Token) -> dict[str, Any]:
    return {"name": token.name, "role": token.role, "added_unix_s": token.added_unix_s}


def _certificate_json(certificate: Certificate) -> dict[str, Any]:
    return {
        "hosts": list(certificate.hosts),
        "expires_unix_s": certificate.expires_unix_s,
        "is_expired": _is_expired(certificate),
        "sha256_fingerprint": certificate.sha256_fingerprint,
        "public_key_pin": certificate.public_key_pin,
        "server_file": str(certificate.server_pem),
        "client_file": str(certificate.client_pem),
    }
