"""Checks that apply to all answers of the service."""

import json

from hypothesis import HealthCheck, Phase, given, settings


def sentence(answer: bytes | dict) -> str:
    """The one sentence of a refusal."""
    answer = json.loads(answer) if isinstance(answer, bytes) else answer
    assert list(answer) == ["error"], answer
    assert answer["error"] and "\n" not in answer["error"] and "Traceback" not in answer["error"]
    return answer["error"]


def fuzz(operation, mode, examples: int) -> set[int]:
    """Checks answers to generated requests against the OpenAPI document; returns their statuses.

    Args:
        operation: Of a schemathesis schema.
        mode: A `schemathesis.GenerationMode`: requests that fit the document, or that do not.
    """
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    ]
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        response = case.call()
        case.validate_response(response, checks=checks)
        if response.status_code >= 400:
            sentence(response.content)
        statuses.add(response.status_code)

    ask()
    return statuses
