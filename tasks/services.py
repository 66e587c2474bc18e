"""Reload services: what was updated is started, others read their configuration anew, and all of them must stay up."""

import time

from otaflow.errors import HealthCheckFailed, ServiceFailed
from otaflow.platform.device import device
from otaflow.tasks.applications import close_application
from otaflow.tasks.services_at_boot import find_stopped
from otaflow.tasks.step import remember, step, stop_if_asked

LOOK_SECONDS = 0.2
LAST_LINES = 5
LOG_SECONDS = 2.0


@step("stop services", when="restarted", key="name")
def stop_services(*, name: str, services: list[str]) -> None:
    """Stop the services that a system package restarts: they run the former program, and write to what is migrated."""
    here = device()
    memory = remember(
        name=name, services=services, running=[service for service in services if here.services.state(service).active]
    )
    for service in memory["services"]:
        here.services.hold(service)
    for service in memory["services"]:
        here.services.stop(service)


@stop_services.undo
def start_stopped(name: str, services: list[str], running: list[str]) -> None:
    """Start those that ran."""
    for service in services:
        device().services.release(service)
    for service in running:
        device().services.start(service)


def keep_stopped() -> None:
    """Stop again what the session has stopped: a boot that nobody had put in order may have started it."""
    here = device()
    for name, services in find_stopped().items():
        if here.applications.path(name).is_dir():
            close_application(name, services)
            continue
        for service in services:
            here.services.hold(service)
            here.services.stop(service)


@step("start services", when="early", key="name")
def start_services(*, name: str, services: list[str], application: bool) -> None:
    """Start the services of a package; those of an application are made known first. Raises ServiceFailed."""
    here = device()
    memory = remember(name=name, services=services, application=application)
    if application:
        here.services.link(here.applications.units(name))
    for service in memory["services"]:
        here.services.release(service)
        here.services.start(service)


@start_services.undo
def stop_new(name: str, services: list[str], application: bool) -> None:
    """No new program runs from here on: what it changed is about to be taken back."""
    here = device()
    if application:
        close_application(name, services)
        here.services.unlink(here.applications.units(name))
        return
    for service in services:
        here.services.hold(service)
        here.services.stop(service)


@step("reload services", when="restarted", key="name")
def reload_services(*, name: str, services: list[str]) -> None:
    """Have services read anew what was changed. Raises ServiceFailed."""
    memory = remember(name=name, services=services)
    for service in memory["services"]:
        device().services.reload(service)


@reload_services.undo
def reload_former(name: str, services: list[str]) -> None:
    """Have them read what there was; one that does not run now is started on it by its own step's undo."""
    for service in services:
        if not device().services.state(service).active:
            continue
        try:
            device().services.reload(service)
        except ServiceFailed:  # what cannot reload is started anew
            device().services.stop(service)
            device().services.start(service)


@step("check services")
def check_services(services: list[str]) -> None:
    """Success is no exit code: each service must be active, and not start anew, for the settling time.

    Raises HealthCheckFailed with its last words. Changes nothing.
    """
    here = device()
    first = {service: here.services.state(service) for service in services}
    end = time.monotonic() + here.config.services.settle_seconds
    while services:
        for service in services:
            state = here.services.state(service)
            if not state.active:
                raise HealthCheckFailed(f"the service {service} did not stay up: {state.words}{_last_words(service)}")
            if state.starts != first[service].starts:
                raise HealthCheckFailed(f"the service {service} ended, and was started anew{_last_words(service)}")
        left = end - time.monotonic()
        if left <= 0:
            return
        here.stop_work.wait(min(left, LOOK_SECONDS))
        stop_if_asked()


def _last_words(service: str) -> str:
    """What it wrote last; its supervisor may be about to write that down."""
    lines: list[str] = []
    end = time.monotonic() + LOG_SECONDS
    while not lines and time.monotonic() < end:
        lines = device().services.read_log(service, LAST_LINES)
        time.sleep(0 if lines else LOOK_SECONDS)
    return f"; its last words: {' / '.join(lines)}" if lines else ""
