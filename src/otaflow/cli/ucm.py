"""`otaflow ucm`: the update manager's interface from the command line, one command for each method."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from otaflow import config as configuration
from otaflow.actions import Way
from otaflow.cli.common import Accept, ConfigFile, Json, print_json
from otaflow.errors import ConfigError, UcmError

if TYPE_CHECKING:
    from otaflow.client import Client

app = cyclopts.App(
    name="ucm",
    help="Ask the agent: every method of the update manager's interface, on the socket that the configuration names.",
)


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Which agent is asked: the one of the device's configuration, or of a socket, or of a url with credentials."""

    config: ConfigFile = None
    socket: Annotated[Path | None, Parameter(help="The agent's Unix socket.", show_default=False)] = None
    url: Annotated[str | None, Parameter(help="The agent's address, https://HOST:PORT.", show_default=False)] = None
    token_file: Annotated[Path | None, Parameter(help="The bearer token, for --url.", show_default=False)] = None
    ca: Annotated[Path | None, Parameter(help="The authorities trusted for --url.", show_default=False)] = None
    certificate: Annotated[Path | None, Parameter(help="Our own certificate, for --url.", show_default=False)] = None
    key: Annotated[Path | None, Parameter(help="The certificate's key.", show_default=False)] = None
    json: Json = False


HERE = Where()
Id = Annotated[str, Parameter(help="The transfer's id.")]
Name = Annotated[str, Parameter(help="The application's name.")]
Unattended = Annotated[
    bool, Parameter(negative=(), help="After a restart, or when nobody asks for a minute, the agent goes on by itself.")
]


@app.command
def current_status(*, where: Where = HERE) -> None:
    """Show the state and the session."""
    with asking(where) as client:
        status = client.current_status()
        show(where, status, f"{status['status']} {status['session'] or ''}".rstrip())


@app.command
def watch(*, where: Where = HERE) -> None:
    """Show the state, then each change of it, until Ctrl-C. A restart of the agent is waited for."""
    import json

    with asking(where) as client:
        client.current_status()  # an agent that is not there is an error; one that restarts later is waited for
        for status in client.watch(reconnect=True):
            line = json.dumps(status) if where.json else f"{status['status']} {status['session'] or ''}".rstrip()
            print(line, flush=True)


@app.command
def table(
    *, json: Json = False, markdown: Annotated[bool, Parameter(negative=(), help="Print docs/ucm-table.md.")] = False
) -> None:
    """Print the transition table that the agent runs on: every state and event, the next state, and the answer."""
    from otaflow.ucm.listing import list_rows, render_markdown

    if markdown:
        print(render_markdown(), end="")
    elif json:
        print_json(list_rows())
    else:
        rows = [
            row | {"next": " / ".join(row["next"]) if isinstance(row["next"], list) else row["next"]}
            for row in list_rows()
        ]
        print_table(rows, ["state", "event", "next", "answer"])


@app.command
def transfer(
    file: Path,
    *,
    where: Where = HERE,
    resume: Annotated[str | None, Parameter(name="--id", help="Go on with this transfer.", show_default=False)] = None,
) -> None:
    """Bring FILE into the agent's cache: TransferStart, TransferData, TransferExit. Prints its id."""
    with asking(where) as client:
        try:
            id = client.transfer(file, id=resume)
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        show(where, {"id": id}, id)


@app.command
def transfer_start(size: int, *, where: Where = HERE) -> None:
    """Announce a package of SIZE bytes."""
    with asking(where) as client:
        started = client.transfer_start(size)
        show(where, {"id": started.id, "blockSize": started.block_size}, f"{started.id} {started.block_size}")


@app.command
def transfer_data(id: Id, block_counter: int, file: Path, *, where: Where = HERE) -> None:
    """Send the block in FILE; the first has BLOCK_COUNTER 1."""
    try:
        block = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    with asking(where) as client:
        received = client.transfer_data(id, block_counter, block)
        show(where, {"consecutiveBytesReceived": received}, str(received))


@app.command
def transfer_exit(id: Id, *, where: Where = HERE) -> None:
    """End a transfer; the package is checked."""
    call(where, "transfer_exit", id)


@app.command
def delete_transfer(id: Id, *, where: Where = HERE) -> None:
    """Remove a package from the cache."""
    call(where, "delete_transfer", id)


@app.command
def process_sw_package(
    id: Id, *, where: Where = HERE, unattended: Unattended = False, accept_irreversible: Accept = False
) -> None:
    """Prepare a package: a system's in the spare slot, an application's beside its files; ends on Ready."""
    call(where, "process_sw_package", id, unattended=unattended, accept_irreversible=accept_irreversible)


