"""Our own methods, beside the contract, under a path of their own: slots, backups, applications, policy, reports."""

from typing import Final

from otaflow import errors as e
from otaflow.api import models as m
from otaflow.api.methods import Method, Refusals

_BEGIN: Refusals = (
    e.OperationNotPermitted,
    e.ServiceBusy,
    e.NothingToRollback,
    e.InsufficientMemory,
    e.ProcessSwPackageCancelled,
)

BESIDE: Final = (
    Method(
        "GoBack",
        "Prepare a way back, as ProcessSwPackage does a package. Answers on reaching Ready; Activate and Finish "
        "follow. Cancel names it by `to`.",
        m.GoBackIn,
        m.Empty,
        _BEGIN,
        lambda service, taken: service.go_back(taken.to, taken.backup, unattended=taken.unattended),
        folder="otaflow",
    ),
    Method(
        "Uninstall",
        "Prepare to take back what the package installed that was sent (without TransferExit, which would refuse it). "
        "Answers on reaching Ready; Activate and Finish follow.",
        m.ProcessIn,
        m.Empty,
        (
            *_BEGIN,
            e.InvalidTransferId,
            e.InsufficientData,
            e.PackageInconsistent,
            e.AuthenticationFailed,
            e.InvalidManifest,
            e.IncompatibleDelta,
            e.ProcessedSoftwarePackageInconsistent,
        ),
        lambda service, taken: service.uninstall(taken.id, unattended=taken.unattended),
        long=True,
        folder="otaflow",
    ),
    Method(
        "Remove",
        "Prepare to remove an application; its data stays. Answers on reaching Ready; Activate and Finish follow. "
        "Cancel names it by `name`.",
        m.RemoveIn,
        m.Empty,
        (e.OperationNotPermitted, e.ServiceBusy, e.NothingToRevert, e.ProcessSwPackageCancelled),
        lambda service, taken: service.remove(taken.name, unattended=taken.unattended),
        folder="otaflow",
    ),
    Method(
        "RequestUpdate",
        "An application asks for its updates: a search for them begins, where none was made just now. Answered at "
        "once, with what is on offer already; what is found is told by messages, and installed as the policy has it.",
        m.ApplicationIn,
        m.Searching,
        (e.OperationNotPermitted,),
        lambda service, taken: service.request_update(taken.name),
        folder="otaflow",
    ),
    Method(
        "Defer",
        "Put off the closing of an application that was asked to close for its update.",
        m.ApplicationIn,
        m.Deferred,
        (e.OperationNotPermitted,),
        lambda service, taken: service.defer(taken.name),
        folder="otaflow",
    ),
    Method(
        "CleanUp",
        "Remove full backups and snapshots whose time is over. In Idle only.",
        m.Nothing,
        m.CleanedUp,
        (e.OperationNotPermitted,),
        lambda service, _: service.clean_up(),
        folder="otaflow",
    ),
    Method(
        "GetOffers",
        "The updates on offer as of the last poll, what a poll would do with each now, and why.",
        m.Nothing,
        m.Offers,
        (),
        lambda service, _: {"offers": service.policy.offers()},
        folder="otaflow",
    ),
    Method(
        "Consent",
        "The user's answer to an update on offer; it can be taken back until the activation begins.",
        m.ConsentIn,
        m.Empty,
        (e.OperationNotPermitted,),
        lambda service, taken: service.policy.consent(
            taken.choice, taken.version, taken.by, name=taken.name, content=taken.content
        ),
        long=True,
        folder="otaflow",
    ),
    Method(
        "GetMessages",
        "What the device tells its applications, oldest first. `GET /otaflow/GetMessages/events` streams them.",
        m.GetMessagesIn,
        m.Messages,
        (),
        lambda service, taken: {"messages": service.policy.messages(taken.reader or "", taken.after)},
        folder="otaflow",
    ),
    Method(
        "AcknowledgeMessage",
        "An application has taken all messages up to `id`.",
        m.AcknowledgeIn,
        m.Empty,
        (e.OperationNotPermitted,),
        lambda service, taken: service.policy.acknowledge(taken.reader, taken.id),
        folder="otaflow",
    ),
    Method(
        "GetDiagnostics",
        "What would be reported to the maker if an update failed now, and whether the user agreed to that.",
        m.Nothing,
        m.Diagnostics,
        (),
        lambda service, _: service.policy.diagnostics(),
        long=True,
        folder="otaflow",
    ),
    Method(
        "DiagnosticsConsent",
        "The user agrees that diagnostic data is sent after a failure, or not; what waits goes then, unsent.",
        m.DiagnosticsConsentIn,
        m.DiagnosticsConsented,
        (),
        lambda service, taken: service.policy.consent_to_diagnostics(given=taken.given, by=taken.by),
        folder="otaflow",
    ),
)
