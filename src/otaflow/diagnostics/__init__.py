"""Diagnostic data: what a device tells its maker of a failure, with a consent of its own, and stripped of secrets.

`collect` makes a report, `strip` removes secrets from any plain data, `send` spools a report and sends what waits.
"""

from otaflow.diagnostics.consent import Consent as Consent
from otaflow.diagnostics.consent import give_consent as give_consent
from otaflow.diagnostics.consent import read_consent as read_consent
from otaflow.diagnostics.consent import withdraw_consent as withdraw_consent
from otaflow.diagnostics.report import collect as collect
from otaflow.diagnostics.report import encode as encode
from otaflow.diagnostics.sending import send as send
from otaflow.diagnostics.spool import Spool as Spool
from otaflow.diagnostics.stripping import strip as strip
