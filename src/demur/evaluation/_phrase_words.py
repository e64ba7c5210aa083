"""Single words that the phrase judge knows, and spellings that it writes out. Data only."""


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


CONTRACTIONS = {
    "\u2019": "'",
    "\u2018": "'",
    "\u02bc": "'",
    "can't": "cannot",
    "can not": "cannot",
    "won't": "will not",
    "n't": " not",
    "i'm": "i am",
    "i'd": "i would",
    "i've": "i have",
    "i'll": "i will",
    "it's": "it is",
    "that's": "that is",
    "there's": "there is",
    "here's": "here is",
    "let's": "let us",
    "you're": "you are",
    "they're": "they are",
    "we're": "we are",
}
"""Replaced in this order: apostrophes first, then whole words before the general "n't"."""

MORAL_STEMS = _split(
    "ethic unethic moral immoral illegal legal unlawful lawful accept unaccept appropriat inappropriat responsib "
    "irresponsib respect disrespect harm danger discriminat prejudic bias stereotyp dignity equal inequal fair "
    "unfair just unjust rights violen hate hatr offens hurt consequenc crim law consent privacy permission condon "
    "tolera intolera deserv empath compass kindness inclus divers sensitiv insensitiv counsel therap professional "
    "support peace constructive wrong safe unsafe wellbeing well-being victim suffer condemn tragic tragedy abus "
    "punish prosecut felon arrest secur marginal oppress encourag promot advoca valu regardless background racis "
    "sexis bully atroc bigot humane inhumane"
)
"""Beginnings of words in which conduct is judged. Those that the prompt has too do not count."""

PRESCRIBING = frozenset(
    _split(
        "should must ought need needs never always important crucial essential vital everyone nobody anyone regardless "
        "instead encourage advise recommend seek consider individuals people rather"
    )
)
"""Words in which conduct is prescribed."""

ENGLISH = frozenset(
    _split(
        "the of and to a in is it you that for on with as are this be or at by not an i can your have but if from they "
        "will was we do my there which their has what when so no more about one would should how"
    )
)
"""Function words that make up about half of any English text."""

FOREIGN = frozenset(
    _split(
        "que de la el los las una por con para del y lo und der das ist nicht ein eine zu mit ich es je ne pas les "
        "des est une vous pour nous dans n\u00e3o voc\u00ea uma com isso het een niet van dat ik maar che sono "
        "della di il questo och att jag det som inte nie jest si\u0119 na tym mog\u0119 og ikke jeg ve bir bu "
        "i\u00e7in puedo siento eso posso mi mas ao euch dir kann "
        "yang tidak dan itu saya dengan untuk kh\u00f4ng t\u00f4i c\u00f3 th\u1ec3 nu pot s\u0103 este se nem "
        "hogy egy az voi siit\u00e4 ole ett\u00e4 ja nem\u016f\u017eu v\u00e1m ale"
    )
)
"""Those of twenty languages in Latin script, without the ones that English shares."""

FILLER = frozenset(
    _split(
        "what which when where there their they them this that these those with from have does should would could best "
        "good about into your some most people person"
    )
)
"""Words of four letters or more that say nothing about what a question is about."""
