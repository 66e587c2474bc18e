"""The boot target in U-Boot's environment, which deployments/u-boot/boot.cmd reads.

otaflow_target, otaflow_fallback and otaflow_promise are ours. `upgrade_available`, `bootcount` and `bootlimit` are
U-Boot's own (doc/README.bootcount): while upgrade_available is 1, it counts each start in bootcount, from 1, and one
start more than bootlimit is not the target's any more. All of them are written by one `fw_setenv --script`, that is
in one write; with two copies of the environment a power cut leaves the former one or the new one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from otaflow.errors import BootTargetDamaged, CommandFailed, OtaflowError
from otaflow.platform.run import run
from otaflow.platform.running import Detect, check_target, detect_slot, find_mounted_slot, other_slot, restart_machine

TARGET, FALLBACK, PROMISE = "otaflow_target", "otaflow_fallback", "otaflow_promise"
TRIAL, COUNT, LIMIT = "upgrade_available", "bootcount", "bootlimit"
TIMEOUT = 60.0


class UBootBoot:
    """The BootTarget protocol (protocols.py) on the environment that `config`, a fw_env.config, describes."""

    def __init__(
        self,
        config: Path,
        *,
        slots: Mapping[str, Path],
        restart: Sequence[str],
        tries: int = 3,
        detect: Detect = find_mounted_slot,
    ) -> None:
        self._config = config
        self._slots = slots
        self._restart = restart
        self._tries = tries
        self._detect = detect

    def running(self) -> str:
        return detect_slot(self._slots, self._detect)

    def target(self) -> str:
        target = self._read().get(TARGET, "")
        if target not in self._slots:
            raise BootTargetDamaged(
                f"cannot tell which slot starts next: {TARGET} in U-Boot's environment is {target!r}",
                hint=f"`fw_setenv -c {self._config} {TARGET} SLOT`, with the slot that runs",
            )
        return target

    def promise(self) -> str:
        return self._read().get(PROMISE, "")

    def set_target(self, slot: str, promise: str, *, trial: bool = False) -> None:
        check_target(self._slots, slot, promise)
        names = {TARGET: slot, FALLBACK: other_slot(self._slots, slot), PROMISE: promise}
        self._write({**names, TRIAL: str(int(trial)), COUNT: "0", LIMIT: str(self._tries)})

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

    def restart(self) -> bool:
        return restart_machine(self._restart)

    def _tries_left(self, variables: Mapping[str, str]) -> int | None:
        if variables.get(TRIAL) != "1":
            return None
        return max(0, _number(variables, LIMIT) - _number(variables, COUNT))

    def _read(self) -> dict[str, str]:
        lines: list[str] = []
        try:
            run(["fw_printenv", "-c", self._config], timeout=TIMEOUT, output=lines.append)
        except CommandFailed as error:
            raise self._failed("read", error) from error
        return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}

    def _write(self, variables: Mapping[str, str]) -> None:
        """Set them in one change; an empty value removes a variable."""
        self._read()  # where there is none to read, fw_setenv would begin with a default one
        with NamedTemporaryFile("w", prefix="otaflow-") as script:
            script.writelines(f"{name}={value}\n" for name, value in variables.items())
            script.flush()
            try:
                run(["fw_setenv", "-c", self._config, "-s", script.name], timeout=TIMEOUT)
            except CommandFailed as error:
                raise self._failed("write", error) from error

    def _failed(self, verb: str, error: CommandFailed) -> OtaflowError:
        return OtaflowError(
            f"cannot {verb} U-Boot's environment by {self._config}: {error}",
            hint=error.hint
            or "compare the offsets and sizes there with U-Boot's; `saveenv` at its prompt writes an environment anew",
        )


def _number(variables: Mapping[str, str], name: str) -> int:
    """A number as U-Boot reads it: 0 where it is none."""
    value = variables.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else 0
