"""What there is over HTTP, as OpenAPI 3.1 has it."""

from __future__ import annotations

from typing import Any

from cmdsvc import __version__

_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_PROBLEM = {
    **_TEXT,
    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
}
_NAME = {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"}
_TOKEN: list[dict[str, list[str]]] = [{"bearer": []}, {"basic": []}, {"query": []}]
_OPTIONAL: list[dict[str, list[str]]] = [*_TOKEN, {}]


def _in_path(name: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema or _NAME}


def _in_query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": description,
        "allowEmptyValue": True,
        "schema": {"type": "string", **schema},
    }


def _in_header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def _refusals(*statuses: str) -> dict[str, Any]:
    return {status: {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _run(method: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"run_{method}",
        "summary": "Run a command; its stdout is the reply",
        "description": "Arguments go below the path (/run/OWNER/NAME/ARG/ARG), or into `args`.",
        "security": _OPTIONAL,
        "parameters": [
            _in_query("args", "Arguments, split on white space"),
            _in_query("stream", "Reply as it comes; `base64` for events with bytes"),
            _in_query("detach", "Do not wait: 202, and the run's address"),
            _in_header("Idempotency-Key", "The same request within a day has the first reply"),
            _in_header("Prefer", "`respond-async` is as `detach`"),
        ],
        "responses": {
            "200": {
                "description": "It ended with status 0",
                "headers": {
                    "X-Cmd-Run-Id": {"schema": {"type": "string"}},
                    "X-Cmd-Exit-Status": {"schema": {"type": "integer"}},
                },
                "content": {
                    "*/*": {"schema": {}},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            "202": {
                "description": "It goes on by itself",
                "headers": {"Location": {"schema": {"type": "string"}}},
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Begun"}}},
            },
            **_refusals("400", "401", "404", "405", "409", "413", "422", "429", "431"),
            **_refusals("500", "502", "503", "504"),
        },
    }
    if method == "get":
        operation["responses"] |= {
            "101": {"description": "A WebSocket (RFC 6455), by the protocol cmdsvc.v1 or none"},
            **_refusals("403", "426"),
        }
    else:
        operation["requestBody"] = {
            "description": "Its stdin",
            "content": {"*/*": {"schema": {}}},
        }
    return operation


_REFUSALS = {
    "400": "What was asked cannot be understood",
    "401": "Who asks is not known",
    "403": "The request does not show that it may",
    "404": "It is not there, or not for who asks",
    "405": "Not by this method; see Allow",
    "409": "The first request under this key is under way, or its reply was not kept",
    "413": "The body is too large",
    "422": "The key was used for another request",
    "426": "Of the WebSocket protocol only version 13 is known",
    "429": "Too many runs of yours go on, or too many wrong tokens came; see Retry-After",
    "431": "The head of the request is too large",
    "500": "It ended with another status than 0",
    "502": "What the script replied is malformed, or the engine failed",
    "503": "There is no room now; see Retry-After",
    "504": "It did not end in time",
}

_RUN_ID = {"type": "string", "pattern": "^[0-9a-v]{16}$"}


def document() -> dict[str, Any]:
    """It is the same for everybody."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cmdsvc",
            "version": __version__,
            "description": "Scripts behind URLs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/run/{owner}/{name}": {
                "parameters": [_in_path("owner"), _in_path("name")],
                **{method: _run(method) for method in ("get", "post", "put", "patch", "delete")},
            },
            "/runs/{id}": {"parameters": [_in_path("id", _RUN_ID)], **_of_run()},
            "/runs/{id}/output": {"parameters": [_in_path("id", _RUN_ID)], "get": _output()},
            "/hook/{owner}/{name}/{hook}": {
                "parameters": [_in_path("owner"), _in_path("name"), _in_path("hook")],
                "post": _hook(),
            },
            "/healthz": {"get": _word("alive", "It is alive")},
            "/readyz": {"get": _word("ready", "It can do its work", "503")},
            "/metrics": {"get": _word("metrics", "Its figures, as Prometheus reads them", "401")},
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
                "query": {"type": "apiKey", "in": "query", "name": "access_token"},
            },
            "responses": {
                status: {"description": description, "content": _PROBLEM}
                for status, description in _REFUSALS.items()
            },
            "schemas": _schemas(),
        },
    }


def _of_run() -> dict[str, Any]:
    follow = _in_query("stream", "Its output, from its beginning to its end")
    return {
        "get": {
            "operationId": "run",
            "summary": "What became of a run of this token",
            "security": _TOKEN,
            "parameters": [follow, _in_header("Last-Event-ID", "Only what comes after that event")],
            "responses": {
                "200": {
                    "description": "The run, or its output",
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Run"}},
                        "text/event-stream": {"schema": {"type": "string"}},
                        **_TEXT,
                    },
                },
                **_refusals("401", "404", "429", "503"),
            },
        },
        "delete": {
            "operationId": "kill",
            "summary": "End it",
            "security": _TOKEN,
            "responses": {
                "204": {"description": "It is over"},
                **_refusals("401", "404", "429", "503"),
            },
        },
    }


def _output() -> dict[str, Any]:
    return {
        "operationId": "output",
        "summary": "What is kept of its stdout",
        "security": _TOKEN,
        "parameters": [_in_query("stderr", "Of its stderr instead")],
        "responses": {
            "200": {"description": "So far, where it goes on", "content": _TEXT},
            **_refusals("401", "404", "429", "503"),
        },
    }


def _hook() -> dict[str, Any]:
    return {
        "operationId": "deliver",
        "summary": "A webhook, signed by the scheme that it was made with",
        "security": [{}],
        "requestBody": {"content": {"*/*": {"schema": {}}}},
        "responses": {
            "200": {"description": "Nothing was to be done but to answer", "content": _TEXT},
            "202": {
                "description": "It is stored, and will be run",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["id"],
                            "properties": {"id": {"type": "string"}},
                        }
                    }
                },
            },
            **_refusals("401", "403", "404", "413", "422", "503"),
        },
    }


def _word(name: str, description: str, *refusals: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "security": [{}],
        "responses": {
            "200": {"description": description, "content": _TEXT},
            **_refusals(*refusals),
        },
    }


def _schemas() -> dict[str, Any]:
    text, moment = {"type": "string"}, {"type": ["string", "null"], "format": "date-time"}
    return {
        "Problem": {
            "description": "RFC 9457",
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": text,
                "title": text,
                "status": {"type": "integer"},
                "detail": text,
            },
        },
        "Begun": {
            "type": "object",
            "required": ["id", "url", "state"],
            "properties": {"id": _RUN_ID, "url": text, "state": {"const": "running"}},
        },
        "Run": {
            "type": "object",
            "required": ["id", "command", "state", "exit_status", "started_at", "ended_at"],
            "properties": {
                "id": _RUN_ID,
                "command": text,
                "state": {"enum": ["running", "done", "failed"]},
                "exit_status": {"type": ["integer", "null"]},
                "reason": {"type": ["string", "null"]},
                "message": text,
                "started_at": {"type": "string", "format": "date-time"},
                "ended_at": moment,
            },
        },
    }
