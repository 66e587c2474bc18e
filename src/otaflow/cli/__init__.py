"""The command line: one small module for each group of commands, loaded when it is called."""

import signal
import sys
from types import FrameType

from otaflow.at_boot import is_idle
from otaflow.errors import OtaflowError

AT_BOOT = (["recover"], ["recover", "--no-verify"])
"""What a boot asks; with nothing to do it is answered at once (otaflow.at_boot)."""


def main() -> None:
    """Run the command of `sys.argv`; exit 0 when it did what was asked, 1 with the reason on stderr.

    Ctrl-C (exit 130) and SIGTERM (exit 143) take back what was begun, as a failure does.
    """
    signal.signal(signal.SIGTERM, _stop)
    if sys.argv[1:] in AT_BOOT and is_idle():
        print("nothing to recover: Idle")
        return
    from otaflow.cli.commands import app

    try:
        app(sys.argv[1:])
    except OtaflowError as error:
        print(f"otaflow: {error}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("otaflow: stopped; what was begun is taken back", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM as an exception: undo and exit handlers run (Prefect's embedded server is one of them)."""
    sys.exit(143)
