"""Parts of the OpenAPI document that several modules of routes share."""

from typing import Any

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def described(content: str, schema: dict[str, Any], meaning: str) -> dict[str, Any]:
    """One answer of a route: its media type, its schema and its meaning."""
    return {"description": meaning, "content": {content: {"schema": schema}}}


def answers(status: int, answer: dict[str, Any], **refusals: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route for OpenAPI; `default` keeps FastAPI from adding its own error schema."""
    meanings = {
        "503": "The job store is not available.",
        "default": "One sentence describes the error.",
    } | refusals
    others = {key: described("application/json", ERROR, meaning) for key, meaning in meanings.items()}
    return {status: answer} | {int(key) if key.isdigit() else key: value for key, value in others.items()}
