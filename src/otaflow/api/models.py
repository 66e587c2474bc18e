"""What the interface's methods take and give (docs/spec/ucm-api.md), as pydantic models.

What is taken is checked strictly: a field we do not know, or of another type, is refused. What is given may have more
fields than are written here.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from otaflow.actions import Way
from otaflow.ucm.states import State

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ]([01]\d|2[0-3]):([0-5]\d):([0-5]\d|60)(?:\.(\d{1,30}))?"
    r"([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)


def _to_utc(text: str) -> str:
    """An RFC 3339 time as UTC with milliseconds, as the history's are. ValueError when it is none."""
    parts = _RFC3339.fullmatch(text)
    if parts is None:
        raise ValueError("must be a time of RFC 3339, as 2026-01-31T12:00:00Z")
    year, month, day, hour, minute, second, fraction, zone, _ = parts.groups()
    # year 0 and the leap second are RFC 3339, but not Python's
    plain = f"{max(int(year), 1):04}-{month}-{day}T{hour}:{minute}:{min(int(second), 59):02}"
    moment = datetime.fromisoformat(f"{plain}.{(fraction or '0'):0<6.6}{zone.upper().replace('Z', '+00:00')}")
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:  # the first or the last day there is
        moment = moment.replace(tzinfo=UTC)
    return moment.strftime(f"{moment.year:04}-%m-%dT%H:%M:%S.{moment.microsecond // 1000:03}Z")


def _whole(value: Any) -> Any:
    """In JSON 2.0 is the integer 2 (JSON Schema, integer)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Id = Annotated[str, Field(max_length=255, description="The transfer's id, which TransferStart gave.")]
Time = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(_to_utc),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64}),
]
Level = Annotated[
    int,
    Field(ge=0, le=6, description="0 off, 1 fatal, 2 error, 3 warn, 4 info, 5 debug, 6 verbose."),
    BeforeValidator(_whole),
]


class Taken(BaseModel):
    """What a client sends: strict."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Nothing(Taken):
    """No parameters."""


class TransferStartIn(Taken):
    size: Annotated[int, Field(ge=1, description="Bytes of the whole package."), BeforeValidator(_whole)]


class IdIn(Taken):
    id: Id


Unattended = Annotated[
    bool,
    Field(description="No client decides how it goes on: a restart, or a minute of silence, does not wait for one."),
]


class ProcessIn(Taken):
    id: Id
    unattended: Unattended = False


class ProcessSwPackageIn(ProcessIn):
    acceptIrreversible: bool = Field(
        default=False, description="The user agrees to a migration of data that cannot be brought back."
    )


Application = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="The application's name.")]


class ApplicationIn(Taken):
    name: Application


class RemoveIn(Taken):
    name: Application
    unattended: Unattended = False


class GoBackIn(Taken):
    to: Way = Field(description="The former system, the main partition's snapshot, or /sys and /etc/sys of a backup.")
    backup: Annotated[str, Field(max_length=255)] | None = Field(
        default=None,
        description="The id of the backup (`otaflow backups`) that holds it; without it, the newest.",
    )
    unattended: Unattended = False


class TransferDataIn(Taken):
    id: Id
    blockCounter: int = Field(description="1 for the first block, one more for each that follows.")


class GetHistoryIn(Taken):
    since: Time | None = Field(default=None, description="Only actions at or after this time.")
    until: Time | None = Field(default=None, description="Only actions at or before this time.")


class SetLogLevelIn(Taken):
    id: Id
    level: Level


class EventsIn(Taken):
    current: bool = Field(default=False, strict=False, description="Send the present status first.")


Choice = Literal["now", "at-next-restart", "in-window", "not-this-one", "withdraw"]
Reader = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="The application's name.")]
Number = Annotated[int, Field(ge=0, le=2**53), BeforeValidator(_whole)]


class ConsentIn(Taken):
    choice: Choice = Field(description="When it may be installed; `withdraw` takes the answer back.")
    version: Annotated[str, Field(max_length=255)] = Field(
        default="", description="Which of the updates on offer; the next one otherwise."
    )
    name: Annotated[str, Field(max_length=64)] = Field(
        default="", description="Of what; needed where several are on offer in the same version."
    )
    content: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="The offer's content as the user was shown it: refused where it is another by now."
    )
    by: Annotated[str, Field(max_length=80)] = Field(default="somebody", description="Who says so.")


class DiagnosticsConsentIn(Taken):
    given: bool = Field(description="Whether diagnostic data may be sent after a failure.")
    by: Annotated[str, Field(max_length=80)] = Field(default="somebody", description="Who says so.")


