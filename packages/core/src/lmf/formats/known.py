"""The data formats that core itself knows, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..conversation import Conversation, Kind, Preference, Ranking, Unpaired
from ..errors import DataError
from ..specs import DataFormat
from . import conversations, preferences, ratings
from .dialogue import conversation, marked, prompt


def exact(form: DataFormat) -> DataFormat:
    """Return the format with a ``write`` that refuses what ``read`` would not give back as it was."""
    write = form.write
    if write is None:
        return form

    def checked(content: Any) -> dict[str, Any]:
        if not isinstance(content, _CLASSES[form.data]):
            raise DataError(
                f"the format {form.name} holds {_CLASSES[form.data].__name__}, not {type(content).__name__}."
            )
        try:
            _check(form.data, content)
            record = write(content)
            same = form.read(record) == content
        except DataError as error:
            raise DataError(f"the format {form.name} cannot express this {form.data}: {error}") from None
        if not same:
            raise DataError(f"the format {form.name} cannot express this {form.data}: it would be read differently.")
        return record

    return replace(form, write=checked)


def _check(kind: Kind, content: Any) -> None:
    """Check the rules of conversations, so that each ``write`` may rely on them."""
    if kind == "conversation":
        conversation(marked(content.messages))
    elif kind == "prompt":
        prompt(marked(content.messages))
    elif kind == "unpaired":
        conversation(marked(content.conversation.messages))
    elif kind == "ranking":
        prompt(marked(content.prompt.messages))
    elif kind == "preference":
        for reply in (content.chosen, content.rejected):
            conversation(marked(content.prompt.messages + reply))
        prompt(marked(content.prompt.messages))


_CLASSES: dict[Kind, type] = {
    "conversation": Conversation,
    "text": str,
    "preference": Preference,
    "unpaired": Unpaired,
    "ranking": Ranking,
    "prompt": Conversation,
}

FORMATS = tuple(map(exact, (*conversations.FORMATS, *preferences.FORMATS, *ratings.FORMATS)))
