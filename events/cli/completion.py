"""``isthmus completion``: the text that makes a shell complete commands and options."""

from __future__ import annotations

import click

from events.errors import Usage

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion of a shell; the Debian package has installed it already.

    \b
    bash:  isthmus completion bash > /etc/bash_completion.d/isthmus
    zsh:   isthmus completion zsh > /usr/share/zsh/vendor-completions/_isthmus
    fish:  isthmus completion fish > /etc/fish/completions/isthmus.fish
    """
    click.echo(script(context.find_root().command, shell))


def script(root: click.Command, shell: str) -> str:
    """The text for one of :data:`SHELLS`. Needs no such shell here. Raises Usage(usage)."""
    from click.shell_completion import BashComplete, get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise Usage("usage", f"there is no completion for {shell!r}; there is for {', '.join(SHELLS)}")
    if issubclass(found, BashComplete):
        # click asks the machine's bash for its version, which says nothing of where the text will be read.
        unchecked = found(root, {}, "isthmus", "_ISTHMUS_COMPLETE")
        return unchecked.source_template % unchecked.source_vars()
    return found(root, {}, "isthmus", "_ISTHMUS_COMPLETE").source()
