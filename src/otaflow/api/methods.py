"""The interface's table (docs/spec/ucm-api.md): each method with what it takes, gives, refuses with, and calls."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from otaflow import errors as e
from otaflow.api import models as m
from otaflow.api.service import UcmService

Refusals = tuple[type[e.UcmError], ...]


@dataclass(frozen=True)
class Method:
    """A method: `call` gets the service and what was taken; a Future among what it gives back is waited for.

    `long`: it works in its thread for longer than a moment, on what the client sent.
    """

    name: str
    about: str
    takes: type[m.Taken]
    gives: type[m.Given]
    errors: Refusals
    call: Callable[[UcmService, Any], dict[str, Any] | Future[Any] | None]
    long: bool = False
    folder: str = "ucm"

    @property
    def path(self) -> str:
        return f"/{self.folder}/{self.name}"


def _start(service: UcmService, taken: m.TransferStartIn) -> dict[str, Any]:
    id, block_size = service.transfer_start(taken.size)
    return {"id": id, "blockSize": block_size}


_TRANSFER: Refusals = (e.InvalidTransferId, e.OperationNotPermitted)
_PROCESS: Refusals = (
    e.OperationNotPermitted,
    e.ServiceBusy,
    e.InvalidTransferId,
    e.AuthenticationFailed,
    e.InvalidManifest,
    e.IncompatibleDelta,
    e.OldVersion,
    e.InsufficientMemory,
    e.ProcessedSoftwarePackageInconsistent,
    e.ProcessSwPackageCancelled,
)

METHODS: Final = (
    Method(
        "TransferStart",
        "Announce a package of `size` bytes; the room for it is reserved.",
        m.TransferStartIn,
        m.TransferStartOut,
        (e.InsufficientMemory,),
        _start,
    ),
    Method(
        "TransferExit",
        "End a transfer: the package is checked, and known from now on.",
        m.IdIn,
        m.Empty,
        (
            *_TRANSFER,
            e.InsufficientData,
            e.PackageInconsistent,
            e.AuthenticationFailed,
            e.InvalidManifest,
            e.OldVersion,
        ),
        lambda service, taken: service.transfer_exit(taken.id),
        long=True,
    ),
    Method(
        "DeleteTransfer",
        "Remove a package or an unfinished transfer.",
        m.IdIn,
        m.Empty,
        _TRANSFER,
        lambda service, taken: service.delete_transfer(taken.id),
    ),
    Method(
        "ProcessSwPackage",
        "Prepare a package in the spare slot. Answers on reaching Ready.",
        m.ProcessSwPackageIn,
        m.Empty,
        _PROCESS,
        lambda service, taken: service.process(
            taken.id, unattended=taken.unattended, accept_irreversible=taken.acceptIrreversible
        ),
    ),
    Method(
        "GetSwProcessProgress",
        "How far the processing of a package is.",
        m.IdIn,
        m.Progress,
        (e.InvalidTransferId,),
        lambda service, taken: {"progress": service.progress(taken.id)},
    ),
    Method(
        "Cancel",
        "Stop the processing of a package. Answers when it has stopped.",
        m.IdIn,
        m.Empty,
        (e.OperationNotPermitted, e.InvalidTransferId, e.CancelFailed),
        lambda service, taken: service.cancel(taken.id),
    ),
    Method(
        "Activate",
        "Start what was processed. Answers on entering Verifying; how that ends is in CurrentStatus.",
        m.Nothing,
        m.Empty,
        (e.OperationNotPermitted, e.MissingDependencies, e.ErrorNoValidProcessing, e.ErrorDuringActivation),
        lambda service, _: service.activate(),
    ),
    Method(
        "Rollback",
        "Bring the former system back. Answers on Rolled-back.",
        m.Nothing,
        m.Empty,
        (e.OperationNotPermitted, e.NothingToRollback, e.NotAbleToRollback),
        lambda service, _: service.rollback(),
    ),
    Method(
        "RevertProcessedSwPackages",
        "Give up what was processed. Answers on Idle.",
        m.Nothing,
        m.Empty,
        (e.OperationNotPermitted, e.NothingToRevert, e.NotAbleToRevertPackages),
        lambda service, _: service.revert(),
    ),
    Method(
        "Finish",
        "Keep the new system, or put the one rolled back in order. Answers on Idle.",
        m.Nothing,
        m.Empty,
        (e.OperationNotPermitted, e.GeneralReject),
        lambda service, _: service.finish(),
    ),
    Method(
        "GetSwClusterInfo",
        "The clusters that are present.",
        m.Nothing,
        m.Clusters,
        (),
        lambda service, _: {"clusters": service.clusters()},
    ),
    Method(
        "GetSwClusterChangeInfo",
        "The clusters that this session adds, updates or removes.",
        m.Nothing,
        m.Clusters,
        (),
        lambda service, _: {"clusters": service.cluster_changes()},
    ),
    Method(
        "GetSwPackages",
        "The packages in the cache, and where their transfers go on.",
        m.Nothing,
        m.Packages,
        (),
        lambda service, _: {"packages": service.packages()},
    ),
    Method(
        "GetHistory",
        "Every action and how it ended, oldest first.",
        m.GetHistoryIn,
        m.History,
        (),
        lambda service, taken: {"history": service.history(taken.since, taken.until)},
    ),
    Method(
        "SetLogLevel",
        "How much is written into a package's log.",
        m.SetLogLevelIn,
        m.Empty,
        (e.InvalidTransferId,),
        lambda service, taken: service.set_log_level(taken.id, taken.level),
    ),
    Method(
        "GetLog",
        "A package's log.",
        m.IdIn,
        m.Log,
        (e.InvalidTransferId,),
        lambda service, taken: {"log": service.log(taken.id)},
    ),
)

TRANSFER_DATA: Final = Method(
    "TransferData",
    "Send the next block of a package, as the raw body.",
    m.TransferDataIn,
    m.TransferDataOut,
    (e.InvalidTransferId, e.IncorrectBlock, e.IncorrectSize, e.InsufficientMemory, e.OperationNotPermitted),
    lambda service, taken: None,  # its body is no JSON: api/app.py calls the service
    long=True,
)

_HTTP: dict[int, Refusals] = {
    409: (
        e.OperationNotPermitted,
        e.ServiceBusy,
        e.NothingToRevert,
        e.NotAbleToRevertPackages,
        e.NothingToRollback,
        e.NotAbleToRollback,
        e.CancelFailed,
    ),
    404: (e.InvalidTransferId,),
    507: (e.InsufficientMemory,),
    403: (e.AuthenticationFailed,),
    422: (
        e.IncorrectBlock,
        e.IncorrectSize,
        e.InsufficientData,
        e.PackageInconsistent,
        e.OldVersion,
        e.InvalidManifest,
        e.IncompatibleDelta,
        e.MissingDependencies,
        e.ProcessedSoftwarePackageInconsistent,
    ),
}
HTTP_STATUS: Final = {kind: status for status, kinds in _HTTP.items() for kind in kinds}


def http_status(kind: type[e.UcmError]) -> int:
    """The HTTP status that an error is answered with: 500 for what the contract does not name."""
    return HTTP_STATUS.get(kind, 500)
