"""HTTP service over an exported IR folder, with dynamic batching.

IR_FOLDER=runs/mine/tasks/mine/export/sparse-engine-int8 uvicorn --app-dir examples/fastapi service:app
curl localhost:8000/predict -H 'content-type: application/json' -d '{"texts": ["a warm and clever film"]}'
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from batching import Batcher, OverloadedError
from fastapi import FastAPI, HTTPException
from predictor import InputType, Text, predictor
from pydantic import BaseModel, Field


class Texts(BaseModel):
    """Body of a request."""

    texts: list[Annotated[str, Field(max_length=10_000)]] = Field(min_length=1, max_length=64)
    input_type: InputType | None = Field(None, description="what the texts are to an embedding model with prompts")


class Values(BaseModel):
    """Body of a response: for each text a class -> probability, or its embedding."""

    values: list[dict[str, float] | list[float]]


@asynccontextmanager
async def _model(app: FastAPI) -> AsyncIterator[None]:
    model = predictor(Path(os.environ["IR_FOLDER"]), max_tokens=int(os.environ.get("MAX_TOKENS", "128")))
    model.run([Text("the first inference compiles")])
    app.state.embeds = model.embeds
    wait = float(os.environ.get("MAX_WAIT_MS", "5")) / 1000
    async with Batcher(model.run, max_batch=int(os.environ.get("MAX_BATCH", "32")), max_wait=wait) as app.state.batcher:
        yield


app = FastAPI(title="PruneOFA service", lifespan=_model)


@app.get("/health")
async def health() -> dict[str, str]:
    """Answers when the model is loaded."""
    return {"status": "ready"}


@app.post("/predict")
async def predict(body: Texts) -> Values:
    """Returns one value per text; texts of several requests are computed in one batch."""
    if body.input_type and not app.state.embeds:
        raise HTTPException(422, "input_type is for embedding models; this one is a classifier")
    texts = [Text(text, body.input_type) for text in body.texts]
    answers: list[Any] = await asyncio.gather(*map(app.state.batcher, texts), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, OverloadedError):
            raise HTTPException(503, str(answer), headers={"Retry-After": "1"})
        if isinstance(answer, BaseException):
            raise answer
    return Values(values=answers)
