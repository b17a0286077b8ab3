"""The description of what there is over HTTP."""

from __future__ import annotations

import json

from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from cmdsvc.web.openapi import document


def test_it_is_valid_and_can_be_sent():
    validate(json.loads(json.dumps(document())), cls=OpenAPIV31SpecValidator)


def test_every_operation_has_a_name_of_its_own():
    names = [
        operation["operationId"]
        for path in document()["paths"].values()
        for operation in path.values()
        if isinstance(operation, dict)
    ]
    assert len(names) == len(set(names)) > 8
