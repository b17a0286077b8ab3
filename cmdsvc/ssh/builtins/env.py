"""`:env NAME`: what a command's owner puts into its environment."""

from __future__ import annotations

from cmdsvc.errors import UsageError
from cmdsvc.service.environment import VALUE_MAX
from cmdsvc.ssh.verbs import Builtin, Call, Parser

STDIN = "-"


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("what", nargs="?", choices=["ls", "set", "unset"], default="ls")
    parser.add_argument(
        "words", nargs="*", metavar="K=V", help="K=- reads the value from stdin; unset takes K"
    )
    parser.add_argument("--show", action="store_true", help="the values too; exact with -j")
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


async def _run(call: Call) -> int:
    env, options = call.services.env, call.options
    if bool(options.words) == (options.what == "ls"):
        raise UsageError("what is meant?", "NAME [ls [--show] | set K=V... | unset K...]")
    match options.what:
        case "set":
            values = await _values(call, _pairs(options.words))
            await env.set(call.identity, options.name, values)
            await call.err(f"set {', '.join(values)}\n")
        case "unset":
            if any("=" in word for word in options.words):
                raise UsageError("unset takes names alone", "leave out = and what follows it")
            gone = await env.unset(call.identity, options.name, options.words)
            await call.err(f"unset {', '.join(gone)}\n" if gone else "nothing of that was set\n")
        case _ if options.show:
            shown = await env.values(call.identity, options.name)
            await call.table(
                ("name", "value"),
                [(name, _shown(value, exact=options.json)) for name, value in shown.items()],
            )
        case _:
            names = await env.names(call.identity, options.name)
            await call.table(("name",), [(name,) for name in names])
    return 0


def _pairs(words: list[str]) -> dict[str, str]:
    """What is to be set. Errors say which word is wrong and repeat none: it may be a secret."""
    pairs: dict[str, str] = {}
    for number, word in enumerate(words, 1):
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UsageError(f"word {number} after set is not K=V", "mind the quotes")
        if name in pairs:
            raise UsageError(f"word {number} after set has a name that was there", "give one value")
        pairs[name] = value
    if list(pairs.values()).count(STDIN) > 1:
        raise UsageError("stdin holds one value", "use K=- once, and set the others by themselves")
    return pairs


async def _values(call: Call, pairs: dict[str, str]) -> dict[str, bytes]:
    return {
        name: await call.value(VALUE_MAX, ":env NAME set K=-") if value == STDIN else value.encode()
        for name, value in pairs.items()
    }


def _shown(value: bytes, *, exact: bool) -> str:
    """As JSON has it, bytes that are not UTF-8 as PEP 383 writes them; else fit for one line."""
    if exact:
        return value.decode(errors="surrogateescape")
    text = value.decode(errors="backslashreplace")
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


BUILTIN = Builtin(
    verb=":env",
    summary="Show, set and unset a command's environment, its secrets; kept encrypted.",
    example="ssh HOST :env http set TOKEN=- < token.txt",
    run=_run,
    arguments=_arguments,
)
