"""Scripts that complete commands and options in bash, zsh and fish, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["completion"]

_BASH = """\
# Completion of llm-cost-ops for bash: source it, or keep it in ~/.local/share/bash-completion/completions/.
_llm_cost_ops() {
    local word="${COMP_WORDS[COMP_CWORD]}" path="" words="" each values
    for each in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$path $each" in
            %(paths)s) path="${path:+$path }$each" ;;
        esac
    done
    case "$path ${COMP_WORDS[COMP_CWORD-1]}" in
%(values)s
    esac
    if [ -n "$values" ]; then
        COMPREPLY=($(compgen -W "$values" -- "$word"))
        return
    fi
    case "$path" in
%(words)s
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _llm_cost_ops llm-cost-ops
"""

_ZSH = """\
#compdef llm-cost-ops
# Completion of llm-cost-ops for zsh: keep it as _llm-cost-ops in a folder of $fpath, or source it.
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_llm_cost_ops() {
    local path_="" each
    local -a found
    for each in "${(@)words[2,CURRENT-1]}"; do
        case "$path_ $each" in
            %(paths)s) path_="${path_:+$path_ }$each" ;;
        esac
    done
    case "$path_ ${words[CURRENT-1]}" in
%(values)s
    esac
    if (( $#found )); then
        compadd -- $found
        return
    fi
    case "$path_" in
%(words)s
    esac
    [[ $PREFIX == -* ]] || _files
    _describe 'llm-cost-ops' found
}
compdef _llm_cost_ops llm-cost-ops
"""


class _Option(NamedTuple):
    names: tuple[str, ...]
    help: str
    values: tuple[str, ...]
    takes_value: bool


class _Command(NamedTuple):
    path: tuple[str, ...]
    commands: dict[str, str]
    """The commands below, each with what it does."""
    options: list[_Option]


def completion(options: argparse.Namespace) -> int:
    """The `completion` command: print the script for `bash`, `zsh` or `fish`."""
    commands = list(_walk(options.root, ()))
    if options.shell == "fish":
        print("\n".join(_fish(commands)))
    else:
        print((_BASH if options.shell == "bash" else _ZSH) % _parts(options.shell, commands), end="")
    return 0


def _walk(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[_Command]:
    below: dict[str, argparse.ArgumentParser] = {}
    commands: dict[str, str] = {}
    options = []
    for action in parser._actions:  # noqa: SLF001  # argparse gives its options to nobody otherwise
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # it has no public name
            below = dict(action.choices)
            commands = {each.dest: each.help or "" for each in action._choices_actions}  # noqa: SLF001
        elif action.option_strings:
            values = tuple(str(each) for each in action.choices or ())
            text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
            options.append(_Option(tuple(action.option_strings), text, values, action.nargs != 0))
    yield _Command(path, commands, options)
    for name, parser_below in below.items():
        yield from _walk(parser_below, (*path, name))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _parts(shell: str, commands: list[_Command]) -> dict[str, str]:
    """What bash and zsh complete: the words after each path, and the values of options that bound them."""
    words = []
    values = []
    for each in commands:
        path = " ".join(each.path)
        options = [(name, option.help) for option in each.options for name in option.names]
        if shell == "bash":
            shown = f'words="{" ".join([*each.commands, *(name for name, _ in options)])}"'
        else:
            entries = (_quoted(f"{name}:{text}") for name, text in (*each.commands.items(), *options))
            shown = f"found=({' '.join(entries)})"
        words.append(f'        "{path}") {shown} ;;')
        for option in each.options:
            if option.values:
                patterns = "|".join(f'"{path} {name}"' for name in option.names)
                bounded = " ".join(option.values)
                shown = f'values="{bounded}"' if shell == "bash" else f"found=({bounded})"
                values.append(f"        {patterns}) {shown} ;;")
    pairs = [(" ".join(each.path), name) for each in commands for name in each.commands]
    # Patterns of "PATH WORD" in which the word is a command: it makes the path longer.
    paths = "|".join(f'"{path} {name}"' for path, name in pairs)
    return {"paths": paths, "words": "\n".join(words), "values": "\n".join(values)}


def _fish(commands: list[_Command]) -> Iterator[str]:
    yield "# Completion of llm-cost-ops for fish: keep it in ~/.config/fish/completions/llm-cost-ops.fish."
    for each in commands:
        seen = [f"__fish_seen_subcommand_from {name}" for name in each.path]
        if each.commands:
            unseen = f"not __fish_seen_subcommand_from {' '.join(each.commands)}"
            condition = _fish_quoted("; and ".join([*seen, unseen]))
            for name, text in each.commands.items():
                yield f"complete -c llm-cost-ops -f -n {condition} -a {name} -d {_fish_quoted(text)}"
        for option in each.options:
            yield _fish_option(option, "; and ".join(seen))


def _fish_option(option: _Option, condition: str) -> str:
    line = "complete -c llm-cost-ops" + (f" -n {_fish_quoted(condition)}" if condition else "")
    for name in option.names:
        line += f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
    if option.values:
        line += f" -x -a {_fish_quoted(' '.join(option.values))}"
    elif option.takes_value:
        line += " -r"
    return f"{line} -d {_fish_quoted(option.help)}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
