"""The documentation page at /docs: one self-contained page, since a device may have no way to the internet."""

from html import escape
from typing import Any

from otaflow.api import models
from otaflow.api.beside import BESIDE
from otaflow.api.methods import METHODS, TRANSFER_DATA, Method, http_status
from otaflow.ucm.states import MEANING

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; } code, pre { font: 14px/1.5 ui-monospace, monospace; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0; }
td, th { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; vertical-align: top; }
th { background: #f4f4f4; }
"""


def render_page() -> str:
    """The page, in HTML."""
    methods = sorted((*METHODS, TRANSFER_DATA), key=lambda method: method.name)
    links, own = (
        ", ".join(f'<a href="#{method.name}">{method.name}</a>' for method in some) for some in (methods, BESIDE)
    )
    states = _table(("status", "meaning"), [(state, about) for state, about in MEANING.items()])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>otaflow UCM</title><style>{_STYLE}</style></head><body>
<h1>The update manager's interface</h1>
<p>AUTOSAR PackageManagement over HTTP. Every method is a POST of a JSON object (no body: <code>{{}}</code>) and answers
200 with a JSON object; TransferData takes the raw block. An error answers
<code>{{"error": name, "code": number, "message": what was refused, why, and what to do}}</code>. A malformed request
is GeneralReject with status 422, and changes nothing. Programs read <a href="openapi.json">openapi.json</a>.</p>
<p>{links}; beside AUTOSAR's: {own}</p>
<h2 id="CurrentStatus">CurrentStatus</h2>
<p><code>GET /ucm/CurrentStatus</code> answers the present status and session.
<code>GET /ucm/CurrentStatus/events</code> streams each change as a server-sent event with the same object, with
<code>?current=true</code> the present one first.</p>
{states}
<pre>curl --unix-socket run/ucm.sock http://ucm/ucm/CurrentStatus
curl --unix-socket run/ucm.sock --no-buffer http://ucm/ucm/CurrentStatus/events</pre>
{"".join(_method(method) for method in (*methods, *BESIDE))}
</body></html>
"""


def _method(method: Method) -> str:
    errors = [(kind.__name__, kind.code, http_status(kind)) for kind in method.errors]
    return f"""<h2 id="{method.name}">{method.name}</h2>
<p>{escape(method.about)}</p>
{_fields("takes", method.takes)}{_fields("gives", method.gives)}
{_table(("error", "code", "HTTP status"), errors) if errors else ""}
<pre>{escape(_example(method))}</pre>
"""


def _example(method: Method) -> str:
    ask = "curl --unix-socket run/ucm.sock"
    if method is TRANSFER_DATA:
        return (
            f"{ask} --data-binary @block -H 'Content-Type: application/octet-stream' \\\n"
            f"  'http://ucm/ucm/{method.name}?id=ID&blockCounter=1'"
        )
    values = {"id": '"ID"', "size": "1000", "level": "4", "since": '"2026-01-31T12:00:00Z"', "to": '"previous-slot"'}
    body = ", ".join(f'"{name}": {values[name]}' for name in method.takes.model_fields if name in values)
    return f"{ask} http://ucm{method.path} -H 'Content-Type: application/json' -d '{{{body}}}'"


def _fields(title: str, model: type[models.Taken] | type[models.Given]) -> str:
    schema = model.model_json_schema()
    rows = [
        (name, _type(field, schema.get("$defs", {})), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return _table((title, "type", ""), rows) if rows else ""


def _type(field: dict[str, Any], others: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in field:
        return _type(others[field["$ref"].rpartition("/")[2]], others)
    if "enum" in field:
        return " | ".join(field["enum"])
    if "anyOf" in field:
        return " | ".join(_type(one, others) for one in field["anyOf"])
    if field.get("type") == "array":
        return f"[{_type(field['items'], others)}]"
    if field.get("type") == "object":
        inside = ", ".join(f"{name}: {_type(one, others)}" for name, one in field.get("properties", {}).items())
        return f"{{{inside}}}"
    return str(field.get("format") or field.get("type", "anything"))


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    def line(cells: Any, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
