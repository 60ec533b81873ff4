"""Lists of words: those that change a number, units, numbers in words, months and days of the week."""

from fractions import Fraction


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# words that deny, make another number of the number beside them, or open a range
CHANGES_NUMBER = frozenset(
    _words(
        """
        not no non nor never neither none cannot except but wrong incorrect false untrue ain mistaken invalid unlike
        instead anything nothing rather otherwise or vs versus to till if unless either maybe perhaps possibly probably
        likely unlikely almost nearly near hardly barely scarcely least most too impossible unsure doubtful excluded
        excluding rejected fails failed bogus
        multiplied divided plus minus factorial root roots log ln lg sqrt sin cos tan cot sec csc exp mod
        modulo binary octal hexadecimal hex pi inverse reciprocal opposite
        half halves third thirds fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth
        tenths hundredth hundredths thousandth thousandths twice double triple thrice quadruple
        k mil bn hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens
        zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
        eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
        """
    )
)
BLOCKED_BEHIND = (CHANGES_NUMBER - {"sec"}) | frozenset(
    _words(
        "and minimum maximum max base gross score short shy past tens th st nd rd ths off overdue"
        " doubled halved tripled"
    )
)
BLOCKED_BEFORE = CHANGES_NUMBER | frozenset(
    _words(
        """
        times than over above beyond within without between from until up through exceeding exceed exceeds added
        power base after before following preceding past squared cubed error
        """
    )
)
COMPARES = frozenset(_words("fewer less greater smaller larger higher lower bigger"))

# words that make a number negative, whatever the gold answer is
NEGATIVE = frozenset(
    _words(
        "loss decrease deficit decline drop reduction debt below under minus shortfall depreciation negative"
        " behind down bc bce"
    )
)
# words of a direction that a number without them has not; they count where the gold answer names a unit
DIRECTIONS = NEGATIVE | frozenset(
    _words(
        """
        ago south west earlier early late later hence down downward downwards backward backwards behind
        fewer less before after prior past bc bce underground underwater counterclockwise
        anticlockwise withdrawn overdrawn owed lost
        前 后 以前 以后 之前 之后
        """
    )
)
NEGATIVE_STEM = (
    r"\b(?:los[est]|decreas|deficit|declin|drop|reduc|debt|fall|fell|shrink|shrank|shrunk|owe|subtract|withdr|depreciat"
    r"|negativ|opposit|less|below|under|diminish|short)"
)

# words before a number that leave it as it is
NEUTRAL = frozenset(
    _words(
        """
        a an the of in is are was were be been it that this these those there here so thus therefore hence then finally
        we i you he she they him them his her hers their its our my your us me who which what how many much
        will would must should can could do does did also both all each every now still just only simply exactly
        precisely total altogether together overall amount number count quantity value answer result solution final
        correct right exact for at on by with as our equal equals equaling equalling totals totaling left
        remaining cost costs price length width height area volume distance speed age weight perimeter
        get gets got give gives find see know have has had being comes
        ways way
        """
    )
)
# verbs between the owner of a number, which may be any word, and the number
STATING = frozenset(
    _words(
        """
        is are was were be equals equal has have had makes make made gets get got gives give gave needs need needed
        costs cost takes take took pays pay paid spends spend spent earns earn earned buys buy bought sells sell sold
        eats eat ate reads read saves save saved collects collect collected uses use used receives receive received
        wins win won scores scored runs run ran walks walk walked drives drive drove travels travel traveled travelled
        weighs weigh weighed measures measure measured contains contain contained holds hold held becomes become became
        yields yield means leaves leave totals total
        drinks drink drank starts started finds found sends sent bakes baked works worked plants planted picks picked
        draws drew throws threw writes wrote climbs climbed bikes biked donates donated delivers delivered grows grew
        carries carried brings brought sleeps slept
        """
    )
)
ERAS = frozenset(("bc", "bce"))  # they change a year, also where the answer states no unit
# words behind a number that name neither what is counted nor in which direction
FILLER = frozenset(
    _words(
        """
        a an the of in on at by for with from as is are was were be been being it that this these those there which who
        whom whose he she they we i you his her their its our my your them us him me do does did has have had will would
        can could should may must so thus therefore hence then also total totals altogether all overall together exactly
        just only now still each every answer result solution final than because since
        """
    )
)
# words behind a number that describe it without a unit
QUALIFIERS = frozenset(
    _words("left more extra old tall long wide high deep away apart remaining over again even odd additional further")
)

