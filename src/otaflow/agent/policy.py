"""What the user and the applications of a device say and are told, over the agent's interface."""

from typing import Any

from otaflow import answers, diagnostics
from otaflow.errors import ConfigError, OperationNotPermitted, OtaflowError, UcmError
from otaflow.platform.device import Device
from otaflow.policy.consent import one_line
from otaflow.policy.memory import Memory

Fields = dict[str, Any]


class Policy:
    """The update policy of `device` as the interface has it. Any thread may call any method."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._inbox = Memory(device.nvm, device.config.notices.inbox_size).inbox

    def offers(self) -> list[Fields]:
        """What is on offer as of the last poll, what a poll would do with it now, and why."""
        return answers.records(answers.decisions(self.device))

    def consent(self, choice: str, version: str, by: str, *, name: str = "", content: str = "") -> None:
        """The user's answer to the next offer, or to that of `name`, `version` and `content`.

        Raises OperationNotPermitted.
        """
        offer = answers.find_open(self.device, version, name=name, content=content)
        if choice == "withdraw":
            answers.withdraw(self.device, offer)
            return
        try:
            answers.give(self.device, offer, choice, by=by, through="interface")
        except ConfigError as error:
            raise OperationNotPermitted(str(error), hint=error.hint) from error
        answers.resume(self.device, offer, choice)

    def messages(self, reader: str, after: int) -> list[Fields]:
        """The messages later than `after` that `reader` has not acknowledged, oldest first."""
        return [message.record() for message in self._inbox.read(after, reader)]

    def mark(self) -> object:
        """Changes whenever there may be a new message; costs nothing to ask."""
        return self._inbox.mark()

    def acknowledge(self, reader: str, id: int) -> None:
        """`reader` has taken all messages up to `id`. Raises OperationNotPermitted for one that was never posted."""
        try:
            self._inbox.acknowledge(reader, id)
        except UcmError:
            raise
        except OtaflowError as error:
            raise OperationNotPermitted(str(error), hint=error.hint) from error

    def diagnostics(self) -> Fields:
        """What would be reported to the maker now, whether the user agreed to that, and how much waits."""
        device = Device(self.device.config)  # a look from beside: the agent works on its own one
        return {
            "consent": self._consented(),
            "waiting": len(diagnostics.Spool(device.nvm).waiting()),
            "report": diagnostics.collect(device),
        }

    def consent_to_diagnostics(self, *, given: bool, by: str) -> Fields:
        """The user's answer to that; `removed` says how many reports that waited it removed."""
        removed = 0
        if given:
            diagnostics.give_consent(self.device.nvm, one_line(by))
        else:
            removed = diagnostics.withdraw_consent(self.device.nvm, one_line(by))
        return self._consented() | {"removed": removed}

    def _consented(self) -> Fields:
        holds = diagnostics.read_consent(self.device.nvm)
        return {"given": holds.given, "time": holds.time or None, "by": holds.by or None}
