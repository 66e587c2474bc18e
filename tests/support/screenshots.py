"""The pictures of docs/operating.md, made anew in docs/images: `make pictures` (as root, with Debian's chromium).

A device is operated as the page says, with the mouse, in Prefect's own UI, and what it shows is kept.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from browser import Page, browsing
from prefect_page import MENU, answer, fill_form, log_in, open_deployment, open_run
from up_rig import Up, operated

from otaflow.repo import admin

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SICK = "demo-system-1.2.0.nsu"


class Camera:
    """Takes pictures of the page, once it rests."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page, self.folder = page, folder

    def take(self, name: str, *words: str, height: int = 800) -> None:
        """Keep what the window of that height shows as NAME.png, as soon as `words` can be read."""
        self.page.size(1200, height)
        self.page.wait_for_text(*words)
        self.page.rest()
        self.page.picture(self.folder / f"{name}.png")
        print(self.folder / f"{name}.png")


def main(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="otaflow-pictures-") as temporary,
        operated(Path(temporary) / "site", ["1.1.0"], later=("1.2.0",), minutes=1) as up,
        browsing(Path(temporary) / "browser") as page,
    ):
        log_in(page, up.url, up.login)
        _tell(up, page, Camera(page, folder))


def _tell(up: Up, page: Page, camera: Camera) -> None:
    """The story of docs/operating.md."""
    page.press("Deployments", "link")
    camera.take("deployments", "roll back", "report", "Active", height=760)

    waiting = up.wait_for_run("check", "Suspended")
    open_run(page, waiting)
    camera.take("check-waiting", "Suspended", "Suspending flow run", height=640)
    page.press(MENU)
    page.press("Resume", "item")
    camera.take("check-form", "can be installed", "By (Optional)", height=720)
    page.press("Cancel")
    answer(page, "Ada")
    up.wait_for_run("check", "Installed")
    camera.take("check-tasks", "Installed", height=520)
    session: dict[str, Any] = up.wait_for_run("update session", "Idle")
    open_run(page, session)
    page.press("Subflow Runs", "tab")
    camera.take("session-subflows", "verify", "clean up", height=1000)

    admin.publish(up.site.repository, [up.site.folder / "packages" / SICK])
    again = up.wait_for_run("check", "Suspended")
    open_run(page, again)
    answer(page, "Ada")
    up.wait_for_run("update session", "Idle")
    alarm = up.wait_for_run("report", "Alarm")
    open_run(page, alarm)
    camera.take("alarm", "Alarm", height=640)

    open_deployment(page, "roll back")
    fill_form(page)
    camera.take("rollback-form", "previous slot", "Submit", height=900)
    page.press("Submit")
    up.wait_for_run("roll back", "Completed")

    open_deployment(page, "report")
    page.press("Run")
    page.press("Quick run", "item")
    open_run(page, up.wait_for_run("report", "Completed"))
    page.press("Artifacts", "tab")
    page.press("report-demo", "link")
    newest = """document.querySelector('a[href*="/artifacts/artifact/"]')"""
    page.wait(lambda: page.run(f"(link => link && (link.click(), true))({newest})"), "the newest is listed")
    camera.take("report", "runs in slot", height=900)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