UNITS = {
    alias: _words(names)[0]  # the first name of a unit stands for all of them
    for names in (
        "mm millimeter millimetre 毫米",
        "cm centimeter centimetre 厘米",
        "dm decimeter decimetre 分米",
        "m meter metre 米",
        "km kilometer kilometre 千米 公里",
        "nm nanometer nanometre",
        "μm micrometer micrometre micron",
        "in inch inches",
        "ft foot feet",
        "yd yard",
        "mi mile",
        "mg milligram",
        "Mg megagram",
        "Mm megameter megametre",
        "g gram 克",
        "kg kilogram 千克 公斤",
        "t ton tonne 吨",
        "lb lbs",
        "pound",
        "oz ounce",
        "ms millisecond",
        "s sec second 秒",
        "min minute mins 分钟",
        "h hr hour hrs 小时",
        "day 天",
        "week 周",
        "month",
        "year yr 年",
        "decade",
        "century",
        "ml mL milliliter millilitre 毫升",
        "L l liter litre 升",
        "gallon gal",
        "quart",
        "pint",
        "cup",
        "tablespoon tbsp",
        "teaspoon tsp",
        "acre",
        "hectare ha",
        "unit",
        "dollar buck ¤",
        "usd",
        "cad",
        "aud",
        "cent ¢",
        "euro eur €",
        "£ gbp",
        "penny pennies",
        "pence",
        "¥",
        "yuan rmb cny 元",
        "角",
        "yen jpy",
        "₹ rupee rs inr",
        "₽ ruble rouble",
        "₩ won",
        "₪ shekel",
        "peso",
        "franc",
        "% percent percentage",
        "percentagepoint",
        "° degree deg 度",
        "rad radian",
        "N newton",
        "J joule",
        "kJ kilojoule",
        "cal calorie",
        "kcal kilocalorie",
        "mJ millijoule",
        "MJ megajoule",
        "W watt",
        "mW milliwatt",
        "kW kilowatt",
        "MW megawatt",
        "mV millivolt",
        "V volt",
        "mA milliamp milliampere",
        "A amp ampere",
        "Ω ohm",
        "Hz hertz",
        "kHz kilohertz",
        "MHz megahertz",
        "GHz gigahertz",
        "mol mole",
        "bit",
        "byte",
        "KB kB kilobyte",
        "kb kbit kilobit",
        "MB megabyte",
        "Mb Mbit megabit",
        "GB gigabyte",
        "TB terabyte",
        "K kelvin",
        "C celsius centigrade",
        "F fahrenheit",
        "Pa pascal",
        "kPa kilopascal",
        "mPa millipascal",
        "MPa megapascal",
        "atm atmosphere",
        "am",
        "pm",
    )
    for alias in _words(names)
}
COMPOUND_UNITS = {  # names of products of units
    "mph": (("mi", 1), ("h", -1)),
    "kph": (("km", 1), ("h", -1)),
    "kmh": (("km", 1), ("h", -1)),
    "kmph": (("km", 1), ("h", -1)),
    "mps": (("m", 1), ("s", -1)),
    "fps": (("ft", 1), ("s", -1)),
    "mpg": (("mi", 1), ("gallon", -1)),
    "rpm": (("revolution", 1), ("min", -1)),
    "kwh": (("kW", 1), ("h", 1)),
    "wh": (("W", 1), ("h", 1)),
    "cc": (("cm", 3),),
    "sqft": (("ft", 2),),
    "sqm": (("m", 2),),
    "sqmi": (("mi", 2),),
}
# units that stand for one of several others
UNCLEAR_UNITS = {
    "dollar": frozenset(("usd", "cad", "aud")),
    "pound": frozenset(("lb", "£")),
    "¥": frozenset(("yuan", "yen")),
    "penny": frozenset(("cent", "pence")),
}
# units of the same dimension, with their size in one of them
SIZES: dict[str, dict[str, int | str]] = {
    "time": {"ms": "0.001", "s": 1, "min": 60, "h": 3600, "day": 86400, "week": 604800},
    "calendar": {"month": 1, "year": 12, "decade": 120, "century": 1200},
    "metric length": {"mm": 1, "cm": 10, "dm": 100, "m": 1000, "km": 10**6},
    "length": {"in": 1, "ft": 12, "yd": 36, "mi": 63360},
    "metric mass": {"mg": 1, "g": 1000, "kg": 10**6, "t": 10**9},
    "mass": {"oz": 1, "lb": 16, "pound": 16},
    "metric volume": {"ml": 1, "L": 1000},
    "volume": {"teaspoon": 1, "tablespoon": 3, "cup": 48, "pint": 96, "quart": 192, "gallon": 768},
    "money": {"cent": 1, "dollar": 100, "usd": 100},
    "yuan": {"角": 1, "yuan": 10},
}
CONVERSIONS = {name: (dimension, Fraction(size)) for dimension, sizes in SIZES.items() for name, size in sizes.items()}
SINGLE_LETTERS = frozenset("mgshLlNJWVAKCFtΩ")  # units of one letter; any other letter is a variable

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
