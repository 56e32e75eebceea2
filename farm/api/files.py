"""Input files: upload once, name them in many jobs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from farm.api.auth import Reader, Submitter
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute, media_type
from farm.api.schemas import FileSchema
from farm.domain import ids
from farm.domain.media import FORMATS
from farm.errors import BadInput
from farm.services import inputs

router: Final = APIRouter(prefix="/v1/files", tags=["files"], route_class=AuthenticatedRoute)

#: What a body may be that is the file itself; its content decides what it is.
RAW: Final = (*dict.fromkeys(one.media_type for one in FORMATS if one.is_input), "application/octet-stream")
FileId = Annotated[str, Path(description="The file's id.", json_schema_extra={"pattern": ids.pattern(ids.FILE)})]

_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            **dict.fromkeys(RAW, _BINARY),
        },
    }
}


@dataclass(frozen=True)
class _Upload:
    data: bytes
    filename: str | None


@router.post(
    "",
    status_code=201,
    summary="Upload a file",
    openapi_extra=_BODY,
    responses={
        200: {"description": "The same file was uploaded before.", "model": FileSchema},
        **responses(*ALWAYS, 400, 413, 415),
    },
)
async def upload_file(context: Context, key: Submitter, request: Request, response: Response) -> FileSchema:
    """Store an image, a clip or a sound, as the field `file` of a form or as the body itself.

    Images: PNG, JPEG, WebP. Clips: MP4, WebM, QuickTime, GIF, animated WebP. Sounds: WAV, FLAC, Ogg, MP3. The content
    decides what a file is. What follows the end of an image is not stored.
    """
    upload = await _read(request)
    store = partial(inputs.store, context, key.tenant_id, upload.data, upload.filename, field="file")
    file, new = await context.storing.run(key.tenant_id, store)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/files/{file.id}"
    return FileSchema.of(file)


async def _read(request: Request) -> _Upload:
    given = media_type(request)
    if given in RAW:
        return _Upload(await request.body(), None)
    if given != "multipart/form-data":
        taken = ("multipart/form-data", *RAW)
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"send the file as multipart/form-data, or as it is with its own content type: {', '.join(taken)}",
            headers={"Accept-Post": ", ".join(taken)},
        )
    async with request.form(max_files=1, max_fields=0) as form:
        part = form.get("file")
        if not isinstance(part, UploadFile):
            raise BadInput.of("file", None, "is required: the image, clip or sound, as a file of the form")
        return _Upload(await part.read(), part.filename)


@router.get("/{file_id}", summary="Look at a file", responses=responses(*ALWAYS, 404))
def get_file(context: Context, key: Reader, file_id: FileId) -> FileSchema:
    """The properties of an uploaded file."""
    return FileSchema.of(inputs.get_file(context, key.tenant_id, file_id))
