"""All commands: what each is called, where it is, and what it is for."""

import cyclopts

from otaflow import __version__

HELP = """Signed A/B updates for Linux devices: every step a Prefect task with its undo.

A device's configuration is read from --config, else $OTAFLOW_CONFIG, else /etc/otaflow.toml.
With PREFECT_API_URL set, runs are shown on that Prefect server, else on Prefect's own embedded one.
"""

app = cyclopts.App(name="otaflow", help=HELP, version=__version__, help_on_error=False)

DEVICE = cyclopts.Group("The device", sort_key=1)
MAKER = cyclopts.Group("The maker's side", sort_key=2)

COMMANDS = {
    DEVICE: {
        "check": ("update:check", "Ask the repository what is new for this device."),
        "update": ("update:update", "Install what is new; each update proves itself healthy or is taken back."),
        "poll": ("poll:poll", "One poll, for a timer: look, tell, and install what may be installed."),
        "consent": ("consent:consent", "Say when an update may be installed, or see why not now."),
        "rollback": ("update:rollback", "Go back: to the previous slot, a main snapshot, or any backup."),
        "app": ("applications:app", "Applications: list them, install, update and remove them."),
        "status": ("report:status", "Show the update manager's state, both slots and the applications."),
        "history": ("report:history", "List every action on this device and how it ended."),
        "backups": ("report:backups", "List the backups that can be gone back to."),
        "clean-up": ("update:clean_up", "Remove full backups and snapshots whose time is over."),
        "recover": ("update:recover", "Finish or take back what a power cut interrupted; run at boot."),
        "resume": ("update:resume", "After the restart: verify the system that is on trial."),
        "up": ("up:up", "Run everything: Prefect's server and UI, the update manager, the polls."),
        "diagnostics": ("diagnostics:app", "Diagnostic data for the maker: agree, look at it, send it."),
        "agent": ("agent:agent", "Run the update manager as a service, with its HTTP interface."),
        "ucm": ("ucm:app", "Call the update manager's methods."),
        "inbox": ("consent:inbox", "Read what the device tells its applications."),
        "device": ("device:app", "Make a device."),
    },
    MAKER: {
        "demo": ("demo:demo", "Show a good update, a sick one that is rolled back, and their history."),
        "package": ("package:app", "Make update packages (.nsu, .nua) and look into them."),
        "repo": ("repo:app", "Keep a signed repository of packages and serve it."),
        "tuf": ("tuf:app", "Speak the protocol of the public TUF conformance suite."),
    },
}
for group, commands in COMMANDS.items():
    for command, (where, about) in commands.items():
        app.command(f"otaflow.cli.{where}", name=command, help=about, group=group)
