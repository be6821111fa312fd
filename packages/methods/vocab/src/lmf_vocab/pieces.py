"""The pieces of a tokenizer, whatever its kind, as the bytes that they stand for."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from lmf import ConfigError, Plugins
from lmf.models import load_tokenizer
from lmf.sources import find_model

from .vocabulary import SPACE, byte_of, byte_piece

NORMAL, CONTROL, USER = 1, 3, 4  # types of the pieces of sentencepiece; single bytes have another


def file_of(path: Path) -> Path:
    """Return the file of a tokenizer: itself, or the one in a folder.

    Raises:
        ConfigError: There is none.
    """
    if path.is_file():
        return path
    files = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).exists()]
    files += sorted(path.glob("*.tiktoken")) + sorted(path.glob("*.model"))
    if not files:
        raise ConfigError(f"{path} has neither tokenizer.json nor a .model or .tiktoken file.")
    return files[0]


def read_pieces(name: str, plugins: Plugins) -> list[bytes]:
    """Return the pieces of a tokenizer in the order of their ids, without special tokens and single bytes.

    Args:
        name: A folder with a tokenizer, ``tokenizer.json``, a model of sentencepiece, a file of tiktoken, or what
            ``--model`` takes.
        plugins: Where names of models are looked up.

    Raises:
        LmfError: There is none, or it is damaged.
    """
    path = Path(name).expanduser()
    if path.exists() and path.suffix != ".gguf":
        file = file_of(path)
        content = file.read_bytes()
        if file.suffix == ".json":
            found = _of_json(name, content)
        else:
            found = list(ranks) if (ranks := read_ranks(content)) else _of_sentencepiece(file, content)
    else:
        tokenizer: Any = load_tokenizer(find_model(name, plugins))
        found = _of_json(name, tokenizer.backend_tokenizer.to_str().encode())
    pieces = [piece for piece in found if len(piece) > 1]
    if not pieces:
        raise ConfigError(f"{name} holds no pieces of more than one byte.")
    return pieces


def read_ranks(content: bytes) -> dict[bytes, int] | None:
    """Return the pieces and ids of a file of tiktoken in the order of ids; None if it is not one."""
    found = {}
    try:
        for line in content.splitlines():
            if line:
                piece, rank = line.split()
                found[base64.b64decode(piece, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        return None
    return dict(sorted(found.items(), key=lambda item: item[1]))


def read_proto(path: Path, content: bytes) -> Any:
    """Return what a model of sentencepiece holds.

    Raises:
        ConfigError: It is not one.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(content)
    except DecodeError:
        model.Clear()
    if not model.pieces:
        raise ConfigError(f"{path} is neither a model of sentencepiece nor a file of tiktoken.")
    return model


def _of_sentencepiece(path: Path, content: bytes) -> list[bytes]:
    pieces = [each.piece for each in read_proto(path, content).pieces if each.type in (NORMAL, USER)]
    return [piece.replace(SPACE, " ").encode() for piece in pieces]


def _of_json(name: str, content: bytes) -> list[bytes]:
    try:
        found = json.loads(content)
        marks = [found["model"].get(mark) for mark in ("continuing_subword_prefix", "end_of_word_suffix")]
        if any(marks):
            raise ConfigError(f"{name} marks the parts of words ({marks[0] or marks[1]}): its pieces are no texts.")
        special = {each["content"] for each in found["added_tokens"] if each["special"]}
        vocab = found["model"]["vocab"]
        if isinstance(vocab, list):  # of Unigram, with scores
            vocab = {piece: number for number, (piece, _) in enumerate(vocab)}
        pieces = [piece for piece in sorted(vocab, key=vocab.__getitem__) if piece not in special]
        if "ByteLevel" in json.dumps([found.get("pre_tokenizer"), found.get("decoder")]):
            apart = {each["content"] for each in found["added_tokens"]}  # written as they are
            return [piece.encode() if piece in apart else bytes(map(byte_of, piece)) for piece in pieces]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{name} is not a tokenizer.json: {type(error).__name__}: {error}.") from None
    return [piece.replace(SPACE, " ").encode() for piece in pieces if byte_piece(piece) is None]
