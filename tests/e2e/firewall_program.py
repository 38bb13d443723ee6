"""Rewrites the firewall several times in a sandbox; prints what the kernel holds after each, as JSON."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

from deploy.lab.machines import sandbox
from nodeagent.firewall import ruleset as firewall
from nodeagent.firewall.ruleset import Rules

RULES = Rules(device="isthmus", port=8472, own_range="10.200.0.0/26", cidrs=("10.200.0.0/16",))
WIDER = Rules(device="isthmus", port=8472, own_range="10.200.0.0/26", cidrs=("10.200.0.0/16", "10.210.0.0/16"))


def look() -> dict[str, Any]:
    """Handles tell whether a thing is still the one it was; a thing made anew has another."""
    text = subprocess.run(
        ["nft", "--json", "--handle", "list", "table", "inet", "isthmus"], capture_output=True, check=True
    ).stdout
    found = json.loads(text)["nftables"]
    sets = {entry["set"]["name"]: entry["set"] for entry in found if "set" in entry}
    return {
        "table": next(entry["table"]["handle"] for entry in found if "table" in entry),
        "sets": {name: entry["handle"] for name, entry in sets.items()},
        "vteps": sorted(sets["vteps"].get("elem", [])),
        "vteps6": sets["vteps6"].get("elem", []),
        "containers": len(sets["containers"]["elem"]),
        "chains": sorted(entry["chain"]["name"] for entry in found if "chain" in entry),
        "rules": sum("rule" in entry for entry in found),
    }


async def main() -> int:
    seen: list[dict[str, Any]] = []
    await firewall.replace(RULES, ["192.0.2.1", "192.0.2.2", "2001:db8::1"])
    seen.append(look())
    await firewall.replace(RULES, ["192.0.2.2", "192.0.2.3"])
    seen.append(look())
    await firewall.replace(WIDER, ["192.0.2.2", "192.0.2.3"])
    seen.append(look())
    await firewall.replace(RULES, ["192.0.2.2"])
    seen.append(look())
    subprocess.run(  # noqa: ASYNC221  nothing else runs here
        ["nft", "-f", "-"],
        check=True,
        text=True,
        input="delete table inet isthmus\n"
        "table inet isthmus { set vteps { type inet_service; elements = { 80 }; }\n"
        "chain forwarded { type filter hook input priority 7; policy drop; }; }\n",
    )
    await firewall.replace(RULES, ["192.0.2.9"])
    seen.append(look())
    print(json.dumps(seen), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(sandbox.run(lambda: asyncio.run(main()), lambda init, user_namespace: None))
