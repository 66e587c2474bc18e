"""Every error of otaflow on one screen.

A message reads "cannot …: why", and `hint` says what to do. The cause is kept (`raise … from`). A type of its own
exists only where a caller must tell it apart:

* `TryLater`: nothing is wrong with the request, the moment was bad (offline, busy, locked). The only errors retried.
* `Refused`: a certificate, a login or a signature was not accepted. Never retried.
* `UcmError`: an error of the UCM interface, with AUTOSAR's name (the class's name) and code.
"""

from typing import ClassVar


class OtaflowError(Exception):
    """The root: `str()` is what was refused and why, `hint` what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(OtaflowError):
    """The device's configuration cannot be used."""


class CommandFailed(OtaflowError):
    """A program that we ran ended badly; `output` is the end of what it said."""

    def __init__(self, message: str, *, output: str = "", returncode: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output
        self.returncode = returncode


class JournalCorrupt(OtaflowError):
    """The journal has a damaged line that is not its last one."""


class BootTargetDamaged(OtaflowError):
    """What the boot loader reads does not say which slot starts next; setting the target mends it."""


class UndoFailed(OtaflowError):
    """A step could not be taken back; the journal still holds what its undo needs."""


class HealthCheckFailed(OtaflowError):
    """The system that was started is not healthy."""


class ServiceFailed(OtaflowError):
    """A service did not start, stop or reload, or did not stay up."""


class DatabaseFailed(OtaflowError):
    """A database could not be dumped or brought back, or its dump is damaged."""


class MigrationFailed(OtaflowError):
    """A migration of data failed, hung, or filled the disk."""


class Restarting(Exception):
    """The machine is going down; the session goes on when it is up again. Nothing is wrong: it is no OtaflowError."""


# --- the moment was bad -------------------------------------------------------------------------------------------


class TryLater(OtaflowError):
    """Nothing is wrong but the moment; the only kind of error that is retried."""


class Offline(TryLater):
    """The repository's server cannot be reached, or the connection was cut."""


class Locked(TryLater):
    """Another otaflow is at work on this device."""


# --- not accepted, and asking again would not help ----------------------------------------------------------------


class Refused(OtaflowError):
    """Something that must be trusted was not; never retried."""


class CertificateRefused(Refused):
    """The server's certificate is not valid for it, or the server wants one from us."""


class LoginRefused(Refused):
    """The server does not accept our token or client certificate."""


class RepositoryRefused(Refused):
    """The repository's metadata or a target does not verify (TUF, section 5)."""


# --- errors of the UCM interface (AUTOSAR UpdateAndConfigManagement, R19-11) --------------------------------------


class UcmError(OtaflowError):
    """An error with a name and a code in the UCM interface; the name is the class's."""

    code: ClassVar[int] = 10

    @property
    def name(self) -> str:
        return type(self).__name__


class InsufficientMemory(UcmError):
    """Not enough room for the package or for what it installs."""

    code = 1


class IncorrectBlock(UcmError):
    """The block is not the one that comes next."""

    code = 2


class IncorrectSize(UcmError):
    """The package's or the block's size cannot be right."""

    code = 3


class InvalidTransferId(UcmError):
    code = 4


class OperationNotPermitted(UcmError):
    """The present state does not permit this call."""

    code = 5


class InsufficientData(UcmError):
    """Not all of the package was transferred yet."""

    code = 6


class PackageInconsistent(UcmError):
    """The package file is not what its format promises."""

    code = 7


class AuthenticationFailed(UcmError):
    """The package is not a signed target of a repository that this device trusts."""

    code = 8


class OldVersion(UcmError):
    """The package is not newer than what is installed."""

    code = 9


class GeneralReject(UcmError):
    code = 10


class ServiceBusy(UcmError):
    """Another package is being processed."""

    code = 12


class InvalidManifest(UcmError):
    """The package's metadata cannot be accepted."""

    code = 13


class NothingToRevert(UcmError):
    code = 14


class NotAbleToRevertPackages(UcmError):
    code = 15


class CancelFailed(UcmError):
    code = 16


class NothingToRollback(UcmError):
    code = 17


class NotAbleToRollback(UcmError):
    code = 18


class ErrorDuringActivation(UcmError):
    code = 19


class ErrorNoValidProcessing(UcmError):
    code = 20


class MissingDependencies(UcmError):
    code = 21


class ProcessSwPackageCancelled(UcmError):
    code = 22


class ProcessedSoftwarePackageInconsistent(UcmError):
    """The package was processed, and what came out is wrong (the program failed, or its result does not verify)."""

    code = 23


class IncompatibleDelta(UcmError):
    """The package applies to another version than the one installed."""

    code = 29