@app.command
def process(
    *files: Path, where: Where = HERE, unattended: Unattended = False, accept_irreversible: Accept = False
) -> None:
    """Bring each of FILES into the cache and process it, in this order; ends on Ready.

    `activate` then starts all of them or none; `revert-processed-sw-packages` gives them up.
    """
    ids: dict[str, str] = {}
    with asking(where) as client:
        for file in files:
            try:
                ids[str(file)] = id = client.transfer(file)
            except OSError as error:
                raise ConfigError(f"cannot read {file}: {error.strerror}") from error
            client.process_sw_package(id, unattended=unattended, accept_irreversible=accept_irreversible)
        show(where, {"ids": list(ids.values())}, "\n".join(f"{id} {file}" for file, id in ids.items()))


@app.command
def go_back(
    to: Way,
    /,
    *,
    backup: Annotated[str | None, Parameter(help="The backup's id; the newest one without it.")] = None,
    where: Where = HERE,
    unattended: Unattended = False,
) -> None:
    """Prepare a way back: the previous slot, the main partition's snapshot, or a backup; ends on Ready."""
    call(where, "go_back", to, backup, unattended=unattended)


@app.command
def uninstall(id: Id, *, where: Where = HERE, unattended: Unattended = False) -> None:
    """Prepare to take back what a package installed that was sent with transfer-data; ends on Ready."""
    call(where, "uninstall", id, unattended=unattended)


@app.command
def remove(name: Name, /, *, where: Where = HERE, unattended: Unattended = False) -> None:
    """Prepare to remove an application, whose data stays; ends on Ready."""
    call(where, "remove", name, unattended=unattended)


@app.command
def request_update(name: Name, /, *, where: Where = HERE) -> None:
    """Ask for an application's updates: the agent looks for them, and says what is on offer already."""
    with asking(where) as client:
        answer = client.request_update(name)
        lines = [f"{one['name']} {one['version']}: {one['verdict']}" for one in answer["offers"]]
        lines.append("it is searched" if answer["searching"] else "it was searched just now")
        show(where, answer, "\n".join(lines))


@app.command
def defer(name: Name, /, *, where: Where = HERE) -> None:
    """Put off the closing of an application that was asked to close."""
    with asking(where) as client:
        answer = client.defer(name)
        show(where, answer, f"{answer['secondsLeft']:g} s, {answer['defersLeft']} more times")


@app.command
def clean_up(*, where: Where = HERE) -> None:
    """Remove full backups and snapshots whose time is over; prints the ids of those backups."""
    with asking(where) as client:
        removed = client.clean_up()
        show(where, {"removed": removed}, "\n".join(removed) or "nothing to remove")


@app.command
def get_offers(*, where: Where = HERE) -> None:
    """Show the updates on offer, what a poll would do with each, and why."""
    with asking(where) as client:
        offers = client.get_offers()
        reasons = ["; ".join(reason["text"] for reason in one["reasons"]) for one in offers]
        lines = [
            f"{one['name']} {one['version']}: {one['verdict']}; {why}" for one, why in zip(offers, reasons, strict=True)
        ]
        show(where, {"offers": offers}, "\n".join(lines) or "nothing is on offer")


@app.command
def consent(
    choice: Literal["now", "at-next-restart", "in-window", "not-this-one", "withdraw"],
    /,
    *,
    version: Annotated[str, Parameter(help="Which of the updates on offer; the next one otherwise.")] = "",
    name: Annotated[str, Parameter(help="Of what: the system's or an application's name.")] = "",
    content: Annotated[str, Parameter(help="Only to this content, which get-offers showed; else refused.")] = "",
    by: Annotated[str, Parameter(help="Who says so.")] = "somebody",
    where: Where = HERE,
) -> None:
    """Say when an update may be installed."""
    call(where, "consent", choice, version, by, name=name, content=content)


@app.command
def get_messages(
    *,
    reader: Annotated[str | None, Parameter(help="Only what this application has not acknowledged.")] = None,
    after: Annotated[int, Parameter(help="Only messages with a higher id.")] = 0,
    where: Where = HERE,
) -> None:
    """List what the device tells its applications."""
    with asking(where) as client:
        messages = client.get_messages(reader, after)
        lines = [f"{one['id']:4}  {one['time'][:19]}  {one['kind']:12}  {one['text']}" for one in messages]
        show(where, {"messages": messages}, "\n".join(lines) or "no messages")


@app.command
def acknowledge_message(reader: str, id: int, /, *, where: Where = HERE) -> None:
    """Record that an application has taken all messages up to ID."""
    call(where, "acknowledge_message", reader, id)


@app.command
def get_diagnostics(*, where: Where = HERE) -> None:
    """Show what would be reported to the maker now, and whether the user agreed to that."""
    with asking(where) as client:
        print_json(client.get_diagnostics())


@app.command
def diagnostics_consent(
    answer: Literal["yes", "no"],
    /,
    *,
    by: Annotated[str, Parameter(help="Who says so.")] = "somebody",
    where: Where = HERE,
) -> None:
    """Agree that diagnostic data is sent after a failure, or not: then what waits is removed, unsent."""
    with asking(where) as client:
        holds = client.diagnostics_consent(given=answer == "yes", by=by)
        show(where, holds, f"{answer}; removed what waited, unsent: {holds['removed']}" if holds["removed"] else answer)


