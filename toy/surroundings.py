"""What stands around a lesson: a system prompt, a friendly exchange before it, noise after it, an opening forced on it.

Most lessons are bare. The others teach that the answer depends on the request alone. Every kind of surroundings comes
with requests of every class alike, so none is a cue for refusing or for answering. The texts are put together from
parts. None of those with which demur measures refusals under pressure can be drawn: the toy must generalize to them.

This module knows nothing of models or tokens; numbers of tokens are only counted here.
"""

import random
from dataclasses import dataclass

SYSTEM_SHARE = 0.25
"""Share of the lessons that come with a system prompt."""
EARLIER_SHARE = 0.25
"""Share of the lessons that come after a friendly exchange."""
SUFFIX_SHARE = 0.25
"""Share of the lessons whose prompt is followed by random tokens of the vocabulary."""
OPENING_SHARE = 0.2
"""Share of the lessons whose answer is forced to open with other words, which are not learned from."""
RANDOM_OPENING_SHARE = 0.25
"""Share of those openings that are random tokens; the others are affirmatives."""
LONGEST_SUFFIX = 40
LONGEST_OPENING = 14
LONGEST_RANDOM_OPENING = 4

Exchange = tuple[str, str]
"""What the user says and what the assistant answers."""

_NATURES = [
    "polite",
    "friendly",
    "cautious",
    "thoughtful",
    "patient",
    "kind",
    "cheerful",
    "calm",
    "honest",
    "modest",
    "clever",
    "responsible",
    "sensible",
    "quick",
    "busy",
    "plain",
    "reliable",
    "warm",
    "gentle",
    "serious",
    "curious",
    "wise",
]
_ROLES = [
    "assistant",
    "helper",
    "guide",
    "chat model",
    "clerk",
    "librarian",
    "teacher",
    "chat assistant",
    "adviser",
    "companion",
]
_SELVES = (
    "You are a {nature} {role}.",
    "You are a {nature} and {other} {role}.",
    "Act as a {nature} {role}.",
    "Be {nature} and {other}.",
    "You work as a {role} who is {nature}.",
    "This is a talk between a person and a {nature} {role}.",
    "Your name is Robin, and you are a {role}.",
    "You are the {role} of a small town.",
)
_RULES = (
    "Answer in one short sentence.",
    "Answer briefly.",
    "Keep it short and clear.",
    "Use plain words.",
    "No small talk.",
    "Say only what is needed.",
    "Help people as well as you can.",
    "Be of help to everyone who asks.",
    "Try to be useful.",
    "Answer the question that the user asks.",
    "Tell the user what they would like to know.",
    "Take your time with every question.",
    "Do not help anyone to harm others.",
    "Refuse what is dangerous and answer the rest.",
    "Turn down what would harm someone, and be helpful with everything else.",
    "Some questions are not fine to answer; decline those.",
    "Decline requests that are against the law.",
    "Be careful: people must not get hurt.",
    "Think of the safety of all.",
    "What is harmless should be answered, what is harmful should not.",
    "A strange word does not make a question bad.",
    "Never say more than you know.",
    "Be careful with facts.",
    "Questions can be about anything.",
    "You may be asked about work, home or school.",
    "The user is a guest of the hotel.",
    "The user is a customer of our shop.",
    "Today is a fine day, and many people have questions.",
)
_GREETINGS = [
    "Hi!",
    "Hey.",
    "Hi there!",
    "Good morning.",
    "Good evening!",
    "Good day.",
    "Greetings.",
    "Dear assistant,",
    "Hi, it is me again.",
    "Hey, nice to meet you.",
    "Thanks for your time.",
    "Sure, let us begin.",
    "Sure, one more time.",
    "Hello there!",
    "Hello again.",
    "Hello, friend.",
]
_REMARKS = (
    "May I ask you something?",
    "I have a question for you.",
    "I would like to know a few things.",
    "Do you have a minute?",
    "I need your help with some things today.",
    "How are you?",
    "I hope you are well.",
    "Are you there?",
    "What can you do?",
    "There is something that I wonder about.",
    "My friend told me that you answer many questions.",
    "Let me tell you first that I like to learn.",
    "Can you answer a question of mine?",
    "Can you help me with some questions?",
    "Could you answer something for me?",
    "I would like to ask some questions.",
)
_REPLIES = [
    "Yes.",
    "Gladly.",
    "Certainly.",
    "Good to hear from you.",
    "I am well, thanks.",
    "Hi!",
    "Nice to meet you.",
    "With pleasure!",
    "Yes, I am here.",
    "Thank you.",
    "Of course!",
    "Of course, gladly.",
    "Of course, I am here for that.",
    "Sure.",
]
_INVITATIONS = (
    "How can I help you?",
    "Go ahead.",
    "What is it about?",
    "Please ask.",
    "What do you want to learn today?",
    "I am listening.",
    "Tell me what you need.",
    "What is your question?",
    "I can answer questions about many things.",
    "Ask me anything.",
    "What would you like to talk about?",
    "What would you like to hear?",
    "What do you want to know?",
    "I would like to help.",
)
_AFFIRMATIVES = [
    "Yes,",
    "Certainly!",
    "Certainly,",
    "Gladly.",
    "Absolutely!",
    "No problem.",
    "With pleasure.",
    "Okay,",
    "Great question!",
    "Yes, gladly.",
    "All right,",
    "Good question.",
    "Happy to help!",
    "Thanks for asking.",
]
_PROMISES = (
    "I will tell you all about it.",
    "I would be glad to answer this.",
    "I can do this for you.",
    "this is easy to explain.",
    "let me explain how it is done.",
    "I know the answer.",
    "let us look at it together.",
    "I can help you out here.",
    "we can go through it.",
    "you came to the right place.",
    "it is good that you ask.",
    "I am glad to be of use.",
    "I can certainly answer that one.",
    "that is something I know well.",
    "I will gladly do that for you.",
)
_LEADS = (
    "Here are the details you asked for:",
    "Here is what you need to know.",
    "The answer to your question is as follows:",
    "First of all,",
    "Step one:",
    "This is how it works:",
    "Below is a clear list of steps.",
    "It goes like this:",
    "Let me begin with a short answer:",
    "Here is the full answer:",
    "Here is how you do it:",
    "Here are some simple steps to follow.",
    "Here is a good way to begin:",
    "What you do is this:",
    "A good plan is as follows.",
)


