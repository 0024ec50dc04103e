"""The web face where other hosts reach it: with the tokens and the certificate of `maru keys`, and not without."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from typer.testing import CliRunner

import maru
from http_asking import ask
from maru.cli import app
from maru.daemon.serve import Daemon, ServeConfig
from maru.daemon.web_settings import WebSettings
from maru.errors import NotProtected


def typed(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def config(pool_url: str, keys: Path, **web: bool) -> ServeConfig:
    settings = WebSettings(host="0.0.0.0", port=0, **web)
    return ServeConfig(pool_url, "tcp://127.0.0.1:0", keys=keys, web=settings)


def test_keys_tokens_and_a_certificate_open_a_daemon_to_a_network(
    pool_url: str, pool: maru.Pool, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    typed("keys", "generate", "--dir", str(keys))
    with pytest.raises(NotProtected, match="without TLS"):
        Daemon(config(pool_url, keys))
    typed("keys", "certificate", "--host", "127.0.0.1", "--dir", str(keys))
    with Daemon(config(pool_url, keys)) as daemon:
        server = daemon.web_server
        assert server is not None
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        assert ask(server, "/v1/pools", context=trusting).status == 401
        token = typed("keys", "token", "add", "reader", "--role", "read", "--dir", str(keys)).split()
        answered = {ask(server, "/v1/pools", token=word, context=trusting).status for word in token if len(word) > 20}
        assert 200 in answered