class GetMessagesIn(Taken):
    reader: Reader | None = Field(default=None, description="Only what this application has not acknowledged.")
    after: Number = Field(default=0, description="Only messages with a higher id.")


class MessagesIn(Taken):
    reader: Reader | None = None
    after: int = Field(default=0, ge=0, le=2**53, strict=False)


class AcknowledgeIn(Taken):
    reader: Reader
    id: Annotated[Number, Field(description="The newest message that it has taken.")]


class Given(BaseModel):
    """What a client gets; more may be added."""

    model_config = ConfigDict(extra="allow")


class Empty(Given):
    """Done."""


class Error(Given):
    """What was refused."""

    error: str = Field(description="The error's name.")
    code: int = Field(description="The error's number.")
    message: str = Field(description="What was refused, why, and what to do.")


class Status(Given):
    status: State
    session: str | None = Field(description="The session's id; null in Idle.")


class TransferStartOut(Given):
    id: str
    blockSize: int = Field(description="The largest block that is taken, in bytes.")


class TransferDataOut(Given):
    consecutiveBytesReceived: int = Field(description="Bytes from the package's beginning that are safe on the disk.")


class CleanedUp(Given):
    removed: list[str] = Field(description="The ids of the backups whose full copy or snapshot went.")


class Reason(Given):
    name: str
    text: str = Field(description="For a person.")
    until: str | None = Field(description="How long it holds, where that is known.")


class Offer(Given):
    name: str
    kind: Literal["system", "application"]
    version: str
    content: str = Field(description="The SHA-256 of the signed package: what an answer is bound to.")
    bytes: int
    priority: bool
    irreversible: bool = Field(description="It changes data for good: only the user's own answer lets it go ahead.")
    irreversible_data: str = Field(description="Which data, for a person.")
    description: str
    choices: list[Literal["now", "at-next-restart", "in-window", "not-this-one"]] = Field(
        description="What the user may answer on this device."
    )
    verdict: Literal["install", "ask", "wait", "refuse"] = Field(description="What a poll would do now.")
    reasons: list[Reason]


class Offers(Given):
    offers: list[Offer]


class Searching(Offers):
    searching: bool = Field(description="A search for updates of the application is under way, or begins now.")


class Deferred(Given):
    secondsLeft: float = Field(description="Until the application is ended.")
    defersLeft: int = Field(description="How often that can still be put off.")


class Message(Given):
    id: int
    time: str = Field(json_schema_extra={"format": "date-time"})
    kind: str
    package: str
    version: str
    text: str = Field(description="For a person.")
    facts: dict[str, Any]


class Messages(Given):
    messages: list[Message]


class DiagnosticsConsent(Given):
    given: bool = Field(description="Nobody who never answered has agreed.")
    time: str | None = Field(description="When the user answered; null where nobody did.")
    by: str | None = Field(description="Who did.")


class DiagnosticsConsented(DiagnosticsConsent):
    removed: int = Field(description="How many reports that waited were removed, unsent.")


class Diagnostics(Given):
    consent: DiagnosticsConsent
    waiting: int = Field(description="How many reports wait to be sent.")
    report: dict[str, Any] = Field(description="What would be sent now, without secrets: `otaflow diagnostics show`.")


class Progress(Given):
    progress: int = Field(ge=0, le=100, description="Percent.")


class Cluster(Given):
    name: str
    version: str
    state: Literal["kPresent", "kAdded", "kUpdating", "kRemoved"]


class Clusters(Given):
    clusters: list[Cluster]


class Package(Given):
    id: str
    name: str | None = Field(description="Null as long as it is not known.")
    version: str | None
    state: Literal["kTransferring", "kTransferred", "kProcessing", "kProcessed"]
    consecutiveBytesReceived: int
    consecutiveBlocksReceived: int


class Packages(Given):
    packages: list[Package]


class HistoryEntry(Given):
    time: str = Field(json_schema_extra={"format": "date-time"})
    name: str
    version: str
    action: str
    resolution: Literal["kActivated", "kActivatedAndRolledBack", "kVerificationFailed", "kFailed"]
    error: str | None = Field(default=None, description="The error's name, where there was one.")


class History(Given):
    history: list[HistoryEntry]


class LogEntry(Given):
    time: str = Field(json_schema_extra={"format": "date-time"})
    level: Level
    message: str


class Log(Given):
    log: list[LogEntry]


def describe_refusal(errors: Any) -> str:
    """The first of pydantic's errors, for a person. The client's own input is not repeated."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"])[:80]
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
