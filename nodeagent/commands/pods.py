"""What `isthmus agent` does about pods from outside of the agent: install-plugin, end-pods."""

from __future__ import annotations

from pathlib import Path

import click

from events.cli.options import confirm, json_option
from events.cli.tables import print_json
from nodeagent.commands.options import state_option


@click.command("install-plugin")
@click.option("--cni-bin-dir", default="", metavar="DIRECTORY",
              help="Where the CNI plugins are [/opt/cni/bin, /usr/lib/cni, /usr/libexec/cni].")  # fmt: skip
def install_plugin_command(cni_bin_dir: str) -> None:
    """Put our CNI plugin beside the standard ones (`portmap`), in this release's version.

    A running agent sees it within seconds and ends the CNI chain with it: then pods are known by name, and the
    container runtime hears whether their packets pass. Nothing changes for pods that run.

    \b
    Example:
      isthmus agent install-plugin --cni-bin-dir /opt/cni/bin
    """
    from events.errors import Refused
    from nodeagent.pods import chain

    places = chain.directories(cni_bin_dir)
    try:
        written = chain.install(places)
    except OSError as error:
        raise Refused(
            "not_permitted", f"the plugin cannot be written ({error}): run as root, or name --cni-bin-dir"
        ) from error
    for path in written:
        click.echo(f"{path} written")
    if not written:
        click.echo(f"nothing to do in {', '.join(places)}: it is there, or no standard plugin (portmap) is")


@click.command("end-pods")
@state_option
@click.option("--cni-data-dir", default="", metavar="DIRECTORY", help="As the agent's.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def end_pods_command(state_dir: Path, cni_data_dir: str, yes: bool, as_json: bool) -> None:
    """End the pods whose addresses are of a range that this node no longer has.

    Their processes get SIGTERM, and SIGKILL after 10 s; the container runtime starts the pods anew with
    addresses of the new range. Other pods are not touched.

    \b
    Example:
      isthmus agent end-pods --yes
    """
    from nodeagent import local_files
    from nodeagent.pods.end import end
    from nodeagent.pods.leaving import pods_here

    status = local_files.read_status(state_dir)
    data_dir = Path(cni_data_dir or status.pod_directory or state_dir / "pod-addresses")
    strays = pods_here(state_dir, status, data_dir).strays
    if strays:
        confirm(f"End {len(strays)} pods ({', '.join(strays[:10])})?", yes=yes)
    ended = end(strays, data_dir)
    if as_json:
        print_json({"ended": ended})
    else:
        lines = [f"{address}: {count} processes ended" for address, count in ended.items()]
        click.echo("\n".join(lines) or "no pod has an address of a range that this node does not have")
