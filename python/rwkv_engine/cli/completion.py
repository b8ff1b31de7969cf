"""``rwkv-engine completion``: scripts for shells, made of the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

HELP = "print a completion script for a shell"
DESCRIPTION = "Print a script that completes commands and options of rwkv-engine in a shell."
EXAMPLE = """examples:
  rwkv-engine completion bash > ~/.local/share/bash-completion/completions/rwkv-engine
  rwkv-engine completion zsh > "${fpath[1]}/_rwkv-engine"
  rwkv-engine completion fish > ~/.config/fish/completions/rwkv-engine.fish"""

_BASH = """_rwkv_engine() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} options arguments
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    if [[ $COMP_CWORD == 1 ]]; then
        options="{commands} --help --version"
    elif [[ $word != -* ]]; then
        options=$arguments
    fi
    COMPREPLY=($(compgen -W "$options" -- "$word"))
}}
complete -o default -F _rwkv_engine rwkv-engine
"""

_ZSH = """#compdef rwkv-engine
_rwkv_engine() {{
    local -a words_
    if (( CURRENT == 2 )); then
        words_=({commands} --help --version)
    else
        case $words[2] in
{cases}
        esac
    fi
    compadd -a words_
    (( CURRENT > 2 )) && _files
}}
_rwkv_engine "$@"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    commands = dict(_commands(options.parser))
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](commands), end="")


def _commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, tuple[str, list[argparse.Action]]]]:
    """Yield each command's name with its help and the arguments it takes."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield name, (helps[name], command._actions)


def _options(actions: list[argparse.Action]) -> str:
    return " ".join(name for action in actions for name in action.option_strings)


def _arguments(actions: list[argparse.Action]) -> str:
    """Return what may stand for arguments that have a fixed choice."""
    fixed = [action.choices for action in actions if not action.option_strings and action.choices]
    return " ".join(str(choice) for choices in fixed for choice in choices)


_Commands = dict[str, tuple[str, list[argparse.Action]]]


def _bash(commands: _Commands) -> str:
    cases = [
        f'        {name}) options="{_options(actions)}" arguments="{_arguments(actions)}" ;;'
        for name, (_, actions) in commands.items()
    ]
    return _BASH.format(commands=" ".join(commands), cases="\n".join(cases))


def _zsh(commands: _Commands) -> str:
    cases = [
        f"            {name}) words_=({_options(actions)} {_arguments(actions)}) ;;"
        for name, (_, actions) in commands.items()
    ]
    return _ZSH.format(commands=" ".join(commands), cases="\n".join(cases))


def _fish(commands: _Commands) -> str:
    lines = ["complete -c rwkv-engine -n __fish_use_subcommand -l version -l help"]
    for name, (text, actions) in commands.items():
        lines.append(
            f"complete -c rwkv-engine -f -n __fish_use_subcommand -a {name} -d {_quoted(text)}"
        )
        here = f"complete -c rwkv-engine -n '__fish_seen_subcommand_from {name}'"
        for action in actions:
            long = [f"-l {name[2:]}" for name in action.option_strings if name.startswith("--")]
            short = [
                f"-s {name[1:]}" for name in action.option_strings if not name.startswith("--")
            ]
            words = f" -a {_quoted(' '.join(map(str, action.choices)))}" if action.choices else ""
            if action.option_strings:
                needs = " -r" if action.nargs != 0 else ""
                detail = f" -d {_quoted(action.help)}" if action.help else ""
                lines.append(f"{here} {' '.join(short + long)}{needs}{words}{detail}")
            elif words:
                lines.append(f"{here} -f{words}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
