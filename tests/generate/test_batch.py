"""Replies to many prompts: what a record asks, and their order."""

import torch
from lmf import Conversation, Message, Preference, Ranking, Sampling, Unpaired
from lmf.generate.batch import asked, in_order
from replies import TOKENIZER, Rule, engine

ASK, SAY = Message("user", "Ping?"), Message("assistant", "Pong!")
TALK = Conversation((ASK, SAY, ASK, SAY))


def test_a_record_asks_for_its_last_reply():
    until = Conversation((ASK, SAY, ASK))
    assert asked(TALK) == asked(until) == asked(Unpaired(TALK, True)) == until
    assert asked(Preference(until, (SAY,), (ASK,))) == asked(Ranking(until, ("a", "b"))) == until
    assert asked("Once") == Conversation((Message("user", "Once"),))


def count(read: list[int]) -> torch.Tensor:
    """A model that repeats the first token as often as that one says, and then ends."""
    ended = len(read) > read[0]
    return torch.nn.functional.one_hot(torch.tensor(0 if ended else read[0]), len(TOKENIZER)).float()


def test_replies_come_in_the_order_of_their_prompts_whatever_their_lengths():
    rule = Rule(count)
    lengths = [30, 3, 17, 4, 4, 25, 2, 9] * 5
    prompts = (([length], Sampling()) for length in lengths)
    written = list(in_order(engine(rule, [0], most=4), prompts, n=2))
    assert [[reply.ids for reply in replies] for replies in written] == [[[n] * n + [0]] * 2 for n in lengths]
    assert max(rule.sizes) == 4
    assert sum(rule.sizes) < sum(lengths) * 2 + 2 * len(lengths)  # both replies to a prompt read it once
    assert len(rule.sizes) < sum(lengths)  # and others are written meanwhile


def test_prompts_are_taken_when_there_is_room_for_them():
    taken = []

    def prompts():
        for number in range(100):
            taken.append(number)
            yield [5], Sampling()

    replies = in_order(engine(Rule(count), [0], most=4), prompts())
    next(replies)
    assert len(taken) < 12
