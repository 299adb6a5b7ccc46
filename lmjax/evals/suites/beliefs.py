"""Stories about what others believe: generated ones, and published sets as pairs of items.

A pair (or a set of more items) shares a story up to what an agent perceives, and the right answers of its items differ,
so that who always answers alike gets none right. Wimmer and Perner (1983); Perner and Wimmer (1985) for second order.
"""

import csv
import io
import random
from collections.abc import Iterator
from typing import Any

PEOPLE = ("Alice", "Bob", "Carla", "David", "Emma", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kofi", "Lena")
PLACES = {
  "kitchen": ("cupboard", "drawer", "fridge", "oven"),
  "office": ("cabinet", "desk", "safe", "shelf"),
  "garage": ("toolbox", "trunk", "crate", "locker"),
  "bedroom": ("wardrobe", "chest", "basket", "suitcase"),
}
OBJECTS = ("key", "ball", "letter", "coin", "watch", "photo", "cup", "scarf", "map", "ring")
ORDERS = (1, 2, 3)

Doc = dict[str, Any]


def stories(pairs: int = 150, seed: int = 0) -> list[Doc]:
  """Returns the shared folder of Alice and Bob, and pairs of generated stories, as many of each order."""
  rng = random.Random(seed)
  docs = shared_folder()
  for number in range(pairs):
    docs += pair(rng, ORDERS[number % len(ORDERS)], f"story {number}")
  return docs


def shared_folder() -> list[Doc]:
  """Returns the false-belief test of a shared folder: what each of two people thinks, if one was away, and if not."""
  photos, temporary = "/shared_folder/photos", "/shared_folder/tmp"
  docs = []
  for belief, perceived in (
    ("false", "Alice is away and does not notice it."),
    ("true", "Alice sees it and agrees."),
  ):
    story = (
      f"Alice and Bob have a shared folder. Alice puts a file called photo.png into {photos}. Then Bob moves photo.png "
      f"from {photos} to {temporary}. {perceived}"
    )
    for person in ("Alice", "Bob"):
      answer = photos if (person, belief) == ("Alice", "false") else temporary
      question = f"In which folder does {person} think that photo.png is now?"
      docs.append(_doc(story, question, [photos, temporary], answer, "shared folder", belief, 1))
  return docs


def pair(rng: random.Random, order: int, name: str) -> list[Doc]:
  """Returns a story in which a belief of an order is false, and its twin in which it is true.

  order: 1, what A thinks; 2, what B thinks that A thinks; 3, what A thinks that B thinks that A thinks.
  """
  a, b = rng.sample(PEOPLE, 2)
  place = rng.choice(sorted(PLACES))
  first, second = rng.sample(PLACES[place], 2)
  thing = rng.choice(OBJECTS)
  opening = f"{a} and {b} are in the {place}. {a} puts the {thing} into the {first}. "
  leaves, moves = f"{a} leaves the {place}. ", f"{b} moves the {thing} from the {first} to the {second}. "
  watches = f"Through the window, {a} watches how {b} moves the {thing}. "
  versions = {
    1: (leaves + moves + f"{a} cannot see this.", leaves + moves + watches.rstrip()),
    2: (
      leaves + moves + watches + f"{b} does not know that {a} is watching.",
      leaves + moves + watches + f"{b} knows that {a} is watching.",
    ),
    3: (
      leaves + moves + watches + f"{b} knows that {a} is watching, but {a} believes that {b} does not know it.",
      leaves + moves + watches + f"{b} knows that {a} is watching, and {a} knows that {b} knows it.",
    ),
  }[order]
  thinks = {
    1: f"Where does {a} think that the {thing} is?",
    2: f"Where does {b} think that {a} thinks that the {thing} is?",
    3: f"Where does {a} think that {b} thinks that {a} thinks that the {thing} is?",
  }[order]
  choices = [f"in the {first}", f"in the {second}"]
  rng.shuffle(choices)
  return [
    _doc(opening + text, thinks, choices, f"in the {where}", name, belief, order)
    for text, where, belief in zip(versions, (first, second), ("false", "true"), strict=True)
  ]


def published(name: str, text: str) -> list[Doc]:
  """Returns the items of kosinski.csv, bigtom.csv or dodell-feder.csv, by the name of the file.

  Kosinski (2023), arXiv:2302.02083: what somebody thinks is in a container with a wrong label, and what is in it.
  BigToM (Gandhi et al., 2023, arXiv:2306.15448): what an agent believes who has perceived a change, or has not.
  Dodell-Feder et al. (2011), doi:10.1016/j.neuroimage.2010.12.040: questions with yes or no, which have no twins.
  """
  rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=";"))
  if "dodell" in name:
    return [_doc(s, q, ["yes", "no"], right.strip(), f"story {i}", "any", 1) for i, (s, q, right, _) in enumerate(rows)]
  return list(_kosinski(rows) if "kosinski" in name else _bigtom(rows))


def _kosinski(rows: list[list[str]]) -> Iterator[Doc]:
  for number, (story, question, believed, real) in enumerate(rows):
    container = question.rsplit(" is ", 1)[-1].rstrip("?")
    for belief, asked, answer in (("false", question, believed), ("true", f"What is really {container}?", real)):
      yield _doc(story, asked, [believed, real], answer, f"label {number}", belief, 1)


def _bigtom(rows: list[list[str]]) -> Iterator[Doc]:
  for number, row in enumerate(rows):
    story, sees, misses, question, aware, unaware = (row[i] for i in (0, 1, 2, 5, 8, 11))
    for belief, perceived, answer in (("false", misses, unaware), ("true", sees, aware)):
      yield _doc(f"{story} {perceived}", question, [unaware, aware], answer, f"story {number}", belief, 1)


def _doc(story: str, question: str, choices: list[str], answer: str, pair: str, belief: str, order: int) -> Doc:
  return {
    "story": story, "question": question, "choices": choices, "gold": choices.index(answer), "pair": pair,
    "belief": belief, "order": order,
  }  # fmt: skip
