"""The routes besides Gradio's that browsers request for the page."""

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from sparsegen.pictures import images
from sparsegen.service.page import catalog, inspector

ICON = inspector.heat(np.array([[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 3], [7, 0, 0, 0]]), 7)

router = APIRouter(include_in_schema=False)


# Starlette's own redirect contains the host and scheme that the proxy passed on, which may not be the browser's.
@router.api_route("/ui", methods=["GET", "HEAD"])
async def page() -> Response:
    return RedirectResponse("ui/")


@router.get("/ui/picture.png")  # shown in previews of links to the page
def cover(request: Request) -> Response:  # not async, so it runs in a thread
    return Response(catalog.cover(request.app.state.models), media_type="image/png")


@router.get("/favicon.ico")
async def favicon() -> Response:
    return Response(images.png(ICON, 8), media_type="image/png")


@router.get("/manifest.json")  # Gradio's page requests it here, not below /ui
async def manifest() -> JSONResponse:
    return JSONResponse({"name": "sparsegen", "start_url": "ui/", "display": "browser"})
