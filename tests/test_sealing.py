"""Sealed values and the text of a key file."""

from __future__ import annotations

import pytest

from cmdsvc.errors import InternalError
from cmdsvc.sealing import OVERHEAD, BrokenSealError, Keys, Sealer, parse, render

PLACE = ("env", "ann", "hello", "TOKEN")
VALUES = [b"", b"x", b"\0\n\r=\xff", bytes(range(256)) * 256]


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys.new()


@pytest.fixture(scope="module")
def sealer(keys: Keys) -> Sealer:
    return Sealer(keys)


class TestSealed:
    @pytest.mark.parametrize("value", VALUES, ids=len)
    def test_it_opens_where_it_belongs(self, value: bytes, sealer: Sealer):
        sealed = sealer.seal(value, *PLACE)
        assert sealer.open(sealed, *PLACE) == value
        assert len(sealed) == len(value) + OVERHEAD
        assert len(value) < 8 or value not in sealed

    def test_the_same_value_never_looks_the_same(self, sealer: Sealer):
        assert len({sealer.seal(b"x", *PLACE) for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        "place",
        [
            ("env", "bob", "hello", "TOKEN"),
            ("env", "ann", "bye", "TOKEN"),
            ("env", "ann", "hello", "OTHER"),
            ("hook", "ann", "hello", "TOKEN"),
            ("env", "ann", "hello"),
            ("env", "ann/hello", "TOKEN"),
            ("env", "ann", "helloTOKEN", ""),
            ("env", "ann", 'hello", "TOKEN'),
            (),
        ],
    )
    def test_elsewhere_it_does_not_open(self, place: tuple[str, ...], sealer: Sealer):
        sealed = sealer.seal(b"secret", *PLACE)
        with pytest.raises(BrokenSealError) as caught:
            sealer.open(sealed, *place)
        assert "secret" not in str(caught.value)
        assert isinstance(caught.value, InternalError)

    def test_changed_anywhere_it_does_not_open(self, sealer: Sealer):
        sealed = sealer.seal(b"secret", *PLACE)
        for at in range(len(sealed)):
            changed = bytearray(sealed)
            changed[at] ^= 1
            with pytest.raises(BrokenSealError):
                sealer.open(bytes(changed), *PLACE)

    def test_cut_off_it_does_not_open(self, sealer: Sealer):
        sealed = sealer.seal(b"secret", *PLACE)
        for cut in [*(sealed[:length] for length in range(len(sealed))), sealed + b"\0"]:
            with pytest.raises(BrokenSealError):
                sealer.open(cut, *PLACE)

    def test_another_key_does_not_open_it_and_is_told_apart(self, sealer: Sealer):
        sealed = sealer.seal(b"secret", *PLACE)
        another = Sealer(Keys.new())
        assert not another.knows(sealed)
        assert not another.is_current(sealed)
        with pytest.raises(BrokenSealError, match="a key that is not here"):
            another.open(sealed, *PLACE)


class TestRotation:
    def test_the_previous_key_opens_and_no_longer_seals(self, keys: Keys, sealer: Sealer):
        old = sealer.seal(b"secret", *PLACE)
        rotated = Sealer(keys.rotated())
        assert rotated.knows(old)
        assert not rotated.is_current(old)
        assert rotated.open(old, *PLACE) == b"secret"
        new = rotated.seal(b"secret", *PLACE)
        assert rotated.is_current(new)
        assert not sealer.knows(new)

    def test_settled_it_opens_only_what_is_new(self, keys: Keys, sealer: Sealer):
        rotated = keys.rotated()
        settled = Sealer(rotated.settled())
        assert settled.open(Sealer(rotated).seal(b"x", *PLACE), *PLACE) == b"x"
        assert not settled.knows(sealer.seal(b"x", *PLACE))

    def test_the_hash_stays(self, keys: Keys, sealer: Sealer):
        assert Sealer(keys.rotated().settled()).hash(b"x") == sealer.hash(b"x")
        assert Sealer(Keys.new()).hash(b"x") != sealer.hash(b"x") != sealer.hash(b"y")


class TestFile:
    def test_it_is_read_as_it_was_written(self, keys: Keys):
        for written in (keys, keys.rotated(), keys.rotated().settled()):
            assert parse(render(written)) == written

    def test_nothing_shows_a_key(self, keys: Keys):
        assert repr(keys) == "Keys()"
        assert keys.id in render(keys)
        assert keys.current.hex() not in repr(Sealer(keys))

    def damaged(self, keys: Keys) -> list[str]:
        text = render(keys.rotated())
        comment, *lines = [text[: text.index("seal ")], *text[text.index("seal ") :].splitlines()]
        seal, previous, hashing = lines
        assert comment.startswith("#")
        return [
            "",
            "\n",
            comment,
            seal,
            hashing,
            f"{seal}\n{hashing}\n{hashing}",
            f"{seal}\n{previous}\n{seal}\n{hashing}",
            f"{seal[:-8]}\n{hashing}",
            f"{seal}x\n{hashing}",
            f"{seal.replace('seal ', 'seal 0')}\n{hashing}",
            f"open{seal[4:]}\n{hashing}",
            f"{seal}\n{hashing}\nmore",
            f"{seal}\n{hashing} more",
            "-----BEGIN PRIVATE KEY-----",
            f"seal 00000000 AAAA\n{hashing}",
        ]

    @pytest.mark.parametrize("which", range(15))
    def test_what_is_damaged_is_refused_and_not_repeated(self, which: int, keys: Keys):
        with pytest.raises(ValueError) as caught:
            parse(self.damaged(keys)[which])
        assert len(str(caught.value)) < 40
