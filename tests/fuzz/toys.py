"""Readers of known faults, on which the harness is tested.

All read a file that begins with the SHA-256 of the rest.
"""

import hashlib
import os
import pathlib
import time

import numpy as np

from fuzz import mutations
from fuzz.mutations import Rng
from fuzz.target import NOTHING, Damage, Found, Refused, Target, digest


class Toy(Target):
  """Checks the file, and meets damage in a way of its own."""

  parts = ("content",)

  def __init__(self, name: str, meet):
    self.name = name
    self._meet = meet

  def make(self, folder: pathlib.Path) -> str:
    content = bytes(range(200))
    (folder / "a").write_bytes(hashlib.sha256(content).digest() + content)
    return "a"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    data = (folder / entry).read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
      self._meet()
    return Found({"content": digest(data[32:])})

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    data, what = (folder / entry).read_bytes(), "nothing"
    if rng.random() < 0.8:
      data, what = mutations.damage_bytes(rng, data)
    (folder / entry).write_bytes(data)
    guarded = NOTHING if self.name == "unguarded" else self.all
    return Damage(what, entry, guarded)


def _refuse(text="is damaged"):
  from data_prep.errors import UserError

  raise UserError(text)


def _ring():
  raise Refused("error: \x07\n")


def _warn():
  from absl import logging

  logging.warning("the checksum is wrong")


def _allocate():
  np.ones(96 << 20, np.uint8)
  _refuse()


def _hoard():
  kept = np.ones(96 << 20, np.uint8)
  time.sleep(600)
  del kept


TARGETS = (
  Toy("perfect", _refuse),
  Toy("careless", lambda: None),
  Toy("unguarded", lambda: None),
  Toy("warns", _warn),
  Toy("raises", lambda: {}["a"]),
  Toy("exits", lambda: os._exit(0)),
  Toy("aborts", os.abort),
  Toy("sleeps", lambda: time.sleep(600)),
  Toy("allocates", _allocate),
  Toy("hoards", _hoard),
  Toy("rings", _ring),
  Toy("says nothing", lambda: _refuse("")),
)
