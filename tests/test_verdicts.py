"""Verdicts on answers of every kind: set by hand, those of the shared file, and gold answers against themselves."""

import json
import re
from itertools import combinations, pairwise, permutations

import pytest

from rlsparse.components.reward import MathVerify, Verifier
from rlsparse.components.reward.answer import ANSWER_FORMATS
from rlsparse.components.reward.values.vocabulary import ONES, TENS, UNCLEAR_UNITS, UNITS
from tests.verdict_rows import BESIDE_RIGHT, BESIDE_WRONG, LAST_NUMBER_RIGHT, LAST_NUMBER_WRONG, RIGHT, WRONG

GOLD_COLUMNS = {
    "math500": "answer",
    "amc23": "answer",
    "aime24": "answer",
    "minerva_math": "solution",
    "olympiadbench": "final_answer",
    "gaokao2023en": "answer",
    "cmath": "answer",
    "cn_middle_school": "answer",
}
TRAINING_COLUMNS = {"asdiv": "answer", "mawps": "target", "svamp": "Answer", "gsm8k": "answer"}
MOST_REFUSED = 0.05  # of the right answers


@pytest.fixture(scope="module")
def process():
    with MathVerify() as one:
        yield one


@pytest.mark.parametrize("kind", RIGHT)
def test_right_answer_is_right(kind, process):
    verifier = Verifier("boxed", 20, process)
    assert [row for row in RIGHT[kind] if not verifier.judge(*row).correct] == []


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_answer_is_wrong(kind, process):
    verifier = Verifier("boxed", 20, process)
    assert [row for row in WRONG[kind] if verifier.judge(*row).correct] == []


def test_every_kind_has_ten_right_and_ten_wrong_rows():
    assert set(RIGHT) == set(WRONG)
    assert min(len(rows) for rows in (*RIGHT.values(), *WRONG.values())) >= 10


def test_last_number_is_read_whole(process):
    verifier = Verifier("last_number", 20, process)
    assert [row for row in LAST_NUMBER_RIGHT if not verifier.score(*row).correct] == []
    assert [row for row in LAST_NUMBER_WRONG if verifier.score(*row).correct] == []


@pytest.mark.parametrize("answer_format", BESIDE_RIGHT)
def test_answer_is_read_with_what_belongs_to_it_in_its_formula(answer_format, process):
    verifier = Verifier(answer_format, 20, process)
    assert [row for row in BESIDE_RIGHT[answer_format] if not verifier.score(*row).correct] == []
    assert [row for row in BESIDE_WRONG[answer_format] if verifier.score(*row).correct] == []


@pytest.mark.parametrize("answer_format", ANSWER_FORMATS)
def test_judged_rows_have_no_wrong_answer_called_right_and_few_right_ones_refused(answer_format, shared_data, process):
    lines = (shared_data / "verdicts" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["format"] == answer_format and row["certain"]]
    verifier = Verifier(answer_format, 20, process)
    verdicts = [(row["expected"], verifier.score(row["completion"], row["gold"]).correct) for row in rows]
    right = sum(expected for expected, _ in verdicts)
    agree = sum(expected == found for expected, found in verdicts)
    accepted, refused = verdicts.count((False, True)), verdicts.count((True, False))
    print(f"{answer_format}: {agree} agree, {accepted} wrong ones called right, {refused} right ones called wrong")
    assert right >= 40
    assert accepted == 0
    assert refused <= MOST_REFUSED * right


# The tests of contrasts judge pairs of answers that differ in one thing; "boxed" only names a format.


def accepted(pairs):
    """Return the pairs of answers that are called equal, in either order."""
    verifier = Verifier("boxed", 20)
    both = [pair for one, other in pairs for pair in ((one, other), (other, one))]
    return [pair for pair in both if verifier.judge(*pair).correct]


def may_be_the_same(one, other):
    return other in UNCLEAR_UNITS.get(one, ()) or one in UNCLEAR_UNITS.get(other, ())


