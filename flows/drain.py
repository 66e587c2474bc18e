"""Prefect's last words: logs and events are sent by threads of their own, which must end before their server does."""

DRAIN_SECONDS = 5.0


def drain_prefect() -> None:
    """Send what is still to be sent, within seconds. Without it, exiting waits a minute for a server that is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=DRAIN_SECONDS)
    EventsWorker.drain_all(timeout=DRAIN_SECONDS)
