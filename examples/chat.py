"""Chat over a document, on one page.

    python examples/chat.py examples/northanger_abbey.txt

`stratakv chat` is the same conversation with progress bars, history and more commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from stratakv.runtime import Chat, KVConfig, Runtime, StratakvError

HELP = "/read FILE  /stats  /save NAME  /load NAME  /regen  /clear  /bye"


def command(runtime: Runtime, chat: Chat, name: str, argument: str) -> Chat:
    """Carry out one `/command`; returns the conversation to go on with."""
    if name == "read":
        done = chat.read(argument)
        print(f"{done.tokens} tokens, {done.cached} of them already in the store")
    elif name == "stats":
        for tier, numbers in runtime.stats()["tiers"].items():
            print(f"{tier:5} {numbers['used_bytes'] / 1e6:8.1f} MB  {numbers['page_reads']} page reads")
    elif name == "save":
        chat.save(argument)
    elif name == "load":
        chat = runtime.chat(session=argument)
        print(f"{chat.restored} tokens restored")
    elif name == "regen":
        show(chat.regenerate(do_sample=True))
    elif name == "clear":
        chat.close()
        chat = runtime.chat()
    else:
        print(HELP)
    return chat


def show(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def main() -> None:
    with Runtime.load("smollm2", kv=KVConfig(budget=1024)) as runtime:
        chat = runtime.chat()
        for path in sys.argv[1:]:
            chat = command(runtime, chat, "read", path)
        while True:
            try:
                text = input(">>> ").strip()
                if text == "/bye":
                    break
                if text.startswith("/"):
                    name, _, argument = text[1:].partition(" ")
                    chat = command(runtime, chat, name, argument)
                elif text:
                    show(chat.stream(text))
            except EOFError:
                break
            except KeyboardInterrupt:
                print("\n(/bye leaves)")
            except (StratakvError, ValueError, OSError) as error:
                print(error)


if __name__ == "__main__":
    try:
        main()
    except (StratakvError, ValueError, OSError) as error:  # no such model, no room for its store, no such document
        sys.exit(str(error))
