"""The bridge plugin: the helper process of one network (`container-network`).

| file | its one subject |
|---|---|
| `process` | the process: command line, configuration, end |
| `service` | `Network`: attachments as scopes, taken up again, released |
| `leases` | which address is whose |
| `records` | what is written down before it is used |
| `bridge` | bridge, veth pairs, addresses and routes, in the kernel |
| `netlink`, `namespaces` | the kernel's interface to that |
| `firewall` | the network's nft table |
| `ports`, `reserving`, `proxy`, `who_listens` | published ports |
"""

from __future__ import annotations
