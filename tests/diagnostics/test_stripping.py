"""Secrets in the shapes in which logs and configurations hold them: none comes through, and what is harmless stays."""

import base64
import json
import random
import string
from typing import Any

import pytest

from otaflow.diagnostics import strip

SECRET = "hunter2"
BODY = "\n".join("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7Vd8" + str(n) * 8 for n in range(9))
KEY = f"-----BEGIN PRIVATE KEY-----\n{BODY}\n-----END PRIVATE KEY-----"
LOGGED_KEY = "\n".join(f"2026-03-02T10:00:00Z output  demo line={line}" for line in KEY.splitlines())
BEARER = "Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZg"

# What is said, what must not come through, what stays.
TEXTS: dict[str, tuple[str, list[str], list[str]]] = {
    "password=": (f"user=bob password={SECRET}", [SECRET], ["user=bob"]),
    "password with spaces": ("password: correct horse battery\nnext line", ["horse", "battery"], ["next line"]),
    "capitals": (f"DB_PASSWORD = {SECRET}", [SECRET], ["DB_PASSWORD"]),
    "camel case": (f"dbPassword={SECRET} apiKey={SECRET}", [SECRET], []),
    "quoted": (f'password = "{SECRET} \\" {SECRET}" and more', [SECRET], ["and more"]),
    "single quotes": (f"{{'password': '{SECRET}', 'port': 22}}", [SECRET], ["'port': 22"]),
    "json": (json.dumps({"token": SECRET, "port": 22}), [SECRET], ['"port": 22']),
    "json in json": (json.dumps({"said": json.dumps({"token": SECRET})}), [SECRET], ["said"]),
    "json in json in json": (json.dumps(json.dumps(json.dumps({"secret": SECRET}))), [SECRET], []),
    "json over lines": ('{\n  "password":\n    "hunter2",\n  "port": 22\n}', [SECRET], ['"port": 22']),
    "toml in three quotes": (f'password = """\n{SECRET}\nsecond\n"""\nport = 22', [SECRET, "second"], ["port = 22"]),
    "yaml block": (f"password: |\n  {SECRET}\n  second\nport: 22", [SECRET, "second"], ["port: 22"]),
    "dict of python": (f"settings['password'] = '{SECRET}'", [SECRET], []),
    "pairs of bytes": (f"[(b'x-token', b'{SECRET}'), (b'host', b'h')]", [SECRET], ["host"]),
    "arrow": (f":password => '{SECRET}'", [SECRET], []),
    "said": (f"the password is {SECRET}", [SECRET], ["the password is"]),
    "said in quotes": (f"cannot use password '{SECRET}' here", [SECRET], ["here"]),
    "asked": (f"Enter passphrase for /etc/key.pem: {SECRET}", [SECRET], ["/etc/key.pem"]),
    "of wifi": (f"wpa_psk={SECRET}\npsk={SECRET}", [SECRET], ["wpa_psk"]),
    "an option": (f"run --password {SECRET} --verbose", [SECRET], ["--verbose"]),
    "an option with =": (f"run --api-key={SECRET}", [SECRET], ["--api-key"]),
    "an option in quotes": (f'run --token "{SECRET} {SECRET}" --verbose', [SECRET], ["--verbose"]),
    "curl": (f"curl -s -u bob:{SECRET} https://host/", [SECRET], ["https://host/"]),
    "sshpass": (f"sshpass -p {SECRET} ssh host", [SECRET], ["ssh host"]),
    "authorization": (f"> Authorization: Bearer {SECRET}\n> Host: h", [SECRET], ["Host: h"]),
    "authorization in small": (f"authorization:Token {SECRET}", [SECRET], []),
    "authorization of a kind nobody knows": (
        f"Authorization: AWS4 Credential={SECRET}/x, Signature={SECRET}",
        [SECRET],
        [],
    ),
    "authorization folded": (f"Authorization: Bearer\r\n  {SECRET}\r\nHost: h", [SECRET], ["Host: h"]),
    "proxy": (f"Proxy-Authorization: Basic {SECRET}", [SECRET], []),
    "cookies": (f"Set-Cookie: session={SECRET}; Path=/\nnext", [SECRET], ["next"]),
    "a header of their own": (f"X-Api-Key: {SECRET}\nX-Auth-Token: {SECRET}", [SECRET], []),
    "bearer elsewhere": (f"sent bearer {SECRET}, got 401", [SECRET], ["got 401"]),
    "basic elsewhere": (
        f"sent Basic {base64.b64encode(b'bob:hunter2').decode()} to h",
        [base64.b64encode(b"bob:hunter2").decode()],
        ["to h"],
    ),
    "user info": (f"GET https://bob:{SECRET}@host.example:8443/a/b failed", [SECRET, "bob"], ["host.example:8443/a/b"]),
    "user info with @": (f"https://bob:{SECRET}@x@host/a", [SECRET], ["host/a"]),
    "user info with /": (f"https://bob:a/{SECRET}@host/a", [SECRET], ["host/a"]),
    "user info with quotes": (f"https://bob:a'{SECRET}\"@host/a", [SECRET], ["host/a"]),
    "a token as user": (f"https://{SECRET}@host/a", [SECRET], ["host/a"]),
    "query": (f"https://host/a?x-amz-signature={SECRET}&n=1", [SECRET], ["https://host/a"]),
    "telegram": ("tgram://123456:ABC-DEF/987", ["123456", "ABC-DEF", "987"], ["tgram"]),
    "discord": (f"discord://4711/{SECRET}/?x=1", [SECRET, "4711"], []),
    "mailto": (f"mailto://bob:{SECRET}@example.com", [SECRET, "bob", "example"], []),
    "apprise over http": (f"jsons://bob:{SECRET}@host/path/{SECRET}", [SECRET], []),
    "database": (f"postgresql+asyncpg://prefect:{SECRET}@127.0.0.1/db", [SECRET], []),
    "webhook": (f"POST https://hooks.slack.com/services/T0/B0/{SECRET} 404", [SECRET], ["hooks.slack.com", "404"]),
    "bot": (f"https://api.telegram.org/bot123:{SECRET}/getMe", [SECRET], ["api.telegram.org"]),
    "private key": (f"before\n{KEY}\nafter", BODY.splitlines(), ["before", "after"]),
    "private key in a log": (f"before\n{LOGGED_KEY}\nafter", BODY.splitlines(), ["before", "after"]),
    "private key on one line": (f"k {KEY!r} after", BODY.splitlines(), ["after"]),
    "openssh key": (KEY.replace("PRIVATE", "OPENSSH PRIVATE"), BODY.splitlines(), []),
    "encrypted key": (KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), BODY.splitlines(), []),
    "pgp key": (KEY.replace("PRIVATE KEY", "PGP PRIVATE KEY BLOCK"), BODY.splitlines(), []),
    "key without its end": (f"{KEY[:300]}\nand the log goes on", BODY.splitlines()[:3], ["and the log goes on"]),
    "key without its beginning": (KEY[200:] + "\nafter", BODY.splitlines()[4:], ["after"]),
    "logged key without its beginning": (LOGGED_KEY[300:] + "\nafter", BODY.splitlines()[4:], ["after"]),
    "middle of a key": ("\n".join(BODY.splitlines()[2:4]), BODY.splitlines()[2:4], []),
    "two keys": (f"{KEY}\nbetween\n{KEY}", BODY.splitlines(), ["between"]),
    "e-mail": ("from bob.smith+x@mail.example.com to you", ["bob", "example"], ["from", "to you"]),
    "e-mail in a url": ("subscribe=bob%40example.com", ["bob%40"], []),
    "e-mail in quotes": ('"bob smith"@example.com', ["smith", "example"], []),
    "e-mail of elsewhere": ("jürgen@müller.example", ["jürgen", "müller"], []),
    "json web token": ("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl ok", ["eyJ", "c2lnbmF"], ["ok"]),
    "aws": ("id AKIAIOSFODNN7EXAMPLE", ["AKIA"], []),
    "github": ("used ghp_16C7e42F292c6912E7710c838347Ae178B4a", ["16C7e42F"], []),
    "long word": (f"and then {BEARER} was sent", [BEARER], ["was sent"]),
    "shadow": ("root:$6$saltsalt$abcdefghijklmnop/qrstuv:19000", ["saltsalt", "abcdefgh"], ["root"]),
    "carriage returns": (f"password={SECRET}\r\nnext", [SECRET], ["next"]),
    "twice": (f"token={SECRET}\ntoken={SECRET}", [SECRET], []),
}


