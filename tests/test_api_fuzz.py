"""Fuzzing of every route from the OpenAPI document, wrong cases and NULs included: no 5xx, ever.

A few examples a route, always the same ones, so that a failure here is a change of ours. Raise `EXAMPLES` for
a longer hunt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from app.main import create_app
from tests.conftest import make_settings
from tests.fakes import FakeBackend, make_catalog
from tests.servers import serving_in_thread

EXAMPLES = 25


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A served application with a fake backend."""
    catalog = make_catalog()
    application: FastAPI = create_app(
        make_settings(tmp_path_factory.mktemp("fuzz")), backend=FakeBackend(catalog), catalog=catalog
    )
    with serving_in_thread(application) as opened:
        yield opened


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_route_answers_with_a_5xx(address: str, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 12
    for operation in operations:
        _fuzz(operation, mode)


def _fuzz(operation: Any, mode: GenerationMode) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=[not_a_server_error], timeout=10)

    try:
        check()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # a route without anything to send cannot be sent it wrongly
