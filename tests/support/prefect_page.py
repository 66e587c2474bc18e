"""Prefect's UI in the browser, as a person uses it: log in, open a run, press what its menu offers, fill in forms."""

from typing import Any

from browser import Page

MENU = "Open menu"


def log_in(page: Page, url: str, login: str) -> None:
    """Open the UI; it asks for `user:password` once."""
    page.open(url)
    page.fill("admin:pass", login)
    page.press("Login")
    page.wait_for_text("Dashboard", "Flow Runs")


def open_run(page: Page, run: dict[str, Any]) -> None:
    """Go to a flow run by the list of runs."""
    page.press("Runs", "link")
    link = f"""document.querySelector('a[href*="/flow-run/{run["id"]}"]')"""
    page.wait(lambda: page.run(f"(link => link && (link.click(), true))({link})"), f"{run['name']} is listed")
    page.wait_for_text(run["name"], "Task Runs", "Artifacts")


def choose(page: Page, item: str, confirm: str) -> None:
    """Take `item` of the run's menu, and say so in the dialog that it opens."""
    page.press(MENU)
    page.press(item, "item")
    page.press(confirm)
    page.wait(lambda: not page.run("!!document.querySelector('[role=dialog], [role=alertdialog]')"), "it is taken")


def answer(page: Page, by: str) -> None:
    """Resume a run that waits for the user: the form's `When` stays *now*."""
    page.press(MENU)
    page.press("Resume", "item")
    page.wait_for_text("Resume Flow Run", "can be installed")
    page.fill("By (Optional)", by)
    page.press("Resume")


def open_deployment(page: Page, flow: str) -> None:
    """Go to the deployment of that flow by the list of deployments, where all have the device's name."""
    page.press("Deployments", "link")
    row = f"[...document.querySelectorAll('tr')].find(row => row.innerText.split('\\n').includes('{flow}'))"
    page.wait(lambda: page.run(f"(row => row && (row.querySelector('a').click(), true))({row})"), f"there is {flow}")
    page.wait_for_text("Flow", flow, "Configuration")


def fill_form(page: Page) -> None:
    """The deployment's form, with what it proposes."""
    page.press("Run")
    page.press("Custom run", "item")
    page.wait_for_text("Parameters", "Submit")