@pytest.mark.parametrize(("text", "secrets", "stays"), TEXTS.values(), ids=TEXTS)
def test_text(text: str, secrets: list[str], stays: list[str]) -> None:
    stripped = strip(text)
    assert not [one for one in secrets if one in stripped], stripped
    assert not [one for one in stays if one not in stripped], stripped


HARMLESS = [
    "2026-03-02T10:00:00.123Z done    copy active slot seconds=0.12",
    "cannot read the token /nvm/token: No such file or directory",
    "/usr/lib/python3.11/site-packages/otaflow/platform/exchange.py",
    "sha256 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    "session 0f3a91c2d7b4, run 6f1c1f9a-6f0e-4c3e-9df4-5f2f1f3c9f10",
    "started getty@tty1.service and user@1000.service",
    "https://updates.example.com:8443/metadata/timestamp.json",
    "demo-system 1.2.0-rc.1+build.7 in slot a",
    "basic settings were applied, all passed, the keyboard works",
    "cannot use the configuration /etc/otaflow.toml: slots.kind: it must be btrfs or directories",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays(text: str) -> None:
    assert strip(text) == text


def test_nested_data() -> None:
    data: dict[str, Any] = {
        "sources": {"official": {"token_file": "x", "url": f"https://bob:{SECRET}@h/", "tries": 5}},
        "list": [{"deep": [{"Password": {"old": SECRET, "new": [SECRET]}}]}, ("a", f"token={SECRET}")],
        "command": ["run", "--password", SECRET, "-v"],
        "headers": [["Authorization", f"Bearer {SECRET}"], [b"X-Api-Key", SECRET.encode()]],
        "pin": 4711,
        f"key with {SECRET} in password={SECRET}": 1,
        "flags": {"has_token": True, "secret": None},
        "bytes": f"password={SECRET}".encode(),
        "monkey": 1.5,
        "text": f"line\n{KEY}\nline",
    }
    stripped = strip(data)
    shown = json.dumps(stripped)
    assert SECRET not in shown.replace(f"key with {SECRET}", "")
    assert "4711" not in shown
    assert "MII" not in shown
    assert stripped["sources"]["official"]["tries"] == 5
    assert stripped["sources"]["official"]["url"] == "https://(removed)@h/"
    assert stripped["command"] == ["run", "--password", "(removed)", "-v"]
    assert stripped["flags"] == {"has_token": True, "secret": None}
    assert stripped["monkey"] == 1.5
    assert data["pin"] == 4711, "what was given is not changed"


KNOWN: dict[str, str] = {
    "as it is": "log says s3cr3t/v+lue here",
    "within a word": "xxs3cr3t/v+luexx",
    "in a url": "GET /?t=s3cr3t%2Fv%2Blue",
    "in base64": base64.b64encode(b"s3cr3t/v+lue").decode(),
    "as a key": "s3cr3t/v+lue: 1",
}


@pytest.mark.parametrize("text", KNOWN.values(), ids=KNOWN)
def test_known_secrets_go_wherever_they_stand(text: str) -> None:
    stripped = json.dumps(strip({text: [text, {"a": text}]}, ["s3cr3t/v+lue\n"]))
    assert "s3cr3t" not in stripped
    assert base64.b64encode(b"s3cr3t/v+lue").decode() not in stripped


def test_a_known_secret_that_begins_another_one_hides_nothing() -> None:
    assert "rest" not in strip("password=knownrest", ["known"])
    assert strip("ab cab", ["ab"]) == "(removed) cab", "a short one only as a word of its own"


def test_names_that_become_the_same_both_stay() -> None:
    assert len(strip({"bob@example.com": 1, "ann@example.com": 2})) == 2


PIECES = [
    *(
        "x-",
        "-----BEGIN PRIVATE KEY-----\n",
        "-----END PRIVATE KEY-----\n",
        "a://",
        "password ",
        "token\n",
        "eyJ",
        "\\",
    ),
    *('"', "'", "@", "b.c", "$6$", "Authorization:", "Bearer ", "--key ", "A" * 16 + "\n", "curl ", "passwd", "|\n  "),
]


@pytest.mark.parametrize("piece", PIECES, ids=repr)
def test_no_text_takes_long(piece: str) -> None:
    """Without a clock: a rule that takes quadratic time would not come to an end within this session."""
    strip(piece * (400_000 // len(piece)))
    strip(piece * 20_000 + "-----END PRIVATE KEY-----")


def test_random_surroundings_hide_no_password() -> None:
    chance = random.Random(7)
    for _ in range(300):
        before = "".join(chance.choices(string.ascii_letters + " {}[]<>:/@.,;|#-_%\n\t", k=30))
        after = "".join(chance.choices(string.printable, k=30))
        text = f"{before}\npassword={SECRET}{after}"
        assert SECRET not in strip(text), text