def test_unit_differs_from_every_other_unit():
    names = [name for name in sorted(set(UNITS.values())) if name not in ("am", "pm", "%")]
    pairs = [pair for pair in combinations(names, 2) if not may_be_the_same(*pair)]
    assert len(pairs) > 3000
    assert accepted((f"5 {one}", f"5 {other}") for one, other in pairs) == []


def test_unit_is_the_same_under_each_of_its_names():
    names = [name for name in UNITS if len(name) > 1 and name != "centigrade"]
    pairs = [(f"5 {one}", f"5 {other}") for one, other in pairwise(names) if UNITS[one] == UNITS[other]]
    assert len(pairs) > 40
    assert len(accepted(pairs)) == 2 * len(pairs)


def test_unit_differs_from_its_powers_and_from_rates():
    units = ("cm", "km", "inches", "feet", "miles", "seconds", "dollars", "apples")
    for unit in units:
        forms = [unit, *(f"{unit}^{n}" for n in (2, 3))] if unit != "apples" else [unit]
        forms += [f"{unit} per {below}" for below in ("hour", "day", "box", "kg") if below != unit]
        forms += [f"{unit}/min", f"kg/{unit}", f"per {unit}"]
        assert accepted((f"5 {one}", f"5 {other}") for one, other in combinations(forms, 2)) == []


def test_currency_differs_from_every_other_currency():
    currencies = [
        *(r"\$5", "€5", "£5", "₹5", "₽5", "₩5", "₪5", "5¢", "5 yuan", "5 yen", "5 pesos", "5 francs", "5%", "5 apples"),
        *("5 pence", "5 km"),
    ]
    assert accepted(combinations(currencies, 2)) == []
    assert accepted(permutations(("5 USD", "5 CAD", "5 AUD", "5 EUR", "5 GBP", "5 INR", "5 CNY", "5 JPY"), 2)) == []


def test_word_of_direction_differs_from_its_opposite():
    opposites = (
        *("north south", "east west", "left right", "up down", "forward backward", "clockwise counterclockwise"),
        *("increase decrease", "gain loss", "profit loss", "earlier later", "ago later", "early late", "above below"),
        *(
            "older younger",
            "taller shorter",
            "more fewer",
            "more less",
            "ahead behind",
            "won lost",
            "deposit withdrawal",
        ),
        *("boys girls", "red green", "cats dogs", "before after", "forwards backwards", "surplus deficit", "BC AD"),
    )
    numbers = ("10", "10 steps", "10%", "10 degrees", "$10", "10 years")
    pairs = [[f"{number} {word}" for word in words.split()] for words in opposites for number in numbers]
    assert accepted(pairs) == []


def test_number_in_words_differs_from_its_neighbours():
    words = [*ONES, *(f"{ten}{one}" for ten in TENS for one in ("", *(f"-{digit}" for digit in ONES[1:10])))]
    assert len(words) == 100
    words += ["one hundred", *(f"one hundred and {word}" for word in words[1:])]
    verifier = Verifier("boxed", 20)
    assert [word for n, word in enumerate(words) if not verifier.judge(word, str(n)).correct] == []
    assert accepted((word, str(n + step)) for n, word in enumerate(words) for step in (-10, -1, 1, 10)) == []


def test_expression_differs_from_its_negative_and_its_neighbours():
    expressions = (
        *(
            "x",
            "x^2",
            "|x|",
            r"\sqrt{x}",
            r"\sin x",
            r"\ln x",
            "e^x",
            r"\frac{1}{d}",
            "n!",
            "x y",
            "h^3",
            "2^x",
        ),
        *(r"\sqrt{2}", r"\pi", "e", "i", r"\frac{3}{4}", "7", "0.5", r"\log_2 5", r"\sqrt[3]{5}", "10^{30}", "e^{25}"),
    )
    for one in expressions:
        others = [
            f"-{one}",
            f"{one}+1",
            f"{one}-10^{{-30}}",
            f"2({one})",
            f"({one})^3",
            f"\\frac{{1}}{{{one}}}",
            f"{one}+i",
        ]
        assert accepted((one, other) for other in others) == []


