"""`/votes`: what people prefer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.web.bodies import read_json, schema_of
from app.web.dependencies import client_of, services_of
from app.web.schemas import ProblemAnswer, VoteBody, WithdrawBody, vote_json

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer} for status in (400, 403, 404, 409, 413, 415, 422, 503)
}
IdempotencyKey = Annotated[
    str | None, Header(description="The same key with the same body gives the first answer again.")
]
router = APIRouter(tags=["votes"])


@router.post("/votes", response_class=JSONResponse, responses=_PROBLEMS, openapi_extra=schema_of(VoteBody))
async def vote(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Vote, or change the vote. It is stored for good when the answer comes.

    An `Idempotency-Key` header makes a repeated request give the first answer again.
    """
    body = await read_json(request, VoteBody)
    voter = client_of(request).id
    record = await services_of(request).votes.cast(body.ballot(), voter, idempotency_key=idempotency_key)
    return JSONResponse(vote_json(record))


@router.delete(
    "/votes",
    status_code=204,
    response_class=Response,
    responses=_PROBLEMS,
    openapi_extra=schema_of(WithdrawBody),
)
async def withdraw(request: Request) -> Response:
    """Take a vote back; it is no error if there was none."""
    body = await read_json(request, WithdrawBody)
    await services_of(request).votes.withdraw(body.kind, body.shown, client_of(request).id)
    return Response(status_code=204)
