"""``rwkv-engine completion``: scripts for shells, made of the parsers themselves."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

HELP = "print a completion script for a shell"
DESCRIPTION = "Print a script that completes commands and options of rwkv-engine in a shell."
EXAMPLE = """examples:
  rwkv-engine completion bash > ~/.local/share/bash-completion/completions/rwkv-engine
  rwkv-engine completion zsh > "${fpath[1]}/_rwkv-engine"
  rwkv-engine completion fish > ~/.config/fish/completions/rwkv-engine.fish
or for one session: source <(rwkv-engine completion bash)"""

_BASH = """_rwkv_engine() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    local command=${{COMP_WORDS[1]}}
    case $command in
        {groups}) (( COMP_CWORD > 2 )) && command+=" ${{COMP_WORDS[2]}}" ;;
    esac
    case "$command $before" in
{values}
        *)
            case "$command $word" in
{options}
            esac ;;
    esac
    if (( COMP_CWORD == 1 )); then
        words='{commands}'
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _rwkv_engine rwkv-engine
"""

_ZSH = """#compdef rwkv-engine
_rwkv_engine() {{
    if (( CURRENT == 2 )); then
        local -a commands=(
{commands}
        )
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
        {groups})
            if (( CURRENT > 2 )); then
                command+=" $words[2]"
                shift words
                (( CURRENT-- ))
            fi ;;
    esac
    case $command in
{cases}
    esac
}}
if [[ $funcstack[1] == _rwkv-engine ]]; then
    _rwkv_engine "$@"
else
    compdef _rwkv_engine rwkv-engine
fi
"""

_FILES = {"FILE", "PATH", "NAME|FILE", "MODEL", "TARGET"}


@dataclass(frozen=True, slots=True)
class _Argument:
    names: tuple[str, ...]
    """None for one that stands by its place."""
    help: str
    takes: str
    """What comes after it; "" for nothing."""
    words: tuple[str, ...]
    """What may stand there, where that is known."""
    repeats: bool

    @property
    def is_file(self) -> bool:
        return self.takes in _FILES


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    """Of a command's own commands, "state show" and so on."""
    help: str
    arguments: tuple[_Argument, ...]
    children: tuple[str, ...] = ()
    """What its own commands are called."""

    @property
    def options(self) -> list[str]:
        return [name for argument in self.arguments for name in argument.names]

    @property
    def words(self) -> list[str]:
        """Return what may stand for an argument that has no name."""
        return [word for a in self.arguments if not a.names for word in a.words]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="for which shell")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    commands = _commands(options.parser)
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](commands), end="")


def _commands(parser: argparse.ArgumentParser) -> list[_Command]:
    """Return what the parser knows, the commands of a command before it: patterns match them."""
    found = []
    for name, help, own in _subparsers(parser):
        children = _subparsers(own)
        for child, text, inner in children:
            found.append(_Command(f"{name} {child}", text, _arguments(inner)))
        names = tuple(child for child, _, _ in children)
        found.append(_Command(name, help, _arguments(own), names))
    return found


def _arguments(parser: argparse.ArgumentParser) -> tuple[_Argument, ...]:
    return tuple(map(_argument, parser._actions))


def _subparsers(
    parser: argparse.ArgumentParser,
) -> list[tuple[str, str, argparse.ArgumentParser]]:
    """Return the name, the help and the parser of each of its commands."""
    return [
        (choice.dest, choice.help or "", action.choices[choice.dest])
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    ]


def _outer(commands: list[_Command]) -> list[_Command]:
    return [command for command in commands if " " not in command.name]


def _groups(commands: list[_Command]) -> str:
    """Return those that have commands of their own, as shells write alternatives."""
    return "|".join(command.name for command in commands if command.children)


def _argument(action: argparse.Action) -> _Argument:
    words = tuple(map(str, action.choices or ()))
    takes = "" if action.nargs == 0 else str(action.metavar or action.dest)
    places = not action.option_strings and action.nargs == "+"
    repeats = places or isinstance(action, argparse._AppendAction)
    return _Argument(tuple(action.option_strings), action.help or "", takes, words, repeats)


