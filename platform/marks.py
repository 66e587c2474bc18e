"""Marks in `/run/otaflow` for systemd's units, which read them without otaflow: is the running slot on trial?

`trial`: it is, as the boot loader's `otaflow.trial=1` on the kernel's command line says, too. `confirmed`: not any
more. `deadline`: otaflow-trial.service restarts the machine, since the trial came to no end in time.
"""

from pathlib import Path

RUN = Path("/run/otaflow")
SYSTEMD = Path("/run/systemd/system")


class Marks:
    """The marks in `folder`; None where no machine restarts, or no systemd is there that would read them."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @classmethod
    def of_machine(cls, *, restarts: bool) -> "Marks":
        """The marks of the machine that we run on."""
        return cls(RUN if restarts and SYSTEMD.is_dir() else None)

    def note_trial(self) -> None:
        """The running slot is on trial: the deadline counts."""
        self._touch("trial")

    def note_confirmed(self) -> None:
        """It is trusted: the deadline counts no more."""
        self._touch("confirmed")

    def is_deadline_over(self) -> bool:
        """Whether the machine is going down because a trial came to no end in time."""
        return self._folder is not None and (self._folder / "deadline").exists()

    def _touch(self, name: str) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).touch()
