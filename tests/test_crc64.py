"""The checksum in Python is the one in C."""

from __future__ import annotations

import subprocess
import sys

import anycrc  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbipc.messages.crc64 import crc64

in_c = anycrc.Model("CRC64-REDIS").calc


def test_the_check_value() -> None:
    assert crc64(b"123456789") == 0xE9C6D914C4B8D9CA


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_it_agrees_with_the_one_in_c_in_one_piece_and_in_two(first: bytes, second: bytes) -> None:
    assert crc64(first) == in_c(first)
    assert crc64(second, crc64(first)) == in_c(first + second)
    assert crc64(memoryview(first)) == in_c(first)


#: what the interpreter says that may not load the one in C, and the one where it is not installed
REFUSALS = {"ImportError": "it is taken", "ModuleNotFoundError": "that is an error"}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_it_stands_in_where_the_one_in_c_cannot_be_loaded_but_not_where_it_is_missing(refusal: str) -> None:
    program = f"""
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name == "anycrc":
            raise {refusal}("no")
sys.meta_path.insert(0, Refusing())
from bbipc.messages import Decoder, Message, encode
assert Decoder().feed(encode(Message.string("hello"))) == [Message.string("hello")]
assert "bbipc.messages.crc64" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (done.returncode == 0) == (refusal == "ImportError"), done.stderr
    assert refusal == "ImportError" or done.stderr.endswith("ModuleNotFoundError: no\n")
