"""Lists of words: those that change a number, units, numbers in words, months and days of the week."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# words that deny, make another number of the number beside them, or open a range
HARMFUL = frozenset(
    _words(
        """
        not no non nor never neither none cannot except but wrong incorrect false untrue ain mistaken invalid unlike
        instead anything nothing rather otherwise or vs versus to till if unless either maybe perhaps possibly probably
        likely unlikely almost nearly near hardly barely scarcely least most too impossible unsure doubtful excluded
        excluding rejected fails failed bogus
        multiplied divided plus minus squared cubed factorial root roots log ln lg sqrt sin cos tan cot sec csc exp mod
        modulo binary octal hexadecimal hex pi inverse reciprocal
        half halves third thirds fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth
        tenths hundredth hundredths thousandth thousandths twice double triple thrice quadruple
        k mil bn hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens
        zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
        eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
        """
    )
)
HARMFUL_BEFORE = HARMFUL | frozenset(
    _words(
        """
        times than over under above below beyond within without between from until up through exceeding exceed exceeds
        added subtracted negative opposite power base after before following preceding
        """
    )
)
HARMFUL_BEHIND = HARMFUL | frozenset(_words("and minimum maximum max base gross score"))
COMPARES = frozenset(_words("fewer less greater smaller larger higher lower bigger"))

UNITS = {
    alias: _words(names)[0]  # the first name of a unit stands for all of them
    for names in (
        "mm millimeter millimetre 毫米",
        "cm centimeter centimetre 厘米",
        "dm decimeter decimetre 分米",
        "m meter metre 米",
        "km kilometer kilometre 千米 公里",
        "in inch inches",
        "ft foot feet",
        "yd yard",
        "mi mile",
        "mg milligram",
        "g gram 克",
        "kg kilogram 千克 公斤",
        "t ton tonne",
        "lb lbs pound",
        "oz ounce",
        "s sec second 秒",
        "min minute mins 分钟",
        "h hr hour hrs 小时",
        "day 天",
        "week",
        "month",
        "year yr",
        "ml mL milliliter millilitre",
        "L l liter litre",
        "gallon gal",
        "quart",
        "pint",
        "dollar usd buck ¤",
        "cent ¢",
        "euro eur €",
        "£ gbp",
        "¥ yuan rmb cny jpy yen 元",
        "₹ rupee rs inr",
        "% percent percentage",
        "° degree deg 度",
        "rad radian",
        "N newton",
        "J joule",
        "W watt",
        "kW kilowatt",
        "V volt",
        "A amp ampere",
        "Hz hertz",
        "K kelvin",
        "C celsius",
        "F fahrenheit",
        "Pa pascal",
        "mph",
        "kmh kph",
        "am",
        "pm",
    )
    for alias in _words(names)
}
SINGLE_LETTERS = frozenset("mgshLlNJWVAKCFt")  # units of one letter; any other letter is a variable

ONES = _words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
    """
)
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
SMALL = {word: i for i, word in enumerate(ONES)} | {word: 10 * i for i, word in enumerate(TENS, start=2)}
LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}

MONTHS = _words("january february march april may june july august september october november december")
WEEKDAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
SHORT_NAMES = {name[:3]: name for name in (*MONTHS, *WEEKDAYS)} | {
    "sept": "september",
    "tues": "tuesday",
    "thurs": "thursday",
}
MONTH = {alias: i for i, name in enumerate(MONTHS, start=1) for alias in (name, name[:3])} | {"sept": 9}

GREEK = _words(
    """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau upsilon
    phi chi psi omega
    """
)
LATEX_LAYOUT = _words(  # LaTeX commands that only change how a formula looks
    """
    left right middle big Big bigl bigr Bigl Bigr bigg Bigg biggl biggr Biggl Biggr displaystyle textstyle limits rm bf
    it sf tt normalsize large Large boldmath newline noindent
    """
)
