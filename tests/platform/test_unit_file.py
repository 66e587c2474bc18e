"""Unit files as we run them ourselves: what is honoured, what is ignored and listed, what is refused and why."""

import signal
from pathlib import Path

import pytest

from otaflow.errors import ServiceFailed
from otaflow.platform.unit_file import (
    FOREVER,
    Command,
    check_name,
    parse_environment,
    parse_span,
    parse_unit,
    read_unit,
)

START = "[Service]\nExecStart=/bin/notes\n"


def test_a_whole_file() -> None:
    unit = parse_unit(
        """
        # the notes of the crew
        [Unit]
        Description=Notes: 100% of them
        After=network.target
        StartLimitBurst=3
        StartLimitIntervalSec=1min

        [Service]
        Type=notify
        User=nobody
        Group=nogroup
        UMask=0077
        WorkingDirectory=-/srv/notes
        Environment=PORT=8080 "WORDS=two words"
        Environment='PERCENT=100%%'
        EnvironmentFile=-/etc/notes.env
        ExecStartPre=/bin/true
        ExecStartPre=-/bin/false
        ExecStart=/bin/notes --name "the notes" \\
            ; a comment between
            --port ${PORT}
        ExecReload=/bin/kill -HUP $MAINPID
        ExecStop=/bin/notes stop
        KillSignal=SIGINT
        KillMode=mixed
        TimeoutStartSec=500ms
        TimeoutStopSec=1min 30s
        Restart=on-failure
        RestartSec=2
        SuccessExitStatus=143 SIGUSR1
        ProtectSystem=strict
        NoNewPrivileges=yes

        [Install]
        WantedBy=multi-user.target
        """,
        "notes.service",
    )
    assert unit.start == Command(("/bin/notes", "--name", "the notes", "--port", "${PORT}"))
    assert unit.before == (Command(("/bin/true",)), Command(("/bin/false",), may_fail=True))
    assert unit.reload == (Command(("/bin/kill", "-HUP", "$MAINPID")),)
    assert unit.stop == (Command(("/bin/notes", "stop")),)
    assert dict(unit.environment) == {"PORT": "8080", "WORDS": "two words", "PERCENT": "100%"}
    assert unit.environment_files == (Command(("/etc/notes.env",), may_fail=True),)
    assert (unit.type, unit.user, unit.group, unit.umask) == ("notify", "nobody", "nogroup", 0o077)
    assert (unit.folder, unit.folder_may_lack) == ("/srv/notes", True)
    assert (unit.kill_signal, unit.kill_mode) == (signal.SIGINT, "mixed")
    assert (unit.start_timeout, unit.stop_timeout) == (0.5, 90)
    assert (unit.restart, unit.restart_wait, unit.limit_burst, unit.limit_seconds) == ("on-failure", 2, 3, 60)
    assert unit.good_exits == (143, -signal.SIGUSR1)
    assert unit.ignored == ("After", "ProtectSystem", "NoNewPrivileges")


def test_what_systemd_takes_when_nothing_is_said() -> None:
    unit = parse_unit(START, "notes.service")
    assert (unit.type, unit.folder, unit.restart, unit.kill_signal) == ("simple", "/", "no", signal.SIGTERM)
    assert (unit.start_timeout, unit.stop_timeout, unit.restart_wait) == (90, 90, 0.1)
    assert (unit.limit_burst, unit.limit_seconds, unit.ignored) == (5, 10, ())


def test_an_empty_value_resets_a_list() -> None:
    unit = parse_unit(START + "ExecStart=\nExecStart=/bin/other\nEnvironment=A=1\nEnvironment=\n", "notes.service")
    assert unit.start.words == ("/bin/other",)
    assert unit.environment == ()


REFUSED = {
    "no program": ("[Service]\n", "0 ExecStart="),
    "two programs": (START + "ExecStart=/bin/two\n", "2 ExecStart="),
    "two programs in a line": ("[Service]\nExecStart=/bin/a ; /bin/b\n", "several programs"),
    "unknown type": (START + "Type=forking\n", "Type=forking is not supported"),
    "unknown restart": (START + "Restart=on-abort\n", "Restart=on-abort"),
    "unknown kill mode": (START + "KillMode=none\n", "KillMode=none"),
    "a key that changes what runs": (START + "RootDirectory=/srv\n", "line 3: RootDirectory= is not supported"),
    "dynamic user": (START + "DynamicUser=yes\n", "DynamicUser="),
    "program after the start": (START + "ExecStartPost=/bin/x\n", "ExecStartPost="),
    "specifier": ("[Service]\nExecStart=/bin/notes %n\n", "specifier '%n'"),
    "specifier at the end": ("[Service]\nExecStart=/bin/notes %\n", "specifier '%'"),
    "privileged program": ("[Service]\nExecStart=+/bin/notes\n", "prefix '+'"),
    "open quote": ("[Service]\nExecStart=/bin/notes 'a\n", "No closing quotation"),
    "no assignment": ("[Service]\nExecStart\n", "'ExecStart' is no KEY=value"),
    "no variable": (START + "Environment=1A=2\n", "'1A' is no name"),
    "no value": (START + "Environment=A\n", "'A' is no NAME=value"),
    "relative folder": (START + "WorkingDirectory=srv\n", "'srv' is no absolute path"),
    "unknown signal": (START + "KillSignal=SIGNOPE\n", "'SIGNOPE' is no signal"),
    "unknown span": (START + "RestartSec=1 fortnight\n", "'1 fortnight' is no time span"),
    "empty span": (START + "RestartSec=\n", "a time span is missing"),
    "mask": (START + "UMask=abc\n", "invalid literal"),
    "NUL": ("[Service]\nExecStart=/bin/notes a\0b\n", "NUL"),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_run_as_meant_is_refused(text: str, words: str) -> None:
    with pytest.raises(ServiceFailed, match=r"cannot use notes\.service: ") as caught:
        parse_unit(text, "notes.service")
    assert words in str(caught.value)


SPANS = {"90": 90, "500ms": 0.5, "1min 30s": 90, "2h": 7200, "1.5": 1.5, "infinity": FOREVER, "9999999999d": FOREVER}


@pytest.mark.parametrize(("text", "seconds"), SPANS.items(), ids=SPANS)
def test_time_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("name", ["notes", ".service", "../x.service", "a/b.service", "a@b.service", "a b.service", ""])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ServiceFailed, match="no name of a unit"):
        check_name(name)


def test_environment_files() -> None:
    text = '# ports\nPORT=80\nWORDS="two words"\n\nEMPTY=\nNAME = x=y \n'
    assert dict(parse_environment(text)) == {"PORT": "80", "WORDS": "two words", "EMPTY": "", "NAME": "x=y"}
    with pytest.raises(ValueError, match="no NAME=value"):
        list(parse_environment("PORT"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"#" * (2 << 20)], ids=["not there", "no text", "too long"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "notes.service"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ServiceFailed, match=r"cannot use notes\.service"):
        read_unit(path)
