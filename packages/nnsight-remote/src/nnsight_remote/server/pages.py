"""The pages for people: `/`, how the server is doing, and `/docs`, what it understands.

The one idea: nothing is fetched from another site, so they work in a laboratory without the internet, and nothing that a
user wrote is put into a page but as text. The status page is static; what it shows, it asks for with the reader's key.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse, Response

_POLICY = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_KINDS = {"page.css": "text/css", "status.js": "text/javascript"}


def add_pages(api: FastAPI) -> None:
    """Add the pages to an application whose routes are all there."""

    def asset(name: str) -> str:
        return (files("nnsight_remote.server") / "assets" / name).read_text(encoding="utf-8")

    @api.get("/", include_in_schema=False)
    async def status_page() -> Response:
        return HTMLResponse(asset("status.html"), headers=_POLICY)

    @api.get("/assets/{name}", include_in_schema=False)
    async def page_asset(name: str) -> Response:
        if name not in _KINDS:
            raise HTTPException(404)
        return Response(asset(name), media_type=_KINDS[name], headers=_POLICY)

    @api.get("/docs", include_in_schema=False)
    async def docs_page() -> Response:
        return HTMLResponse(describe(api.openapi()), headers=_POLICY)


def describe(schema: dict[str, Any]) -> str:
    """Show an OpenAPI description as a page."""
    parts = [_HEAD, f"<h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>"]
    parts.append(
        "<p>Every request but <code>/ping</code> carries <code>Authorization: Bearer KEY</code>. For programs this page is "
        '<a href="openapi.json">openapi.json</a>; how the server is doing is on <a href=".">the first page</a>.</p>'
    )
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(about.get('description', ''))}</p>")
            rows = [_row(one["name"], one.get("description", ""), one["schema"]) for one in about.get("parameters", ())]
            if rows:
                parts.append(f"<table>{''.join(rows)}</table>")
    parts.append("<h1>Shapes</h1>")
    for name, about in schema.get("components", {}).get("schemas", {}).items():
        parts.append(f"<h2><code>{escape(name)}</code></h2><p>{escape(about.get('description', ''))}</p>")
        fields = about.get("properties", {}).items()
        parts.append(f"<table>{''.join(_row(key, one.get('description', ''), one) for key, one in fields)}</table>")
    return "".join([*parts, "</main></body></html>"])


def _row(name: str, description: str, schema: dict[str, Any]) -> str:
    return (
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(schema))}</td><td>{escape(description)}</td></tr>"
    )


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>nnsight server: interface</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<link rel="stylesheet" href="assets/page.css"></head><body><main>'
)