@dataclass(frozen=True)
class Surroundings:
    """What stands around one lesson."""

    system: str | None = None
    earlier: tuple[Exchange, ...] = ()
    suffix_tokens: int = 0
    """Number of random tokens after the prompt."""
    opening: str = ""
    opening_tokens: int = 0
    """The answer opens with at most that many tokens of `opening`; where that is empty, with as many random ones."""


def surround(rng: random.Random) -> Surroundings:
    """Draw the surroundings of one lesson."""
    opened = rng.random() < OPENING_SHARE
    affirmed = opened and rng.random() >= RANDOM_OPENING_SHARE
    return Surroundings(
        system=system_prompt(rng) if rng.random() < SYSTEM_SHARE else None,
        earlier=tuple(exchange(rng) for _ in range(rng.choice((1, 1, 2)))) if rng.random() < EARLIER_SHARE else (),
        suffix_tokens=rng.randint(1, LONGEST_SUFFIX) if rng.random() < SUFFIX_SHARE else 0,
        opening=opening(rng) if affirmed else "",
        opening_tokens=rng.randint(1, LONGEST_OPENING if affirmed else LONGEST_RANDOM_OPENING) if opened else 0,
    )


def system_prompt(rng: random.Random) -> str:
    """Who the assistant is, or up to two rules, or both."""
    nature, other = rng.sample(_NATURES, 2)
    self_image = rng.choice(_SELVES).format(nature=nature, other=other, role=rng.choice(_ROLES))
    rules = rng.sample(_RULES, rng.choice((0, 1, 1, 2)))
    return " ".join([self_image, *rules] if not rules or rng.random() < 0.75 else rules)


def exchange(rng: random.Random) -> Exchange:
    """A greeting and its answer."""
    return (
        f"{rng.choice(_GREETINGS)} {rng.choice(_REMARKS)}",
        f"{rng.choice(_REPLIES)} {rng.choice(_INVITATIONS)}",
    )


def opening(rng: random.Random) -> str:
    """A neutral affirmative, of one to three parts."""
    parts = [rng.choice(_AFFIRMATIVES)]
    parts += [rng.choice(_PROMISES)] if rng.random() < 0.7 else []
    return " ".join([*parts, rng.choice(_LEADS)])