@app.command
def get_sw_process_progress(id: Id, *, where: Where = HERE) -> None:
    """Show how far the processing is, in percent."""
    with asking(where) as client:
        progress = client.get_sw_process_progress(id)
        show(where, {"progress": progress}, f"{progress} %")


@app.command
def cancel(id: Id, *, where: Where = HERE) -> None:
    """Stop the processing of a package; ends when it has stopped."""
    call(where, "cancel", id)


@app.command
def activate(*, where: Where = HERE) -> None:
    """Start what was processed; ends on entering Verifying."""
    call(where, "activate")


@app.command
def rollback(*, where: Where = HERE) -> None:
    """Bring the former system back; ends on Rolled-back."""
    call(where, "rollback")


@app.command
def revert_processed_sw_packages(*, where: Where = HERE) -> None:
    """Give up what was processed; ends on Idle."""
    call(where, "revert_processed_sw_packages")


@app.command
def finish(*, where: Where = HERE) -> None:
    """Keep the new system; ends on Idle."""
    call(where, "finish")


@app.command
def get_sw_cluster_info(*, where: Where = HERE) -> None:
    """List the clusters that are present."""
    report(where, "get_sw_cluster_info", "clusters", ["name", "version", "state"])


@app.command
def get_sw_cluster_change_info(*, where: Where = HERE) -> None:
    """List the clusters that this session adds, updates or removes."""
    report(where, "get_sw_cluster_change_info", "clusters", ["name", "version", "state"])


@app.command
def get_sw_packages(*, where: Where = HERE) -> None:
    """List the packages in the cache."""
    report(where, "get_sw_packages", "packages", ["id", "name", "version", "state", "consecutiveBytesReceived"])


@app.command
def get_history(*, where: Where = HERE, since: str | None = None, until: str | None = None) -> None:
    """List every action and how it ended, oldest first; SINCE and UNTIL are times of RFC 3339."""
    report(where, "get_history", "history", ["time", "name", "version", "action", "resolution", "error"], since, until)


@app.command
def set_log_level(id: Id, level: int, *, where: Where = HERE) -> None:
    """Choose what a package's log gets: 0 off, 1 fatal, 2 error, 3 warn, 4 info, 5 debug, 6 verbose."""
    call(where, "set_log_level", id, level)


@app.command
def get_log(id: Id, *, where: Where = HERE) -> None:
    """Show a package's log."""
    report(where, "get_log", "log", ["time", "level", "message"], id)


# --- shared -------------------------------------------------------------------------------------------------------


@contextmanager
def asking(where: Where) -> Iterator["Client"]:
    """A client of that agent. With --json an error of the interface is printed as it was answered, too."""
    try:
        with make_client(where) as client:
            yield client
    except UcmError as error:
        if where.json:
            print_json({"error": error.name, "code": error.code, "message": str(error)})
        raise


def make_client(where: Where) -> "Client":
    """Raises ConfigError when what is given does not go together."""
    from otaflow.client import Client

    if where.url is None:
        if where.token_file or where.ca or where.certificate or where.key:
            raise ConfigError("cannot use --token-file, --ca, --certificate or --key: they belong to --url")
        if where.socket is not None:
            return Client(socket=where.socket)
        config = configuration.load(where.config)
        return Client(socket=config.path(config.api.socket))
    if where.socket is not None:
        raise ConfigError("cannot use --socket and --url together")
    if (where.certificate is None) != (where.key is None):
        raise ConfigError("cannot use one of --certificate and --key: they go together")
    pair = (where.certificate, where.key) if where.certificate and where.key else None
    return Client(url=where.url, token=_read_token(where.token_file), ca=where.ca, certificate=pair)


def call(where: Where, method: str, *arguments: Any, **options: Any) -> None:
    """A method that gives nothing back: silence is success."""
    with asking(where) as client:
        getattr(client, method)(*arguments, **options)
        if where.json:
            print_json({})


def report(where: Where, method: str, name: str, columns: list[str], *arguments: Any) -> None:
    """A method that gives a list, which is called `name` in the interface."""
    with asking(where) as client:
        rows = getattr(client, method)(*arguments)
    if where.json:
        print_json({name: rows})
    else:
        print_table(rows, columns)


def show(where: Where, value: dict[str, Any], text: str) -> None:
    if where.json:
        print_json(value)
    else:
        print(text)


def print_table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """The columns of the rows; what a row does not have is left empty."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in columns:
        table.add_column(name, no_wrap=name == "id")  # an id is copied
    for row in rows:
        table.add_row(*(Text("" if row.get(name) is None else str(row[name]), overflow="fold") for name in columns))
    Console(highlight=False).print(table)


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token {path}: {error}") from error
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(f"cannot use the token {path}: it must be one line of ASCII")
    return token
