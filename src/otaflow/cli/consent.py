"""`otaflow consent` and `otaflow inbox`: what the user says to an update, and the device to its applications."""

import getpass
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from otaflow.cli.common import ConfigFile, Json, load_device, print_json

Choice = Literal["now", "at-next-restart", "in-window", "not-this-one", "withdraw", "show"]


def consent(
    choice: Choice = "show",
    /,
    *,
    version: Annotated[str, Parameter(help="Which of the updates on offer; the next one otherwise.")] = "",
    name: Annotated[str, Parameter(help="Of what: the system's or an application's name.")] = "",
    content: Annotated[str, Parameter(help="Only to the package of this SHA-256, which `--json` shows.")] = "",
    by: Annotated[str, Parameter(help="Who says so; the user of this terminal otherwise.", show_default=False)] = "",
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Say when an update may be installed; without an answer, show what is on offer and why not now.

    `now`, `at-next-restart`, `in-window` (if the configuration has maintenance windows), `not-this-one`; `withdraw`
    takes the answer back, which is possible until the activation begins. An answer is bound to the package's content.
    """
    from otaflow import answers
    from otaflow.policy.explain import explain

    device = load_device(config)
    if choice != "show":
        offer = answers.find_open(device, version, name=name, content=content)
        if choice == "withdraw":
            answers.withdraw(device, offer)
        else:
            answers.give(device, offer, choice, by=by or getpass.getuser(), through="command")
            answers.resume(device, offer, choice)
    decisions = answers.decisions(device)
    if json:
        print_json({"offers": answers.records(decisions)})
        return
    for decision in decisions:
        print("\n".join(explain(decision)))
    if not decisions:
        print("nothing is on offer; `otaflow check` looks for updates")


inbox = cyclopts.App(name="inbox", help="Read what the device tells its applications.")


@inbox.command(name="list")
def list_messages(
    *,
    reader: Annotated[str, Parameter(help="Only what this application has not acknowledged.")] = "",
    after: Annotated[int, Parameter(help="Only messages with a higher id.")] = 0,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """List the messages, oldest first."""
    from otaflow.policy.memory import Memory

    device = load_device(config)
    messages = Memory(device.nvm, device.config.notices.inbox_size).inbox.read(after, reader)
    if json:
        print_json({"messages": [message.record() for message in messages]})
        return
    for message in messages:
        print(f"{message.id:4}  {message.time[:19]}  {message.kind:12}  {message.text}")


@inbox.command
def acknowledge(
    reader: Annotated[str, Parameter(help="The application's name.")],
    id: Annotated[int, Parameter(help="The newest message it has taken.")],
    /,
    *,
    config: ConfigFile = None,
) -> None:
    """Record that an application has taken all messages up to ID."""
    from otaflow.policy.memory import Memory

    device = load_device(config)
    Memory(device.nvm, device.config.notices.inbox_size).inbox.acknowledge(reader, id)
