"""The bridge plugin: the helper process of one network (`container-network`).

| file | its one subject |
|---|---|
| `process` | the process: command line, configuration, end |
| `service` | `Network`: attachments as scopes, taken up again, released |
| `views` | what an attachment is to its holder, the kernel and the names |
| `checking` | what may be asked for |
| `upkeep` | bridge, rules and names: up while there is something to do |
| `links` | what the kernel tells of interfaces |
| `leases` | which address is whose |
| `records` | what is written down before it is used |
| `bridge` | bridge, veth pairs, addresses and routes, in the kernel |
| `netlink`, `namespaces` | the kernel's interface to that |
| `firewall` | the network's nft table |
| `ports`, `reserving`, `proxy`, `who_listens` | published ports |
"""

from __future__ import annotations
