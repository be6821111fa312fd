"""Build the demo data set from the cards in ``demo/cards``.

``python demo/make.py`` checks the cards and writes the two JSONL files.
``python demo/make.py --check`` checks the cards and compares the files, and writes nothing.
"""

import argparse
import json
import random
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

DEMO = Path(__file__).resolve().parent
DATA = DEMO.parent / "src" / "lmf_smollm2" / "data"
MINIMUM = {"cards.jsonl": 260, "cards-heldout.jsonl": 40}  # conversations in each file
WORDS = range(30, 61)  # words in a whole reply, labels included
SEED = 7
NEXT = {"S": "U", "U": "In short", "In short": "Why", "Why": "Try", "Try": "U"}
LINE = re.compile(r"(S|U|In short|Why|Try): (\S|\S.*\S)")
FAULTS = {
    r"[^.!?]$": "the sentence must end with . or ! or ?",
    r"[.!?][\"')]? [A-Z]": "write one sentence only",
    r"`|\*\*": "write plain text without markdown",
}


@dataclass
class Cards:
    """Everything that was read from the card files, and every fault found."""

    rows: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in MINIMUM})
    lengths: list[int] = field(default_factory=list)  # words in each reply
    questions: dict[str, str] = field(default_factory=dict)  # plain form -> file:line
    errors: list[str] = field(default_factory=list)

    def add_file(self, path: Path) -> None:
        """Read the blocks of one file; empty lines part them."""
        block: list[tuple[str, str]] = []
        for number, line in enumerate([*path.read_text("utf-8").split("\n"), ""], start=1):
            if line:
                block.append((f"{path.name}:{number}", line))
            elif block:
                self.add_block(block)
                block = []

    def add_block(self, block: list[tuple[str, str]]) -> None:
        """Check one conversation and keep it as a row of JSON."""
        name = "cards.jsonl"
        if block[0][1] == "held-out" and len(block) > 1:
            name, block = "cards-heldout.jsonl", block[1:]
        messages: list[dict[str, str]] = []
        reply: list[str] = []
        expected = "U"
        for where, line in block:
            match = LINE.fullmatch(line)
            if match is None or match[1] not in ((expected,) if messages else ("S", "U")):
                self.errors.append(f"{where}: expected '{expected}: ' and a text here")
                return
            label, text = match.groups()
            expected = NEXT[label]
            if label == "U":
                self.check_question(text, where)
            if label in ("S", "U"):
                messages.append({"role": "system" if label == "S" else "user", "content": text})
                continue
            faults = [fault for form, fault in FAULTS.items() if re.search(form, text)]
            self.errors += [f"{where}: {fault}" for fault in faults]
            reply.append(line)
            if label == "Try":
                self.lengths.append(len(" ".join(reply).split()))
                if self.lengths[-1] not in WORDS:
                    self.errors.append(f"{where}: the reply has {self.lengths[-1]} words")
                messages.append({"role": "assistant", "content": "\n".join(reply)})
                reply = []
        if not messages or messages[-1]["role"] != "assistant" or reply:
            self.errors.append(f"{block[-1][0]}: the block ends without a whole reply")
        self.rows[name].append(json.dumps({"messages": messages}, ensure_ascii=False))

    def check_question(self, text: str, where: str) -> None:
        """Report a question that stands elsewhere, whatever its case and punctuation."""
        key = " ".join(re.findall(r"\w+", text.casefold().replace("'", "")))
        if (first := self.questions.setdefault(key, where)) != where:
            self.errors.append(f"{where}: the same question stands at {first}")


def main() -> int:
    """Check the cards, then write the files or compare them."""
    parser = argparse.ArgumentParser(description="Build the demo data set from demo/cards.")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    check: bool = parser.parse_args().check
    cards = Cards()
    for path in sorted((DEMO / "cards").glob("*.txt")):
        cards.add_file(path)
    files: dict[Path, bytes] = {}
    for name, rows in cards.rows.items():
        if len(rows) < MINIMUM[name]:
            cards.errors.append(f"{name}: {len(rows)} conversations, fewer than {MINIMUM[name]}")
        random.Random(SEED).shuffle(rows)
        files[DATA / name] = "".join(row + "\n" for row in rows).encode()
    for path, data in files.items() if not cards.errors else ():
        if check and (not path.is_file() or path.read_bytes() != data):
            cards.errors.append(f"{path}: not up to date, run demo/make.py")
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for error in cards.errors:
        print(error, file=sys.stderr)
    if cards.errors:
        return 1
    print(*(f"{name}: {len(rows)} conversations" for name, rows in cards.rows.items()), sep="\n")
    print(f"{len(cards.lengths)} replies, {sum(cards.lengths) / len(cards.lengths):.1f} words each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
