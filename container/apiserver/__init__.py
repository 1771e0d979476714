"""The API server: containers, networks, volumes, plugins and health, one actor each.

It owns the documents of all containers, networks and volumes, and starts one runtime helper per
container; it never touches a container's processes, mounts or control groups itself, so it can be
killed at any moment and the next one adopts what runs.

- `containers`: the actor behind the `Containers` contract. It stands on `adoption` (what an earlier
  API server left), that on `running` (a container's runs, one after the other), that on `attaching`
  (which networks it is in), that on `table` (what exists).
- `restarts`, `healthchecks`, `events`: the rules of restart policies, the checks of one run, and
  what is told to subscribers.
- `names`, `configuration`, `store`: what a name may be, what a container is made from, where it is
  kept.
- `sandboxes`, `runs`: the connection to each runtime helper, and one run from bootstrap to
  clean-up.
- `volumes`: the actor behind the `Volumes` contract, and what it stands on: `volumes_store` (the
  folders), `volumes_local` and `volumes_drivers` (who keeps the data), `volumes_holding` (volumes
  that are mounted for runs), `volumes_mounts` (which ones a container gets).
- `disk_usage`: what all that takes on disk, and removing what nobody uses.
- `plugins`, `health`: two more contracts.
- `links`: connections to the launcher and the images helper that survive their restart.
"""

from __future__ import annotations
