"""AgentGoogleDriveFileInputBlock."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field

from livetape.engine.block import BlockSchema, Vector
from livetape.engine.blocks.agent_inputs import NO_VALUE, AgentInput, InputBlock
from livetape.engine.blocks.limits import MAX_ITEMS
from livetape.errors import BlockInputError

AttachmentView: TypeAlias = Literal["DOCS", "DOCUMENTS", "SPREADSHEETS", "PRESENTATIONS", "DOCS_IMAGES", "FOLDERS"]


class GoogleDriveFile(BlockSchema):
    """What a file picker in the browser gives."""

    model_config = ConfigDict(extra="allow")

    id: Annotated[str, Field(min_length=1, max_length=1_000)]
    name: str | None = None
    mimeType: str | None = None  # noqa: N815 (the seed's name)
    url: str | None = None
    iconUrl: str | None = None  # noqa: N815 (the seed's name)
    isFolder: bool | None = None  # noqa: N815 (the seed's name)


def _views() -> list[AttachmentView]:
    return ["DOCS", "SPREADSHEETS", "PRESENTATIONS"]


class DriveFileInput(AgentInput):
    value: GoogleDriveFile | None = None
    allowed_views: Annotated[list[AttachmentView], Field(max_length=MAX_ITEMS)] = Field(default_factory=_views)
    allow_folder_selection: bool = False


class DriveFileResult(BlockSchema):
    result: GoogleDriveFile


class AgentGoogleDriveFileInputBlock(InputBlock[DriveFileInput]):
    """The file is named, not read: what reads it needs an account there."""

    id = "d3b32f15-6fd7-40e3-be52-e083f51b19a2"
    description = "An input of the graph: a file that was chosen in Google Drive."
    pure = True
    Input = DriveFileInput
    Output = DriveFileResult
    vectors = (
        Vector(
            {"name": "report", "value": {"id": "1a", "name": "Report", "more": 1}},
            [("result", {"id": "1a", "name": "Report", "more": 1})],
        ),
        Vector({"name": "report", "value": '{"id": "1a"}'}, [("result", {"id": "1a"})]),
        Vector({"name": "report", "value": {"name": "x"}}, raises=BlockInputError, matching="value: "),
        Vector({"name": "report", "allowed_views": ["ALL"]}, raises=BlockInputError, matching="allowed_views: "),
        *NO_VALUE,
    )


BLOCKS = (AgentGoogleDriveFileInputBlock,)