def test_sign_of_every_variable_counts():
    letters = "abcdfghjkmnpqrstuvwxyz"
    assert accepted((f"|{one}|", one) for one in letters) == []
    assert accepted((f"\\frac{{|{one}|}}{{{one}}}", sign) for one in letters for sign in ("1", "-1")) == []
    assert accepted((f"\\sqrt{{{one}^2}}", sign + one) for one in letters for sign in ("", "-")) == []
    assert accepted((f"|{one}-{n}|", f"{n}-{one}") for one in letters for n in (1, 5, 100)) == []
    assert accepted((f"|{one}+{n}|", f"{n}+{one}") for one in letters for n in (1, 5, 100)) == []
    assert accepted((f"|{one}{two}|", one + two) for one, two in combinations(letters, 2)) == []


def test_irrational_number_differs_from_one_that_is_hardly_larger():
    numbers = (r"\pi", r"\sqrt{2}", "e^{25}", r"10^{300}\pi", r"\ln 2", r"\sqrt[3]{5}", r"e^{-9}")
    assert accepted((f"{one}+10^{{-{n}}}", one) for one in numbers for n in (5, 12, 50, 200, 400)) == []


def test_decimal_is_compared_with_another_decimal_in_its_last_digit():
    texts = ["0.1234567891", "3.14159265358979", "12345678901234567890.5", "1.000000000001", "0.3333333333333"]
    changed = [text[:-1] + str((int(text[-1]) + step) % 10) for text in texts for step in (1, 9)]
    assert accepted(zip([text for text in texts for _ in range(2)], changed, strict=True)) == []
    rounded = [("0.3333333333", "1/3"), ("0.6666666667", "2/3"), ("0.6666666666", "2/3"), ("1.414213562", r"\sqrt{2}")]
    assert len(accepted(rounded)) == 8
    assert accepted([("0.3333333334", "1/3"), ("0.6666666668", "2/3"), ("1.414213564", r"\sqrt{2}")]) == []


def test_condition_with_and_differs_from_the_one_with_or():
    for left in ("x > 1", "x < -2", "x = 1", "y > 1", "x^2 > y", r"x \geq 1"):
        for right in ("x < 5", "y = 3", "y < x", r"z \neq 0"):
            assert accepted([(f"{left} and {right}", f"{left} or {right}")]) == []


def last_box(solution):
    return Verifier("boxed", 1).read(solution)


def golds(shared_data, name):
    """Return the distinct gold answers of a file as they stand in it, without those that are empty."""
    files = sorted((shared_data / name).glob("*.jsonl")) or [shared_data / "benchmarks" / f"{name}.jsonl"]
    column = {**GOLD_COLUMNS, **TRAINING_COLUMNS}[name]
    found = []
    for row in (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()):
        gold = row[column][0] if name == "olympiadbench" else str(row[column])
        gold = last_box(gold) if name == "minerva_math" else gold.split("####")[-1].strip()
        found.append(gold.split(" (")[0] if name == "asdiv" else gold)
    return [gold for gold in dict.fromkeys(found) if gold]


def rewritten(gold):
    r"""Yield a gold answer in other notation: as a formula, with \dfrac, with \left and \right, with spaces."""
    yield gold
    yield f"${gold}$"
    yield f"{gold}."
    yield gold.replace(r"\frac", r"\dfrac")
    if r"\left" in gold:
        yield gold.replace(r"\left", "").replace(r"\right", "")
    else:
        yield re.sub(r"(?<![A-Za-z])\(([^()]*)\)", r"\\left(\1\\right)", gold)
    if r"\text" not in gold:
        yield re.sub(r"(?<=[^\s\w\\])(?=[^\s\\!,.0-9])", " ", gold)
    if "$" not in gold:
        yield f"\n\\[ {gold} \\]\n"


@pytest.mark.parametrize("name", [*GOLD_COLUMNS, *TRAINING_COLUMNS])
def test_every_gold_answer_is_equal_to_itself_in_other_notation(name, shared_data, process):
    verifier = Verifier("boxed", 20, process)
    rows = [(text, gold) for gold in golds(shared_data, name) for text in rewritten(gold)]
    assert len(rows) > 100
    assert [row for row in rows if not verifier.score(rf"so \boxed{{{row[0]}}}", row[1]).correct] == []
