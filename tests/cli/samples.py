"""Data in miniature: one or two records in each shape of LLaMA-Factory's demo data, and what they hold."""

import json
from pathlib import Path
from typing import Any

CREPES = {"instruction": "Describe how to make crepes.", "input": "", "output": "Whisk flour, eggs and milk.\n\nBake."}
THEORY = {"instruction": "识别并解释给定列表中的科学理论。", "input": "日心说", "output": "太阳是太阳系的中心。"}
NAMED = {"instruction": "hi", "input": "", "output": "Hello! I am {{name}}, developed by {{author}}."}
PAIR = {
    "conversations": [{"from": "human", "value": "Name a game."}],
    "chosen": {"from": "gpt", "value": "Chess, which two play on a board."},
    "rejected": {"from": "gpt", "value": "Hi!"},
}
CALLED = {
    "conversations": [
        {"from": "human", "value": "I need a logo."},
        {"from": "function_call", "value": '{"name": "search", "arguments": {"query": "logo"}}'},
        {"from": "observation", "value": '{"found": 3}'},
        {"from": "gpt", "value": "I found three."},
    ],
    "tools": '[{"name": "search", "description": "Search.", "parameters": {"type": "object", "properties": {}}}]',
}
RATED = {
    "messages": [{"content": "Sum it up.", "role": "user"}, {"content": "*giggle* No!", "role": "assistant"}],
    "label": False,
}
FILES: dict[str, tuple[list[dict[str, Any]], str]] = {  # records and their format
    "alpaca_en": ([CREPES, NAMED], "alpaca"),
    "alpaca_zh": ([THEORY], "alpaca"),
    "dpo_en": ([PAIR], "sharegpt-preference"),
    "glaive_toolcall_en": ([CALLED], "sharegpt"),
    "identity": ([NAMED], "alpaca"),
    "kto_en": ([RATED], "messages-unpaired"),
}


def write(folder: Path) -> None:
    """Write the files into a folder."""
    for name, (records, _) in FILES.items():
        (folder / f"{name}.json").write_text(json.dumps(records, indent=2, ensure_ascii=False))


def lines(*records: Any) -> str:
    """Records as JSON Lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read(file: str) -> Any:
    """What a JSON or JSON Lines file holds."""
    text = Path(file).read_text()
    return (
        json.loads(text)
        if file.endswith(".json")
        else [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    )