def _bash(commands: list[_Command]) -> str:
    values, options, files = [], [], []
    for command in commands:
        for argument in command.arguments:
            places = [f"'{command.name} {name}'" for name in argument.names if argument.takes]
            if places and argument.words:
                words = " ".join(argument.words)
                values.append(f"        {'|'.join(places)}) words='{words}' ;;")
            else:
                files += places
        words = " ".join(command.options)
        options.append(f"                '{command.name} '-*) words='{words}' ;;")
        if command.words:
            words = " ".join(command.words)
            options.append(f"                '{command.name} '*) words='{words}' ;;")
    # Where there are no words the shell completes file names.
    values.append(f"        {'|'.join(files)}) ;;")
    names = " ".join([*(command.name for command in _outer(commands)), "--help", "--version"])
    return _BASH.format(
        values="\n".join(values),
        options="\n".join(options),
        commands=names,
        groups=_groups(commands),
    )


def _zsh(commands: list[_Command]) -> str:
    names = [
        f"            {_quoted(f'{command.name}:{_escaped(command.help)}')}"
        for command in _outer(commands)
    ]
    cases = []
    for command in commands:
        specs = [spec for argument in command.arguments for spec in _zsh_specs(argument)]
        cases.append(f"        {_quoted(command.name)}) _arguments {' '.join(specs)} ;;")
    return _ZSH.format(commands="\n".join(names), cases="\n".join(cases), groups=_groups(commands))


def _zsh_specs(argument: _Argument) -> list[str]:
    action = f"({' '.join(argument.words)})" if argument.words else " "
    if argument.is_file:
        action = "_files"
    after = f":{_escaped(argument.takes)}:{action}" if argument.takes else ""
    many = "*" if argument.repeats else ""
    if not argument.names:
        return [_quoted(many + after)]
    return [_quoted(f"{many}{name}[{_escaped(argument.help)}]{after}") for name in argument.names]


def _fish(commands: list[_Command]) -> str:
    start = "complete -c rwkv-engine -n __fish_use_subcommand"
    lines = ["complete -c rwkv-engine -f", f"{start} -l version", f"{start} -s h -l help"]
    lines += [
        f"{start} -a {command.name} -d {_fish_quoted(command.help)}" for command in _outer(commands)
    ]
    for command in commands:
        here = f"complete -c rwkv-engine -n {_fish_quoted(_fish_condition(command, commands))}"
        for argument in command.arguments:
            words = f" -a {_fish_quoted(' '.join(argument.words))}" if argument.words else ""
            files = " -F" if argument.is_file else ""
            names = [
                f"-l {name[2:]}" if name[1] == "-" else f"-s {name[1:]}" for name in argument.names
            ]
            if names:
                value = " -x" if argument.takes and not argument.is_file else " -r" if files else ""
                text = _fish_quoted(argument.help)
                lines.append(f"{here} {' '.join(names)}{value}{files}{words} -d {text}")
            elif words or files:
                lines.append(f"{here}{files}{words}")
    return "\n".join(lines) + "\n"


def _fish_condition(command: _Command, commands: list[_Command]) -> str:
    """Return when it is this command that is being written."""
    seen = [f"__fish_seen_subcommand_from {name}" for name in command.name.split()]
    if command.children:
        seen.append(f"not __fish_seen_subcommand_from {' '.join(command.children)}")
    # Elsewhere a word of the same name may stand for a command of another one.
    others = [other.name for other in commands if command.name in other.children]
    seen += [f"not __fish_seen_subcommand_from {name}" for name in others]
    return "; and ".join(seen)


def _escaped(text: str) -> str:
    """Return text for a place where _arguments and _describe give some characters a meaning."""
    return re.sub(r"([\\\[\]:])", r"\\\1", text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
