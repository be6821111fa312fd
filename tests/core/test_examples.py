"""Examples in flat arrays: what goes in comes out, from memory and from files."""

import random
from pathlib import Path

import pytest
from lmf import LmfError
from lmf.encoding.encoder import IGNORED, Example
from lmf.encoding.examples import Examples


def made(seed: int, wide: bool, weighted: bool) -> list[Example]:
    """Return examples with ids above or below two bytes, some of them with weights."""
    chance = random.Random(seed)
    found = []
    for number in range(40):
        ids = [chance.randrange(2**17 if wide else 2**16) for _ in range(chance.randrange(1, 60))]
        labels = [id if chance.random() < 0.5 else IGNORED for id in ids]
        weights = None
        if weighted and number % 3 == 0:
            weights = [chance.choice((0.25, 0.5, 1.0)) for _ in ids]
            labels, weights[0] = ids, 0.5  # one that counts is not 1, or they would not be kept
        found.append(Example(ids, labels, f"file:{number}", weights))
    return found


each_kind = pytest.mark.parametrize(("wide", "weighted"), [(False, False), (True, False), (False, True), (True, True)])


@each_kind
def test_what_goes_in_comes_out(wide, weighted):
    examples = made(0, wide, weighted)
    kept = Examples(examples)
    assert list(kept) == examples
    assert kept[3:30:4] == examples[3:30:4]
    assert kept[-1] == examples[-1]
    assert kept.lengths == [len(e.ids) for e in examples]
    assert kept.where == [e.where for e in examples]
    with pytest.raises(IndexError):
        kept[len(examples)]


@each_kind
def test_some_of_them_are_a_view(wide, weighted):
    examples = made(1, wide, weighted)
    kept = Examples(examples).take([5, 3, 30]).take([2, 0])
    assert list(kept) == [examples[30], examples[5]]
    assert kept.lengths == [len(examples[30].ids), len(examples[5].ids)]
    assert kept.where == ["file:30", "file:5"]


@each_kind
def test_files_give_back_what_was_saved(wide, weighted, tmp_path):
    examples = made(2, wide, weighted)
    Examples(examples).save(tmp_path)
    opened = Examples.load(tmp_path)
    assert list(opened) == examples
    assert list(opened.take([7, 2])) == [examples[7], examples[2]]


def test_no_examples_are_saved_and_loaded(tmp_path):
    Examples().save(tmp_path)
    assert list(Examples.load(tmp_path)) == []


def test_a_token_takes_three_bytes_and_a_large_one_five(tmp_path):
    for wide, size in ((False, 3), (True, 5)):
        examples = made(3, wide, weighted=False)
        folder = tmp_path / str(size)
        folder.mkdir()
        Examples(examples).save(folder)
        tokens = sum(len(e.ids) for e in examples)
        assert sum((folder / name).stat().st_size for name in ("ids", "counted")) == size * tokens


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize("name", ["ids", "counted", "bounds", "weights", "examples.json"])
@pytest.mark.parametrize("harm", [cut, Path.unlink, lambda file: file.write_bytes(b"")], ids=["cut", "gone", "empty"])
def test_damaged_files_are_refused(name, harm, tmp_path):
    Examples(made(4, wide=False, weighted=True)).save(tmp_path)
    harm(tmp_path / name)
    with pytest.raises(LmfError, match="is damaged"):
        Examples.load(tmp_path)
