"""The command line: one small module for each group of commands, loaded when it is called."""

import errno
import signal
import sys
from types import FrameType

from otaflow.at_boot import find_config, is_idle
from otaflow.errors import OtaflowError, Restarting


def main() -> None:
    """Run the command of `sys.argv`; exit 0 when it did what was asked, 1 with the reason on stderr.

    Ctrl-C (exit 130) and SIGTERM (exit 143) take back what was begun, as a failure does.
    """
    signal.signal(signal.SIGTERM, _stop)
    # What every boot asks is answered at once where there is nothing to do.
    if (config := find_config(sys.argv[1:])) and is_idle(config):
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
    except Restarting:
        print("the machine is restarting; what was begun goes on at its start", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        print(f"otaflow: cannot go on: {error}", file=sys.stderr)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(
                "  hint: make room on the device's disk; then `otaflow recover` puts the device in order",
                file=sys.stderr,
            )
        sys.exit(1)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM as an exception: undo and exit handlers run (Prefect's embedded server is one of them)."""
    sys.exit(143)
