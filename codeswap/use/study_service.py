"""The page of a blind study: one trial after the other, each answer kept at once."""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import Field

from codeswap.types import Config
from codeswap.use.errors import UseError
from codeswap.use.study import Study

PAGE = "pages/study.html"


class Answer(Config):
    """Ratings from 1 (not at all) to 5 (fully)."""

    person: str = Field(min_length=1, max_length=80)
    trial: str
    identity: int = Field(ge=1, le=5)
    attributes: int = Field(ge=1, le=5)
    realism: int = Field(ge=1, le=5)


class Next(Config):
    """The trial to rate (null: all are rated), how many are rated, and how many there are."""

    trial: str | None
    done: int
    total: int


def create_app(study: Study) -> FastAPI:
    """The service of one study."""
    app = FastAPI(title="CodeSwap study")

    @app.exception_handler(UseError)
    async def told(request: Request, error: UseError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return (files("codeswap.use") / PAGE).read_text()

    @app.get("/api/next")
    def following(person: str) -> Next:
        """Where a rater goes on."""
        left = study.left(person)
        total = len(study.trials)
        return Next(trial=left[0] if left else None, done=total - len(left), total=total)

    @app.post("/api/answer")
    def answer(given: Answer) -> Next:
        """Keeps an answer; when this returns it is on the disk."""
        study.answer(given.person, given.trial, given.model_dump(include={"identity", "attributes", "realism"}))
        return following(given.person)

    @app.get("/pictures/{name}")
    def picture(name: str) -> FileResponse:
        trial, _, kind = name.removesuffix(".png").rpartition("-")
        known = trial in study.trials and kind in ("source", "target", "result")
        path = study.folder / "pictures" / name if known else Path("/nonexistent")
        return FileResponse(path, media_type="image/png") if known else JSONResponse({"detail": "not found"}, 404)

    return app
