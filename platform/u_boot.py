"""The boot target in U-Boot's environment, which deployments/u-boot/boot.cmd reads.

`upgrade_available`, `bootcount` and `bootlimit` are U-Boot's own (doc/README.bootcount): while upgrade_available is 1,
it counts each start in bootcount, from 1, and one start more than bootlimit is not the target's any more. All of them
are written by one `fw_setenv --script`, that is in one write; with two copies of the environment a power cut leaves the
former one or the new one.
"""

from collections.abc import Mapping
from tempfile import NamedTemporaryFile

from otaflow.errors import CommandFailed, OtaflowError
from otaflow.platform.environment import TARGET, EnvironmentBoot
from otaflow.platform.run import run

TRIAL, COUNT, LIMIT = "upgrade_available", "bootcount", "bootlimit"
TIMEOUT = 60.0


class UBootBoot(EnvironmentBoot):
    """The BootTarget protocol (protocols.py) on the environment that `path`, a fw_env.config, describes."""

    def set_target(self, slot: str, promise: str, *, trial: bool = False) -> None:
        self._write({**self._names(slot, promise), TRIAL: str(int(trial)), COUNT: "0", LIMIT: str(self._tries)})

    def tries_left(self) -> int | None:
        return self._tries_left(self._read())

    def confirm(self) -> None:
        if self.tries_left() is not None:
            self._write({TRIAL: "0", COUNT: "0"})

    def give_try_back(self) -> None:
        variables = self._read()
        left = self._tries_left(variables)
        if left is not None and left < (limit := _number(variables, LIMIT)):
            self._write({COUNT: str(limit - left - 1)})

    def _tries_left(self, variables: Mapping[str, str]) -> int | None:
        if variables.get(TRIAL) != "1":
            return None
        return max(0, _number(variables, LIMIT) - _number(variables, COUNT))

    def _read(self) -> dict[str, str]:
        lines: list[str] = []
        try:
            run(["fw_printenv", "-c", self._path], timeout=TIMEOUT, output=lines.append)
        except CommandFailed as error:
            raise self._failed("read", error) from error
        return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}

    @property
    def _where(self) -> str:
        return "U-Boot's environment"

    @property
    def _repair(self) -> str:
        return f"fw_setenv -c {self._path} {TARGET} SLOT"

    def _write(self, variables: Mapping[str, str]) -> None:
        """Set them in one change; an empty value removes a variable."""
        self._read()  # where there is none to read, fw_setenv would begin with a default one
        with NamedTemporaryFile("w", prefix="otaflow-") as script:
            script.writelines(f"{name}={value}\n" for name, value in variables.items())
            script.flush()
            try:
                run(["fw_setenv", "-c", self._path, "-s", script.name], timeout=TIMEOUT)
            except CommandFailed as error:
                raise self._failed("write", error) from error

    def _failed(self, verb: str, error: CommandFailed) -> OtaflowError:
        return OtaflowError(
            f"cannot {verb} U-Boot's environment by {self._path}: {error}",
            hint=error.hint
            or "compare the offsets and sizes there with U-Boot's; `saveenv` at its prompt writes an environment anew",
        )


def _number(variables: Mapping[str, str], name: str) -> int:
    """A number as U-Boot reads it: 0 where it is none."""
    value = variables.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else 0
