"""What a person sees of the work: one line for each state and step as it happens, a bar while bytes come."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from otaflow import progress
from otaflow.ucm.states import MEANING, State


class View:
    """Listens to the work and shows it on stderr; bars only on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.listening = progress.listening(self.show)
        self.bar: Progress | None = None

    def __enter__(self) -> "View":
        self.listening.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()
        self.listening.__exit__(kind, error, trace)

    def show(self, event: progress.Event) -> None:
        """Show one event."""
        if event.kind == "bytes":
            self._show_bytes(event)
            return
        self._end_bar()
        line = self._line(event)
        if line:
            self.console.print(line, soft_wrap=True)

    def _line(self, event: progress.Event) -> str:
        facts = event.facts
        match event.kind:
            case "state":
                why = f": {_safe(facts['error'])}" if facts.get("error") else f", {MEANING[State(event.name)]}"
                return f"[bold cyan]{event.name}[/]{why}"
            case "done":
                return f"  [green]done[/]    {event.name} [dim]{facts['seconds']:.2f} s[/]"
            case "failed":
                return f"  [red]failed[/]  {event.name}: {_safe(facts['error'])}"
            case "undone":
                return f"  [yellow]undone[/]  {event.name}"
            case "output":
                return f"          [dim]{_safe(facts['line'])}[/]"
            case "note":
                return f"          {_safe(event.name)}"
        return ""

    def _show_bytes(self, event: progress.Event) -> None:
        total = event.facts.get("total")
        if not self.console.is_terminal or not total:
            return
        if self.bar is None:
            columns = (TextColumn("          {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.bar.add_task(event.name, total=total)
        self.bar.update(self.bar.task_ids[0], completed=event.facts["done"], total=total)

    def _end_bar(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def _safe(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))
